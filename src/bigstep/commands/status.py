"""`bigstep status`: what runs, what was interrupted, what is queued, and what MLflow has not received."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from bigstep.config.params import Params, parse_params, read_params
from bigstep.config.search import OBJECTIVES
from bigstep.console import console, format_bytes, format_score, format_seconds
from bigstep.diagnostics.activity import INTERRUPTED, RUNNING, Activity, RunActivity, StudyActivity, find_activity
from bigstep.errors import ExitCode, UserError
from bigstep.machine_output import Report, no_report
from bigstep.project.paths import ProjectPaths
from bigstep.tracking.database import sqlite_file

__all__ = ["status"]


def status(root: Path, report: Report = no_report) -> int:
    """Print a line for each thing that is not over.

    Args:
        root: of the project.
        report: takes every field.

    Returns:
        0

    Raises:
        ConfigError: params.yaml is not valid.
    """
    project = ProjectPaths(root)
    found = find_activity(project, _studies(project, parse_params(read_params(root / "params.yaml"), "params.yaml")))
    report(asdict(found))
    _print(found)
    return ExitCode.OK


def _studies(project: ProjectPaths, params: Params) -> tuple[StudyActivity, ...]:
    """Read the study of params.yaml, if there is one; of a database that does not answer its error is printed."""
    from bigstep.search.studies import study_address

    address = study_address(project, params)
    if not _exists(address):
        return ()
    import optuna

    from bigstep.search.storage import STORAGE_ERRORS, first_line, open_storage

    try:
        study = optuna.load_study(study_name=params.search.study, storage=open_storage(address))
        trials = study.get_trials(deepcopy=False)
    except KeyError:
        return ()
    except (UserError, *STORAGE_ERRORS) as error:
        console.print(f"study {params.search.study}: {first_line(error)}")
        return ()
    objective = params.search.objectives[0]
    values = [trial.values[0] for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE and trial.values]
    best = min if OBJECTIVES[objective] == "minimize" else max
    return (
        StudyActivity(
            params.search.study,
            dict(Counter(trial.state.name.lower() for trial in trials)),
            best(values, default=None),
            objective,
        ),
    )


def _exists(address: str) -> bool:
    """Return whether there may be a study; reading a file that does not exist would create it."""
    path = sqlite_file(address) if "://" in address else Path(address)
    return path is None or path.exists()


def _print(found: Activity) -> None:
    lines = [_run_line(run) for run in sorted(found.runs, key=lambda run: (run.state != RUNNING, run.silent_seconds))]
    lines += map(_study_line, found.studies)
    if found.queued_experiments:
        lines.append(f"{found.queued_experiments} experiments wait in DVC's queue; `dvc queue start` runs them")
    if any(run.unsent_bytes and run.state != RUNNING for run in found.runs):
        lines.append("what waits for MLflow is sent at the next start, or by `bigstep doctor --fix`")
    for line in lines or ["nothing runs, and nothing waits"]:
        console.print(line)


def _run_line(run: RunActivity) -> str:
    parts = [f"{run.state}: {run.title or run.name}", f"stage {run.stage}"]
    if run.epochs is not None and run.stage == "train":
        parts.append(f"epoch {run.epoch or 0}/{run.epochs} done")
    if run.step is not None and run.stage == "train":
        parts.append(f"step {run.step + 1:,}")
    parts += [f"{name} {format_score(value)}" for name, value in run.scores.items()]
    if run.state == INTERRUPTED and run.checkpoint is not None:
        parts.append(f"resumes from step {run.checkpoint:,}")
    if run.unsent_bytes and run.state != RUNNING:
        parts.append(f"{format_bytes(run.unsent_bytes)} not in MLflow yet")
    if run.run_id is not None:
        parts.append(f"run {run.run_id}")
    return f"{', '.join(parts)} ({format_seconds(run.silent_seconds)} ago)"


def _study_line(study: StudyActivity) -> str:
    states = ", ".join(f"{count} {name}" for name, count in sorted(study.trials.items())) or "no trials"
    best = "" if study.best is None else f"; best {study.objective} {format_score(study.best)}"
    return f"study {study.name}: {states}{best}"
