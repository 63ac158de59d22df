"""`bigstep doctor`: what a crash, a full disk or another program left in the way; with ``--fix`` it is put right.

Nothing is lost by a repair: what does not read is moved to ``.bigstep/set-aside``.
"""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from bigstep.console import console, format_bytes
from bigstep.files import read_json
from bigstep.stages.attempts import read_attempt
from bigstep.stages.paths import ProjectPaths, StagePaths
from bigstep.stages.runs import deliver_others, end_dead_runs
from bigstep.tracking.database import tracking_uri
from bigstep.tracking.spool import unfinished_spools

__all__ = ["Finding", "doctor", "examine"]

LEFT = 4  # exit code where problems stay
LEAST_FREE = 2**30  # bytes
FLOORS = {  # below: holes that are known, see SECURITY.md
    "torch": "2.10",
    "mlflow": "3.14",
    "pillow": "11.3",
    "dvc": "3.60",
    "optuna": "5.0",
}
HALF = re.compile(r"^\.(.+)\.(\d+)\.tmp")
Repair = Callable[[], str]


@dataclass(frozen=True)
class Finding:
    """A problem, and how to repair it: a function that says what it did, or None where a person has to."""

    text: str
    repair: Repair | None


def doctor(root: Path, *, fix: bool) -> int:
    """Print every problem, and with ``fix`` what was done about it.

    Returns:
        0, or 4 where a problem stays.
    """
    left = 0
    for finding in examine(root):
        if fix and finding.repair is not None:
            console.print(f"{finding.text}: {finding.repair()}")
        else:
            left += 1
            console.print(f"{finding.text}{'' if finding.repair is None else ' (--fix repairs this)'}")
    if not left:
        console.print("nothing is in the way" if not fix else "nothing is in the way any more")
    return LEFT if left else 0


def examine(root: Path) -> Iterator[Finding]:
    """Give what is wrong, each check after the repair of the one before."""
    project = ProjectPaths(root)
    aside = _Aside(project.state / "set-aside")
    yield from _dvc_locks(root, aside)
    yield from _dvc_lock(root, aside)
    yield from _half_written(root)
    yield from _state_files(project, aside)
    yield from _database(tracking_uri(root), aside)
    yield from _runs(project)
    yield from _checkpoints(project)
    yield from _permissions(project)
    yield from _space(root)
    yield from _versions()


@dataclass(frozen=True)
class _Aside:
    folder: Path

    def move(self, path: Path) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{path.name}"
        shutil.move(path, target)
        return f"moved to {target}"


def _dvc_locks(root: Path, aside: _Aside) -> Iterator[Finding]:
    path = root / ".dvc" / "tmp" / "rwlock"
    if not path.exists():
        return
    try:
        content = read_json(path)
        entries = [*content.get("write", {}).values(), *(i for items in content.get("read", {}).values() for i in items)]
        pids = {int(entry["pid"]) for entry in entries}
    except (ValueError, TypeError, KeyError, AttributeError):
        yield Finding(f"{path} is torn, and stops every `dvc repro`", lambda: aside.move(path))
        return
    stale = sorted(pid for pid in pids if not _is_dvc(pid))
    if stale:
        yield Finding(f"{path} names processes that are gone: {', '.join(map(str, stale))}", lambda: aside.move(path))


def _is_dvc(pid: int) -> bool:
    try:
        return b"dvc" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _dvc_lock(root: Path, aside: _Aside) -> Iterator[Finding]:
    path = StagePaths(root).lock
    if not path.exists():
        return
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        whole = isinstance(content, dict) and isinstance(content.get("stages"), dict) and "schema" in content
    except (YAMLError, UnicodeDecodeError):
        whole = False
    if not whole:
        yield Finding(f"{path} is torn", lambda: _restore_lock(root, path, aside))


def _restore_lock(root: Path, path: Path, aside: _Aside) -> str:
    done = aside.move(path)
    kept = subprocess.run(["git", "show", f"HEAD:./{path.name}"], cwd=root, capture_output=True, check=False)
    if kept.returncode == 0:
        path.write_bytes(kept.stdout)
        return f"{done}; the committed one was put back, and `dvc repro` brings it up to date"
    return f"{done}; `dvc repro` writes it anew, from its run cache"


def _half_written(root: Path) -> Iterator[Finding]:
    for folder in (root / "results", root / "data", root / ".bigstep", root / "docs"):
        for path in sorted(folder.rglob(".*.tmp*")):
            match = HALF.match(path.name)
            if match is not None and path.exists() and not Path(f"/proc/{match[2]}").exists():
                yield Finding(f"{path} was left half-written by process {match[2]}", lambda path=path: _remove(path))  # type: ignore[misc] # bound now


def _remove(path: Path) -> str:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return "removed"


def _state_files(project: ProjectPaths, aside: _Aside) -> Iterator[Finding]:
    for path in sorted(project.attempts.glob("*.json")):
        if ".memory" not in path.name and read_attempt(project.attempts, path.stem) is None:
            yield Finding(f"{path} does not read", lambda path=path: aside.move(path))  # type: ignore[misc] # bound now
    for path in sorted(project.plans.rglob("*.json")):
        try:
            read_json(path)
        except ValueError:
            yield Finding(f"{path} does not read", lambda path=path: aside.move(path))  # type: ignore[misc] # bound now
    for path in sorted(project.spools.glob("*/journal.jsonl")):
        if not _ends_whole(path):
            yield Finding(f"{path} ends in half a line", lambda path=path: _cut(path))  # type: ignore[misc] # bound now


def _ends_whole(path: Path) -> bool:
    content = path.read_bytes()
    try:
        return not content or (content.endswith(b"\n") and bool(json.loads(content.splitlines()[-1])))
    except ValueError:
        return False


def _cut(path: Path) -> str:
    from bigstep.tracking.spool import Spool

    Spool(path.parent).close()  # opening cuts it
    return "cut after the last whole line"


def _database(uri: str, aside: _Aside) -> Iterator[Finding]:
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not path.exists():
        return
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
        try:
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        yield Finding(f"{path} does not answer: {error}; end the program that holds it", None)
        return
    except sqlite3.DatabaseError as error:
        answer = str(error)
    if answer != "ok":
        yield Finding(f"{path} is damaged: {answer}", lambda: f"{aside.move(path)}; a new one is made at the next start")


def _runs(project: ProjectPaths) -> Iterator[Finding]:
    waiting = unfinished_spools(project.spools)
    if waiting:
        names = ", ".join(path.name for path in waiting)
        yield Finding(f"histories that MLflow was not told to the end: {names}", lambda: _deliver(project.spools))
    dead = end_dead_runs(project.root, end=False)
    if dead:
        yield Finding(
            f"runs of dead processes stand as RUNNING: {', '.join(dead)}",
            lambda: f"ended as KILLED: {len(end_dead_runs(project.root, end=True))}",
        )


def _deliver(folder: Path) -> str:
    done = deliver_others(folder)
    left = len(unfinished_spools(folder))
    return f"told {len(done)}" + (f"; {left} wait for a process that works on them, or for MLflow" if left else "")


def _checkpoints(project: ProjectPaths) -> Iterator[Finding]:
    for folder in sorted(project.checkpoints.glob("*")):
        key, _, number = folder.name.rpartition(".")
        attempt = read_attempt(project.attempts, key)
        if attempt is not None and number.isdigit() and (attempt.number != int(number) or "train" in attempt.finished):
            size = format_bytes(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
            yield Finding(f"{folder} ({size}) belongs to a training that nothing goes on with", lambda f=folder: _remove(f))  # type: ignore[misc] # bound now


def _permissions(project: ProjectPaths) -> Iterator[Finding]:
    if project.state.exists() and project.state.stat().st_mode & 0o022:
        yield Finding(f"{project.state} may be written by others, who could plant what DVC unpickles", lambda: _close(project))
    local = project.root / ".dvc" / "config.local"
    configured = local.exists() and "site_cache_dir" in local.read_text(encoding="utf-8")
    if (project.root / ".dvc").exists() and not configured and "DVC_SITE_CACHE_DIR" not in os.environ:
        yield Finding(
            "a plain `dvc` keeps notes that it unpickles in /var/tmp/dvc, where others may write (CVE-2025-69872)",
            lambda: keep_site_cache_private(project),
        )


def _close(project: ProjectPaths) -> str:
    project.state.chmod(0o700)
    return "closed to others"


def keep_site_cache_private(project: ProjectPaths) -> str:
    """Have every `dvc` in this project keep its notes below the state folder."""
    project.site_cache.mkdir(parents=True, exist_ok=True)
    project.state.chmod(0o700)
    local = project.root / ".dvc" / "config.local"
    text = local.read_text(encoding="utf-8") if local.exists() else ""
    if "site_cache_dir" in text:
        return f"core.site_cache_dir stands in {local} already"
    local.write_text(f"{text}[core]\n    site_cache_dir = {project.site_cache}\n", encoding="utf-8")
    return f"set core.site_cache_dir in {local}"


def _space(root: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(root).free
    if free < LEAST_FREE:
        yield Finding(f"{format_bytes(free)} are free on the disk of {root}, less than {format_bytes(LEAST_FREE)}", None)


def _versions() -> Iterator[Finding]:
    for package, floor in FLOORS.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            yield Finding(f"{package} is not installed; run `make install`", None)
            continue
        if _numbers(found) < _numbers(floor):
            yield Finding(f"{package} {found} has known holes; install {floor} or later", None)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])
