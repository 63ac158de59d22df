"""Which execution of the pipeline a stage belongs to, and with it the MLflow run and the checkpoints.

An attempt is one execution with the same learning parameters. While it is unfinished, its stages share one run, also when
it is killed and started again; once a stage has finished in it and DVC knows, starting that stage again starts a new attempt.
So does a change of the data or of code that decides learning: a run must not be resumed with either changed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from bigstep.atomic_files import read_record, write_json
from bigstep.config.former_keys import former_values
from bigstep.errors import ProjectError
from bigstep.runtime.file_locks import Timeout, exclusive_lock

__all__ = [
    "PipelineAttempt",
    "attempt_key",
    "begin_stage",
    "find_key",
    "finish_stage",
    "note_run",
    "read_attempt",
    "writer_lock",
]


@dataclass(frozen=True)
class PipelineAttempt:
    """An execution of the pipeline: its number, its run and what it trains with (None before), the stages it has finished."""

    number: int
    run_id: str | None = None
    finished: tuple[str, ...] = ()
    fingerprint: str | None = None


def attempt_key(learning: Mapping[str, Any], experiment: str) -> str:
    """Hash the learning parameters and the name of the DVC experiment, if any: 16 hexadecimal digits."""
    return sha256(repr((sorted(learning.items()), experiment)).encode()).hexdigest()[:16]


def find_key(folder: Path, learning: Mapping[str, Any], experiment: str) -> str:
    """Return the key of the attempts with these parameters; an attempt that is there by their former names keeps its key."""
    former = attempt_key(former_values(learning), experiment)
    return former if (folder / f"{former}.json").exists() else attempt_key(learning, experiment)


def read_attempt(folder: Path, key: str) -> PipelineAttempt | None:
    """Return the latest attempt, or None; a file that cannot be read counts as no attempt."""
    try:
        return read_record(PipelineAttempt, folder / f"{key}.json")
    except (OSError, ValueError):
        return None


def begin_stage(
    folder: Path, key: str, stage: str, fingerprint: str | None = None, *, is_recorded: bool = True
) -> PipelineAttempt:
    """Continue the unfinished attempt, or start one.

    Args:
        folder: of the attempts.
        key: of the parameters.
        stage: that starts.
        fingerprint: of what the attempt trains with, where it is known.
        is_recorded: False if ``stage`` had finished but `dvc` was killed before it recorded that, so that no one asked for
            it to run again.
    """
    latest = read_attempt(folder, key)
    if latest is not None and stage in latest.finished and not is_recorded:
        latest = replace(latest, finished=tuple(name for name in latest.finished if name != stage))
    if latest is None or stage in latest.finished or _differs(latest.fingerprint, fingerprint):
        latest = PipelineAttempt(1 if latest is None else latest.number + 1)
    return _write(folder, key, latest if fingerprint is None else replace(latest, fingerprint=fingerprint))


def finish_stage(folder: Path, key: str, stage: str) -> None:
    """Record that a stage is done."""
    latest = read_attempt(folder, key) or PipelineAttempt(1)
    _write(folder, key, replace(latest, finished=(*latest.finished, stage)))


def note_run(folder: Path, key: str, run_id: str | None) -> None:
    """Record the MLflow run of the latest attempt."""
    latest = read_attempt(folder, key) or PipelineAttempt(1)
    _write(folder, key, replace(latest, run_id=run_id))


@contextmanager
def writer_lock(path: Path, patience: float = 30.0) -> Iterator[None]:
    """Hold the lock ``path``; waits ``patience`` seconds for a process that is about to end.

    Raises:
        ProjectError: another process keeps it.
    """
    try:
        lock = exclusive_lock(path, patience)
    except Timeout:
        raise ProjectError(
            "one process at a time can run a stage with the same parameters, and another is running; "
            f"wait for it, or stop it ({path.name} is its lock)"
        ) from None
    with lock:
        yield


def _differs(known: str | None, new: str | None) -> bool:
    return known is not None and new is not None and known != new


def _write(folder: Path, key: str, attempt: PipelineAttempt) -> PipelineAttempt:
    write_json(asdict(attempt), folder / f"{key}.json")
    return attempt
