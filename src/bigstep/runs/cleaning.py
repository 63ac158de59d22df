"""What nothing in the state folder needs any more: no run that is resumed, no study, no MLflow server that was down.

What a running process uses is locked, and left alone. Files of unknown origin are never looked at.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bigstep.atomic_files import read_json
from bigstep.config.params import parse_params, read_params
from bigstep.errors import UserError
from bigstep.project.attempts import PipelineAttempt, find_key, read_attempt
from bigstep.project.parameters import learning_values
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.file_locks import Timeout, exclusive_lock
from bigstep.tracking.spool import delivered_spools, end_status, is_complete

__all__ = ["Unneeded", "find_unneeded", "trim"]

DAYS = 30  # without use, after which copies, measurements and records of finished runs are unneeded
RECENT_SECONDS = 3600.0  # the worker of a trial may still be reporting it
KEPT_SPOOLS = 20  # that are delivered: a run that is sent again needs them
KEPT_WORKSPACES = 50  # by default; `bigstep clean` keeps those of the last DAYS


@dataclass(frozen=True)
class Unneeded:
    """A file or folder that nothing needs, and why."""

    path: Path
    why: str
    lock: Path | None = None
    """Of it alone, which is deleted with it."""

    @property
    def num_bytes(self) -> int:
        """Its size on disk; names of DVC's cache that it shares count too."""
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())

    def remove(self) -> None:
        """Delete it.

        Raises:
            OSError: it cannot be deleted.
        """
        shutil.rmtree(self.path) if self.path.is_dir() else self.path.unlink()
        if self.lock is not None:
            self.lock.unlink(missing_ok=True)


def trim(project: ProjectPaths) -> None:
    """Remove what is surely not needed, and keep the newest of what may be looked at; a failure changes nothing."""
    with contextlib.suppress(OSError):
        for item in find_unneeded(project, kept_spools=KEPT_SPOOLS, kept_workspaces=KEPT_WORKSPACES):
            item.remove()


def find_unneeded(
    project: ProjectPaths, days: float = DAYS, *, kept_spools: int = 0, kept_workspaces: int = 0
) -> Iterator[Unneeded]:
    """Yield what nothing needs; its lock is held until the next is asked for.

    Args:
        project: its paths.
        days: without use, after which what can be made again counts as unneeded.
        kept_spools: newest delivered histories of the pipeline that stay.
        kept_workspaces: newest private copies that stay.
    """
    before = time.time() - days * 86400
    yield from _checkpoints(project)
    yield from _spools(project, kept_spools)
    yield from _trials(project)
    yield from _workspaces(project, before, kept_workspaces)
    yield from _plans(project, before)
    yield from _compiled(project, before)
    yield from _attempts(project, before)


def _checkpoints(project: ProjectPaths) -> Iterator[Unneeded]:
    for folder in sorted(project.checkpoints.glob("*")):
        key, number = _parted(folder.name.removesuffix(".starts.json"))
        with _alone(project.attempts / f"{key}.lock") as alone:
            attempt = read_attempt(project.attempts, key)
            if alone and attempt is not None and (attempt.number > number or "train" in attempt.finished):
                yield Unneeded(folder, "checkpoints of a training that will not be resumed")


def _spools(project: ProjectPaths, kept: int) -> Iterator[Unneeded]:
    found = delivered_spools(project.spools)
    for folder in found[: max(0, len(found) - kept)]:
        key, number = _parted(folder.name)
        lock = folder.with_name(f"{folder.name}.lock")
        with _alone(project.attempts / f"{key}.lock") as free, _alone(lock) as alone:
            attempt = read_attempt(project.attempts, key)
            ended = attempt is not None and (attempt.number > number or "evaluate" in attempt.finished)
            if free and alone and ended and is_complete(folder):
                yield Unneeded(folder, "a history that MLflow has", lock)


def _trials(project: ProjectPaths) -> Iterator[Unneeded]:
    """A trial that was trained to its end has no checkpoints; one that was killed is resumed, in the same run."""
    for spools in sorted(project.search.glob("*/spools")):
        for folder in delivered_spools(spools):
            trial, lock = spools.parent / "trials" / folder.name, folder.with_name(f"{folder.name}.lock")
            if not folder.name.startswith(("trial-", "again-")) or _age(folder / "journal.jsonl") < RECENT_SECONDS:
                continue
            with _alone(lock) as alone:
                if alone and end_status(folder) == "FINISHED" and not (trial / "checkpoints").exists():
                    yield Unneeded(folder, "the history of a trial, which MLflow has", lock)
                    if trial.exists():
                        yield Unneeded(trial, "the state of a trial that has ended")


def _workspaces(project: ProjectPaths, before: float, kept: int) -> Iterator[Unneeded]:
    folders = [path.parent for path in project.workspaces.glob("*/params.yaml")]
    folders.sort(key=lambda folder: (folder / "params.yaml").stat().st_mtime)
    for folder in folders[: max(0, len(folders) - kept)]:
        with _alone(folder.with_suffix(".lock")) as alone:
            if alone and (folder / "params.yaml").stat().st_mtime < before and not _is_resumable(project, folder):
                yield Unneeded(folder, "a private copy; its results are in MLflow and DVC's cache", folder.with_suffix(".lock"))


def _is_resumable(project: ProjectPaths, folder: Path) -> bool:
    """Return whether a killed run would be resumed in this private copy; True where that is not known."""
    try:
        params = parse_params(read_params(folder / "params.yaml"), "params.yaml")
    except (UserError, OSError):
        return True
    key = find_key(project.attempts, learning_values(params), "")
    attempt = read_attempt(project.attempts, key)
    return attempt is not None and "evaluate" not in attempt.finished


def _plans(project: ProjectPaths, before: float) -> Iterator[Unneeded]:
    for folder in sorted(path for path in project.plans.glob("*") if path.is_dir()):
        used = max((path.stat().st_mtime for path in folder.iterdir()), default=0.0)
        try:
            machine = read_json(folder / "measured.json")["machine"]
            stale = (machine["torch"], machine["cores"]) != (version("torch"), os.cpu_count())
        except OSError:  # predictions, which take seconds, unless `auto` has measured something
            stale = not any(folder.glob("auto-*.json"))
        except (ValueError, KeyError, TypeError):
            continue  # damaged: `bigstep doctor` moves it away
        if stale and used < before:
            yield Unneeded(folder, "measurements of another torch or machine, or old predictions")


def _compiled(project: ProjectPaths, before: float) -> Iterator[Unneeded]:
    folder = project.compiled
    written = max((path.stat().st_mtime for path in (folder, *folder.glob("*"))), default=before) if folder.exists() else before
    if written < before:
        yield Unneeded(folder, "code that hardware.compile compiles again")


def _attempts(project: ProjectPaths, before: float) -> Iterator[Unneeded]:
    """The number of an attempt names its history and checkpoints: its record stays as long as they do."""
    for path in sorted(project.attempts.glob("*.json")):
        key, attempt = path.stem, read_attempt(project.attempts, path.stem)
        if attempt is None or not _has_ended(attempt) or path.stat().st_mtime >= before:
            continue
        with _alone(project.attempts / f"{key}.lock") as alone:
            if alone and not [*project.spools.glob(f"{key}.*"), *project.checkpoints.glob(f"{key}.*")]:
                for item in sorted(project.attempts.glob(f"{key}.*")):
                    yield Unneeded(item, "the record of a run that has ended")


def _has_ended(attempt: PipelineAttempt) -> bool:
    return {"train", "evaluate"} <= set(attempt.finished)


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _parted(name: str) -> tuple[str, int]:
    key, _, number = name.rpartition(".")
    return key, int(number) if number.isdigit() else 2**62  # of no attempt: newer than all


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Hold a lock; returns False if another process holds it."""
    try:
        lock: AbstractContextManager[object] = exclusive_lock(path, 0)
    except Timeout:
        yield False
        return
    with lock:
        yield True
