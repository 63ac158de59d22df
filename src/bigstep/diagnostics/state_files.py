"""Files that a crash or another program left behind: DVC's, half-written ones, those of the state folder."""

import contextlib
import re
import subprocess
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import psutil

from bigstep.atomic_files import parse_json, read_json
from bigstep.config.lock_files import load_lock
from bigstep.console import format_bytes
from bigstep.diagnostics.dvc_internals import matches_lock_schema
from bigstep.diagnostics.finding import Problem, Quarantine, remove
from bigstep.project.attempts import read_attempt
from bigstep.project.paths import ProjectPaths, StagePaths

__all__ = ["find_checkpoints", "find_dvc_lock", "find_dvc_locks", "find_half_written", "find_state_files", "is_lock"]

HALF = re.compile(r"^\.(.+)\.(\d+)\.tmp")


def find_dvc_locks(root: Path, aside: Quarantine) -> Iterator[Problem]:
    """Find locks of DVC that are torn, or whose holders have ended."""
    path = root / ".dvc" / "tmp" / "rwlock"
    if not path.exists():
        return
    try:
        content = read_json(path)
        entries = [*content.get("write", {}).values(), *(i for items in content.get("read", {}).values() for i in items)]
        pids = {int(entry["pid"]) for entry in entries}
    except (ValueError, TypeError, KeyError, AttributeError):
        yield Problem(f"{path} is damaged, and stops every `dvc repro`", lambda: aside.move(path))
        return
    stale = sorted(pid for pid in pids if not _is_dvc(pid))
    if stale:
        yield Problem(f"{path} names processes that no longer exist: {', '.join(map(str, stale))}", lambda: aside.move(path))


def _is_dvc(pid: int) -> bool:
    try:
        return "dvc" in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def find_dvc_lock(root: Path, aside: Quarantine) -> Iterator[Problem]:
    """Check that dvc.lock can be read."""
    path = StagePaths(root).lock
    if not path.exists():
        return
    if not is_lock(path):
        yield Problem(f"{path} is damaged", lambda: _restore_lock(root, path, aside))


def is_lock(path: Path) -> bool:
    """Return whether DVC can read dvc.lock: a truncated file may be valid YAML, but not a valid lock."""
    try:
        return matches_lock_schema(load_lock(path.read_text(encoding="utf-8")))
    except ValueError:
        return False


def _restore_lock(root: Path, path: Path, aside: Quarantine) -> str:
    done = aside.move(path)
    with contextlib.suppress(OSError):  # git may not be installed
        kept = subprocess.run(["git", "show", f"HEAD:./{path.name}"], cwd=root, capture_output=True, check=False)
        if kept.returncode == 0:
            path.write_bytes(kept.stdout)
            return f"{done}; restored the committed one; `dvc repro` brings it up to date"
    return f"{done}; `dvc repro` writes it again, from its run cache"


def find_half_written(root: Path) -> Iterator[Problem]:
    """Find files that a process left unfinished."""
    for folder in (root / "results", root / "data", root / ".bigstep", root / "docs"):
        for path in sorted(folder.rglob(".*.tmp*")):
            match = HALF.match(path.name)
            if match is not None and path.exists() and not psutil.pid_exists(int(match[2])):
                yield Problem(f"{path} was left incomplete by process {match[2]}", partial(remove, path))


def find_state_files(project: ProjectPaths, aside: Quarantine) -> Iterator[Problem]:
    """Find attempts, plans and spools that cannot be read."""
    for path in sorted(project.attempts.glob("*.json")):
        if ".memory" not in path.name and read_attempt(project.attempts, path.stem) is None:
            yield Problem(f"{path} cannot be read", partial(aside.move, path))
    for path in sorted(project.plans.rglob("*.json")):
        try:
            read_json(path)
        except ValueError:
            yield Problem(f"{path} cannot be read", partial(aside.move, path))
    for path in sorted(project.spools.glob("*/journal.jsonl")):
        if not _ends_whole(path):
            yield Problem(f"{path} ends in an incomplete line", partial(_cut, path))


def _ends_whole(path: Path) -> bool:
    from bigstep.tracking.journal_lines import last_lines

    try:
        return all(line.endswith(b"\n") and bool(parse_json(line)) for line, _ in islice(last_lines(path), 1))
    except ValueError:
        return False


def _cut(path: Path) -> str:
    from bigstep.tracking.spool import Spool, spool_lock

    with spool_lock(path.parent) as alone:
        if not alone:
            return "left alone: a process is writing to it"
        Spool(path.parent).close()  # opening cuts it
    return "cut after the last complete line"


def find_checkpoints(project: ProjectPaths) -> Iterator[Problem]:
    """Find checkpoints that no run will be resumed from."""
    for folder in sorted(project.checkpoints.glob("*")):
        key, _, number = folder.name.rpartition(".")
        attempt = read_attempt(project.attempts, key)
        if attempt is not None and number.isdigit() and (attempt.number != int(number) or "train" in attempt.finished):
            size = format_bytes(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
            yield Problem(f"{folder} ({size}) belongs to a training run that will not be resumed", partial(remove, folder))
