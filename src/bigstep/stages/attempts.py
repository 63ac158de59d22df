"""Which MLflow run an execution of the pipeline writes to.

An attempt is one execution with the same learning parameters. While it is unfinished, its stages share one run, also when
it is killed and started again; once a stage has finished in it, starting that stage again begins a new attempt.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from bigstep.files import read_record, write_json

__all__ = ["Attempt", "attempt_key", "begin_stage", "finish_stage", "read_attempt"]


@dataclass(frozen=True)
class Attempt:
    """An execution of the pipeline: its number, its run (None before there is one) and the stages it has finished."""

    number: int
    run_id: str | None = None
    finished: tuple[str, ...] = ()


def attempt_key(learning: Mapping[str, Any], experiment: str) -> str:
    """Hash the learning parameters and the name of the DVC experiment, if any: 16 hexadecimal digits."""
    return sha256(repr((sorted(learning.items()), experiment)).encode()).hexdigest()[:16]


def read_attempt(folder: Path, key: str) -> Attempt | None:
    """Give the latest attempt, or None; a file that does not read counts as none."""
    try:
        return read_record(Attempt, folder / f"{key}.json")
    except (OSError, ValueError):
        return None


def begin_stage(folder: Path, key: str, stage: str, run_id: str | None) -> Attempt:
    """Continue the unfinished attempt, or begin one; ``run_id``, where given, is its run from here on."""
    latest = read_attempt(folder, key)
    if latest is None or stage in latest.finished:
        latest = Attempt(1 if latest is None else latest.number + 1)
    return _write(folder, key, latest if run_id is None else replace(latest, run_id=run_id))


def finish_stage(folder: Path, key: str, stage: str) -> None:
    """Note that a stage is done."""
    latest = read_attempt(folder, key) or Attempt(1)
    _write(folder, key, replace(latest, finished=(*latest.finished, stage)))


def _write(folder: Path, key: str, attempt: Attempt) -> Attempt:
    write_json(asdict(attempt), folder / f"{key}.json")
    return attempt
