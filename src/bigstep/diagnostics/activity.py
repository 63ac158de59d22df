"""What `bigstep status` shows: what runs, what was interrupted, what is queued, and what MLflow has not received."""

import contextlib
import itertools
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bigstep.atomic_files import read_record
from bigstep.project.attempts import PipelineAttempt, read_attempt
from bigstep.project.paths import ProjectPaths
from bigstep.runs.checkpoint_files import read_commit
from bigstep.runtime.file_locks import Timeout, exclusive_lock
from bigstep.tracking.entries import read_entry
from bigstep.tracking.journal_lines import last_lines
from bigstep.tracking.spool import Sent, end_status, unfinished_spools

__all__ = ["QUEUE", "Activity", "RunActivity", "StudyActivity", "count_queued", "find_activity", "find_runs"]

QUEUE = "refs/exps/celery/stash"  # DVC's queue of experiments, in git
RUNNING, INTERRUPTED, FAILED, WAITING = "running", "interrupted", "failed", "waits for MLflow"
FIRST_LINES, LAST_LINES = 20, 2000  # of a journal, in which parameters and the last epoch are looked for


@dataclass(frozen=True)
class RunActivity:
    """A run that is not over: it trains, it can be resumed, or MLflow lacks a part of it."""

    name: str
    """Of its attempt or trial."""
    state: str
    stage: str
    """That runs, or comes next."""
    run_id: str | None
    title: str = ""
    """Model, effective batch size, learning rate and seed."""
    epochs: str | None = None
    """In all."""
    epoch: int | None = None
    """The last one that ended, from 1."""
    step: int | None = None
    """The last one that was logged, from 0."""
    checkpoint: int | None = None
    """Steps before the newest checkpoint."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Of the last epoch."""
    silent_seconds: float = 0.0
    """Since the last entry."""
    unsent_bytes: int = 0


@dataclass(frozen=True)
class StudyActivity:
    """A study, its trials by state, and the best value of its first objective."""

    name: str
    trials: dict[str, int]
    best: float | None
    objective: str


@dataclass(frozen=True)
class Activity:
    """Everything that is not over in a project."""

    runs: tuple[RunActivity, ...]
    studies: tuple[StudyActivity, ...]
    queued_experiments: int
    private_copies: int


def find_activity(project: ProjectPaths, studies: tuple[StudyActivity, ...] = ()) -> Activity:
    """Read the state folder; nothing in it is changed."""
    copies = sum(1 for _ in project.workspaces.glob("*/params.yaml"))
    return Activity(tuple(find_runs(project)), studies, count_queued(project.root), copies)


def find_runs(project: ProjectPaths) -> Iterator[RunActivity]:
    """Yield the runs of the pipeline and of trials that are not over."""
    seen = set()
    for path in sorted(project.attempts.glob("*.json")):
        attempt = read_attempt(project.attempts, path.stem)
        if attempt is None:
            continue
        state = _state(project, path.stem, attempt)
        folder = project.spools / f"{path.stem}.{attempt.number}"
        if state is not None:
            seen.add(folder)
            run = _describe(folder, state, _stage(folder, attempt), attempt.run_id)
            yield replace(run, checkpoint=_checkpoint(project.checkpoints / folder.name))
    for spools in (project.spools, *sorted(project.search.glob("*/spools"))):
        for folder in unfinished_spools(spools):
            if folder not in seen:
                running = _is_held(folder.with_name(f"{folder.name}.lock"))
                yield _describe(folder, RUNNING if running else WAITING)


def count_queued(root: Path) -> int:
    """Return how many experiments wait in DVC's queue; 0 where git is not installed."""
    if shutil.which("git") is None:
        return 0
    command = ["git", "rev-list", "--walk-reflogs", "--count", QUEUE, "--"]
    finished = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    return int(finished.stdout) if finished.returncode == 0 and finished.stdout.strip().isdigit() else 0


def _state(project: ProjectPaths, key: str, attempt: PipelineAttempt) -> str | None:
    if _is_held(project.attempts / f"{key}.lock"):
        return RUNNING
    folder = project.spools / f"{key}.{attempt.number}"
    if not (folder / "journal.jsonl").exists() or "evaluate" in attempt.finished:
        return None
    return {"FINISHED": None, "FAILED": FAILED}.get(end_status(folder) or "", INTERRUPTED)


def _is_held(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with exclusive_lock(lock, 0):
            return False
    except (Timeout, OSError):
        return True


def _stage(folder: Path, attempt: PipelineAttempt) -> str:
    if "train" in attempt.finished:
        return "evaluate"
    return "train" if (folder / "journal.jsonl").exists() else "prepare"


def _checkpoint(folder: Path) -> int | None:
    """Return the step of the newest checkpoint."""
    found = []
    for path in folder.glob("step-*"):
        with contextlib.suppress(OSError, ValueError):
            found.append(read_commit(path).step)
    return max(found, default=None)


def _describe(folder: Path, state: str, stage: str = "train", run_id: str | None = None) -> RunActivity:
    journal = folder / "journal.jsonl"
    if not journal.exists():
        return RunActivity(folder.name, state, stage, run_id)
    params, (epoch, step, scores) = _params(journal), _latest(journal)
    try:
        sent = read_record(Sent, folder / "sent.json")
    except (OSError, ValueError):
        sent = Sent()
    return RunActivity(
        folder.name,
        state,
        stage,
        sent.run_id or run_id,
        _title(params),
        params.get("train.epochs"),
        epoch,
        step,
        None,
        scores,
        time.time() - journal.stat().st_mtime,
        max(0, journal.stat().st_size - sent.offset),
    )


def _params(journal: Path) -> dict[str, str]:
    with journal.open("rb") as file:
        for line in itertools.islice(file, FIRST_LINES):
            entry = read_entry(line)
            if entry is not None and entry["entry"] == "params":
                return {name: str(value) for name, value in entry["values"].items()}
    return {}


def _title(params: Mapping[str, str]) -> str:
    names = {"model.name": "", "train.effective_batch_size": "B ", "train.learning_rate": "lr ", "train.seed": "seed "}
    return ", ".join(f"{mark}{params[name]}" for name, mark in names.items() if name in params)


def _latest(journal: Path) -> tuple[int | None, int | None, dict[str, float]]:
    """Return the last epoch that ended, the last step, and the scores of that epoch, from the end of a journal."""
    last_step = None
    for line, _ in itertools.islice(last_lines(journal), LAST_LINES):
        entry = read_entry(line)
        if entry is None or entry["entry"] != "metrics":
            continue
        rows = {key: (value, step) for key, value, step, _ in entry["rows"]}
        if last_step is None and rows.keys() & {"step_loss", "val_loss"}:
            last_step = max(step for _, step in rows.values())
        if "val_loss" in rows and "epoch" in rows:
            scores = {key: value for key, (value, _) in rows.items() if key.startswith("val_")}
            return int(rows["epoch"][0]), last_step, scores
    return None, last_step, {}
