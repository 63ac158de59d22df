"""Run stages through DVC: in the project, or with overrides in a private copy of it."""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bigstep.config.data import FILES
from bigstep.config.params import Params, read_params
from bigstep.config.yaml_files import Override, apply_overrides
from bigstep.console import console
from bigstep.errors import ProjectError
from bigstep.project.dvc_record import check_record, read_record_before
from bigstep.project.dvcignore import ignore_unhashable
from bigstep.project.parameters import check_followed_by_dvc, check_params
from bigstep.project.paths import ProjectPaths, StagePaths, check_project_name
from bigstep.project.workspace import private_workspace
from bigstep.runtime.child_process import run_child
from bigstep.runtime.environment import (
    EXIT_FILE,
    INPUTS,
    RESUME_ANYWAY,
    ROOT,
    SITE_CACHE,
    child_environment,
    read_variable,
    search_path,
)
from bigstep.runtime.file_locks import Timeout, exclusive_lock

__all__ = ["Request", "cache_folder", "find_project_root", "run_pipeline", "wait_for_lock"]


DYING_SECONDS = 1.0  # from a kill until the process is seen to be dead
LOCK_SECONDS = 30.0  # dvc itself waits for 3


@dataclass(frozen=True)
class Request:
    """What to run: up to ``stage`` (None: all), with overrides in groups, later ones last.

    ``force`` runs all stages again; ``ignore_code_change`` resumes a training that other code has started.
    """

    stage: str | None = None
    overrides: tuple[tuple[Override, ...], ...] = ()
    force: bool = False
    ignore_code_change: bool = False


def find_project_root(start: Path) -> Path:
    """Return the nearest folder, from ``start`` upwards, that holds params.yaml and dvc.yaml.

    Raises:
        ProjectError: there is no such folder, or it contains other code than this.
    """
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            check_project_name(folder)
            _check_code(folder)
            return folder
    raise ProjectError(
        f"{start}: not inside a bigstep project (no params.yaml and dvc.yaml found); change to the project's folder"
    )


def _check_code(root: Path) -> None:
    own = Path(__file__).resolve().parents[2]
    beside = root / "src"
    if (beside / "bigstep").is_dir() and beside.resolve() != own:
        raise ProjectError(
            f"code: expected that in {beside}, got {own}; use the environment of this checkout, or `python pipelines/repro.py`"
        )


def run_pipeline(root: Path, request: Request) -> tuple[int, StagePaths, Params]:
    """Run ``request`` for the project in ``root``; all parameters are checked before anything is written.

    Returns:
        The exit code, where the results are, and the parameters.

    Raises:
        UserError: a parameter or the project is invalid.
    """
    project = ProjectPaths(root)
    content = read_params(root / "params.yaml")
    for group in request.overrides:
        content = apply_overrides(content, group)
    params = check_params(content)
    if not any(request.overrides):
        check_followed_by_dvc(params)
        _check_source(root, params)
        return _run_dvc(root, root, request), StagePaths(root), params
    _complete_batch(content, params)
    _check_source(root, params)
    with private_workspace(project, content, cache_folder(root)) as folder:
        console.print(f"running with overrides in {folder.relative_to(root)}; params.yaml, dvc.lock and results do not change")
        return _run_dvc(folder, root, request), StagePaths(folder), params


def _check_source(root: Path, params: Params) -> None:
    folder = ProjectPaths(root).resolve(params.data.root)
    if not folder.is_dir():
        raise ProjectError(f"data.root: {folder} is not a directory; create it, or fix data.root")
    if params.data.source in FILES:
        ignore_unhashable(root, params.data.root)


def _complete_batch(content: dict[str, Any], params: Params) -> None:
    """Write B and m if another two of the three were given, so that DVC sees the learning key; no section stays null."""
    content.update({section: {} for section, values in content.items() if values is None})
    content.setdefault("train", {})["effective_batch_size"] = params.batch.effective_batch_size
    if params.model.ghost_batch_size is None and params.hardware.micro_batch_size != "auto":
        content.setdefault("hardware", {})["micro_batch_size"] = params.batch.micro_batch_size
    content.setdefault("data", {}).setdefault("root", params.data.root)


def cache_folder(root: Path) -> Path:
    """Return the folder of DVC's cache.

    Raises:
        ProjectError: ``root`` is no DVC project.
    """
    output = _dvc(["cache", "dir"], root, capture_output=True, text=True)
    if output.returncode:
        raise ProjectError(
            f"{root}: expected a DVC project, got from dvc: {output.stderr.strip().splitlines()[-1]}; run `dvc init`"
        )
    return (root / output.stdout.strip()).resolve()


def wait_for_lock(folder: Path, patience: float = LOCK_SECONDS) -> None:
    """Wait until DVC's lock of the project in ``folder`` is free: right after a kill a dying process still holds it.

    Raises:
        ProjectError: another process keeps it, or this user may not write it.
    """
    path = folder / ".dvc" / "tmp" / "lock"
    if not path.exists():
        return
    try:
        with _waited(path, patience):
            return
    except Timeout:
        raise ProjectError(f"{path} is locked by another dvc; wait for it, or stop it") from None
    except OSError as error:
        raise _not_writable(path, error) from None


def _waited(path: Path, patience: float) -> AbstractContextManager[object]:
    try:
        return exclusive_lock(path, 0)
    except Timeout:
        console.print("another dvc is running in this project; waiting for its lock")
        return exclusive_lock(path, patience)


def _not_writable(path: Path, error: OSError) -> ProjectError:
    return ProjectError(
        f"{path}: expected a file that this user can write, got {error.strerror}; "
        "run as the project's owner, or change its owner with `chown`"
    )


def wait_for_dying(
    folder: Path,
    patience: float = LOCK_SECONDS,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until killed processes have ended: DVC takes a zombie that its rwlock names for a living process.

    A kill can also tear the rwlock, which DVC then refuses to read; a torn one is moved away.

    Raises:
        ProjectError: this user may not read DVC's rwlock.
    """
    path, started = folder / ".dvc" / "tmp" / "rwlock", clock()
    while path.exists() and (waited := clock() - started) < patience:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise _not_writable(path, error) from None
        numbers = re.findall(r'"pid": (\d+)', text)
        if not any(_may_be_dying(int(number), waited) for number in numbers):
            if _is_json(text):
                return
            if waited >= DYING_SECONDS:  # or another dvc is just writing it
                path.replace(path.with_suffix(".torn"))
                console.print(f"{path} was damaged by a kill; moved to {path.with_suffix('.torn').name}")
        sleep(0.2)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _may_be_dying(number: int, waited: float) -> bool:
    try:
        is_zombie = psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
    return is_zombie or waited < DYING_SECONDS


def _run_dvc(folder: Path, root: Path, request: Request) -> int:
    wait_for_lock(folder)
    wait_for_dying(folder)
    arguments = ["repro", *(["--force"] if request.force else []), *([request.stage] if request.stage else [])]
    with tempfile.TemporaryDirectory() as scratch:
        exit_file = Path(scratch, "exit")
        environment = {**_environment(root), EXIT_FILE: str(exit_file), INPUTS: scratch}
        if folder != root:
            environment[ROOT] = str(root)
        if request.ignore_code_change:
            environment[RESUME_ANYWAY] = "1"
        before = read_record_before(StagePaths(folder).lock)
        code = run_child([sys.executable, "-m", "dvc", *arguments], folder, environment)
        check_record(folder, Path(scratch), before, lambda: cache_folder(folder))
        return int(exit_file.read_text(encoding="utf-8")) if code and exit_file.exists() else code


def _dvc(arguments: Sequence[str], folder: Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, env=_environment(folder), check=False, **options)


def _environment(root: Path) -> dict[str, str]:
    """Return an environment in which DVC finds our programs, and unpickles only files that no one else can write."""
    cache = ProjectPaths(root).site_cache
    cache.mkdir(parents=True, exist_ok=True)
    cache.parent.chmod(0o700)
    path = search_path("PATH", str(Path(sys.executable).parent))
    return child_environment({SITE_CACHE: read_variable(SITE_CACHE, str(cache)), "PATH": path})
