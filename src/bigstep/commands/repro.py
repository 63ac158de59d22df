"""The end of `bigstep repro`: print the metrics, and complete the MLflow run if all stages were up to date."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from bigstep.atomic_files import read_metrics
from bigstep.config.data import short_source
from bigstep.config.params import Params, flatten
from bigstep.console import console, format_score
from bigstep.errors import ProjectError
from bigstep.machine_output import Report, no_report
from bigstep.project.attempts import PipelineAttempt, find_key, read_attempt
from bigstep.project.parameters import learning_values
from bigstep.project.paths import ProjectPaths, StagePaths
from bigstep.runs.cleaning import trim
from bigstep.runtime.environment import DVC_EXPERIMENT, read_variable
from bigstep.tracking.given_run import given_run, pointing_run

if TYPE_CHECKING:
    from bigstep.tracking.mlflow_tracker import MlflowTracker

__all__ = ["finish_pipeline"]

FILES = {"train": ("train",), "evaluate": ("train", "evaluate")}


def finish_pipeline(root: Path, paths: StagePaths, params: Params, stage: str, report: Report = no_report) -> int:
    """Print and report the metrics up to ``stage``, and complete the run of `mlflow run`, if there is one.

    Returns:
        0
    """
    values = {
        key: value
        for name in FILES.get(stage, ())
        for key, value in read_metrics(paths.root / "results" / name / "metrics.json").items()
    }
    if values:
        _print_table(values, params)
        kind, place = ("report", paths.evaluate / "report.html") if stage == "evaluate" else ("results", paths.train)
        console.print(f"{kind}: {os.path.relpath(place)}   runs: bigstep mlflow")
    report({"metrics": values, "results": str(paths.root / "results"), "params": flatten(params)})
    trim(ProjectPaths(root))
    run_id, pointing = given_run(params.tracking.experiment), pointing_run(params.tracking.experiment)
    if run_id is not None or (pointing is not None and values):
        _follow_mlflow_run(ProjectPaths(root), params, values, stage, (run_id, pointing))
    return 0


def _follow_mlflow_run(
    project: ProjectPaths, params: Params, values: dict[str, float], stage: str, runs: tuple[str | None, str | None]
) -> None:
    """Complete the run of `mlflow run`, or link it; where MLflow does not answer now that is a line: the results are there."""
    from bigstep.tracking.database import reachable, tracking_uri

    run_id, pointing = runs
    try:
        with reachable(tracking_uri(project.root)):
            if run_id is not None:
                _complete_run(project, params, values, run_id, stage)
            elif pointing is not None:
                _point(project, params, values, pointing)
    except ProjectError as error:
        console.print(f"{error}; the run of `mlflow run` lacks these results")


def _print_table(values: dict[str, float], params: Params) -> None:
    table = Table(title=f"{params.model.name} on {short_source(params.data.source)}, {params.batch}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in values.items():
        table.add_row(key, format_score(value) if isinstance(value, float) else f"{value:,}")
    console.print(table)


def _complete_run(project: ProjectPaths, params: Params, values: dict[str, float], run_id: str, stage: str) -> None:
    """Log to the run of `mlflow run` if its stages were up to date, and so logged nothing."""
    attempt = _attempt(project, params)
    if attempt is not None and attempt.run_id == run_id and stage in attempt.finished:
        return
    produced = {} if attempt is None or attempt.run_id is None else {"bigstep.produced_by": attempt.run_id}
    _fill_run(project, params, values, run_id, produced)


def _fill_run(
    project: ProjectPaths, params: Params, values: dict[str, float], run_id: str | None, tags: dict[str, str]
) -> "MlflowTracker":
    from bigstep.runs.tracked_run import as_metrics_now
    from bigstep.tracking.database import tracking_uri
    from bigstep.tracking.mlflow_tracker import open_run

    tracker = open_run(tracking_uri(project.root), run_id=run_id, experiment=params.tracking.experiment)
    tracker.log_params(flatten(params))
    tracker.log_metrics(as_metrics_now(values, step=int(values.get("num_updates", 0))))
    tracker.set_tags({"bigstep.up_to_date": "true", **tags})
    tracker.finish("FINISHED")
    return tracker


def _point(project: ProjectPaths, params: Params, values: dict[str, float], pointing: str) -> None:
    """Link the run of `mlflow run` to the run that has these results, which is created if it does not exist."""
    from bigstep.tracking.database import open_client, tracking_uri
    from bigstep.tracking.mlflow_tracker import MlflowTracker

    attempt, uri = _attempt(project, params), tracking_uri(project.root)
    tracker = None
    if attempt is not None and attempt.run_id is not None:
        tracker = MlflowTracker(open_client(uri), uri, attempt.run_id)
    if tracker is None or not tracker.is_there():
        tracker = _fill_run(project, params, values, None, {})
    tracker.point_from(pointing)


def _attempt(project: ProjectPaths, params: Params) -> PipelineAttempt | None:
    key = find_key(project.attempts, learning_values(params), read_variable(DVC_EXPERIMENT))
    return read_attempt(project.attempts, key)
