"""`bigstep doctor`: find what a crash, a full disk or another program left broken; ``--fix`` repairs it.

Nothing is lost by a repair: what cannot be read is moved to ``.bigstep/set-aside``.
"""

import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version

from bigstep.console import console, format_bytes
from bigstep.diagnostics.finding import Problem, Quarantine
from bigstep.diagnostics.mlflow_history import find_database, find_runs
from bigstep.diagnostics.state_files import (
    find_checkpoints,
    find_dvc_lock,
    find_dvc_locks,
    find_half_written,
    find_state_files,
)
from bigstep.diagnostics.studies import find_studies
from bigstep.errors import ExitCode
from bigstep.machine_output import Report, no_report
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.environment import SITE_CACHE, is_set
from bigstep.tracking.database import tracking_uri

__all__ = ["doctor", "examine", "keep_site_cache_private"]

LEAST_FREE = 2**30  # bytes
FLOORS = {  # below: holes that are known, see SECURITY.md
    "torch": "2.10",
    "mlflow": "3.14",
    "pillow": "11.3",
    "dvc": "3.60",
    "optuna": "5.0",
}


def doctor(root: Path, *, fix: bool, report: Report = no_report) -> int:
    """Print every problem, and with ``fix`` what was done about it.

    Returns:
        0, or 4 if a problem remains.
    """
    repaired, left, listed = 0, 0, []
    for finding in examine(root):
        done = finding.repair() if fix and finding.repair is not None else None
        listed.append({"problem": finding.text, "repairable": finding.repair is not None, "repair": done})
        if done is not None:
            console.print(f"{finding.text}: {done}")
            repaired += 1
        else:
            left += 1
            console.print(f"{finding.text}{'' if finding.repair is None else ' (--fix repairs this)'}")
    for finding in examine(root) if repaired else ():  # a repair may have failed
        if finding.repair is not None:
            left += 1
            console.print(f"not repaired: {finding.text}")
    report(listed)
    if not left:
        console.print("no problems found" if not repaired else "all problems fixed")
    return ExitCode.DAMAGED if left else ExitCode.OK


def examine(root: Path) -> Iterator[Problem]:
    """Yield what is wrong, each check after the repair of the one before."""
    project = ProjectPaths(root)
    aside = Quarantine(project.state / "set-aside")
    yield from find_dvc_locks(root, aside)
    yield from find_dvc_lock(root, aside)
    yield from find_half_written(root)
    yield from find_state_files(project, aside)
    yield from find_database(tracking_uri(root), aside)
    yield from find_runs(project)
    yield from find_studies(project, aside)
    yield from find_checkpoints(project)
    yield from _permissions(project)
    yield from _space(root)
    yield from _versions()


def _permissions(project: ProjectPaths) -> Iterator[Problem]:
    if project.state.exists() and project.state.stat().st_mode & 0o022:
        yield Problem(f"{project.state} can be written by other users, and DVC unpickles files in it", lambda: _close(project))
    local = project.root / ".dvc" / "config.local"
    configured = local.exists() and "site_cache_dir" in local.read_text(encoding="utf-8")
    if (project.root / ".dvc").exists() and not configured and not is_set(SITE_CACHE):
        yield Problem(
            "a plain `dvc` unpickles files in /var/tmp/dvc, where other users can write (CVE-2025-69872)",
            lambda: keep_site_cache_private(project),
        )


def _close(project: ProjectPaths) -> str:
    project.state.chmod(0o700)
    return "made private"


def keep_site_cache_private(project: ProjectPaths) -> str:
    """Have every `dvc` in this project keep its notes below the state folder."""
    project.site_cache.mkdir(parents=True, exist_ok=True)
    project.state.chmod(0o700)
    local = project.root / ".dvc" / "config.local"
    text = local.read_text(encoding="utf-8") if local.exists() else ""
    if "site_cache_dir" in text:
        return f"core.site_cache_dir is already set in {local}"
    local.write_text(f"{text}[core]\n    site_cache_dir = {project.site_cache}\n", encoding="utf-8")
    return f"set core.site_cache_dir in {local}"


def _space(root: Path) -> Iterator[Problem]:
    free = shutil.disk_usage(root).free
    if free < LEAST_FREE:
        yield Problem(f"{format_bytes(free)} free on the disk of {root}, less than {format_bytes(LEAST_FREE)}", None)


def _versions() -> Iterator[Problem]:
    for package, floor in FLOORS.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            yield Problem(f"{package} is not installed; run `make install`", None)
            continue
        if Version(found) < Version(floor):
            yield Problem(f"{package} {found} has known vulnerabilities; install {floor} or later", None)
