"""A private copy of the project for a run with overrides: the user's params.yaml, dvc.lock and results stay as they are.

It holds copies of the code and of dvc.yaml, its own params.yaml, and links to the data; it shares DVC's cache, so that what
is up to date is taken from there. The same overrides come back to the same folder, which is how a killed run is resumed.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigstep.atomic_files import whole_file
from bigstep.config.yaml_files import write_yaml
from bigstep.errors import ProjectError
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.file_locks import Timeout, exclusive_lock

__all__ = ["private_workspace", "workspace_name"]

CODE = ("src", "pipelines", "custom")
LINKS = ("weights",)
DVC_CONFIG = """[core]
    no_scm = true
    analytics = false
    autostage = false
[cache]
    dir = {cache}
    type = "reflink,hardlink,copy"
"""


def workspace_name(content: Mapping[str, Any]) -> str:
    """Hash the parameters: 12 hexadecimal digits."""
    plain = repr({section: dict(values) for section, values in content.items()})
    return hashlib.sha256(plain.encode()).hexdigest()[:12]


@contextmanager
def private_workspace(project: ProjectPaths, content: Mapping[str, Any], cache: Path) -> Iterator[Path]:
    """Yield the folder for these parameters, filled; no other process can use it meanwhile.

    Raises:
        ProjectError: another process uses it.
    """
    folder = project.workspaces / workspace_name(content)
    folder.mkdir(parents=True, exist_ok=True)
    with _workspace_lock(folder.with_suffix(".lock")):
        _fill(folder, project.root, cache)
        _link_data(folder, project.root, str(content["data"]["root"]))
        _name_data(content, project.root)
        with whole_file(folder / "params.yaml") as beside:
            write_yaml(content, beside)
        yield folder


@contextmanager
def _workspace_lock(path: Path) -> Iterator[None]:
    try:
        lock = exclusive_lock(path, 0)
    except Timeout:
        raise ProjectError(
            "one process at a time can run with the same overrides, and another is running; wait for it, or change an override"
        ) from None
    with lock:
        yield


def _fill(folder: Path, root: Path, cache: Path) -> None:
    for name in CODE:
        shutil.rmtree(folder / name, ignore_errors=True)
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("dvc.yaml", ".dvcignore"):
        if (root / name).exists():
            shutil.copyfile(root / name, folder / name)
    if (root / "dvc.lock").exists() and not (folder / "dvc.lock").exists():
        shutil.copyfile(root / "dvc.lock", folder / "dvc.lock")
    for name in LINKS:
        _link(folder / name, root / name, folder)
    (folder / ".dvc").mkdir(exist_ok=True)
    (folder / ".dvc" / "config").write_text(DVC_CONFIG.format(cache=cache), encoding="utf-8")


def _name_data(content: Mapping[str, Any], root: Path) -> None:
    """Name data outside of the project by its absolute path: relative to the copy it would be another folder."""
    inside = os.path.normpath(str(content["data"]["root"]))
    if inside.startswith(".."):
        content["data"]["root"] = str((root / inside).resolve())


def _link_data(folder: Path, root: Path, data_root: str) -> None:
    inside = os.path.normpath(data_root)
    if not Path(inside).is_absolute():
        _link(folder / inside, root / inside, folder)


def _link(link: Path, target: Path, folder: Path) -> None:
    """Link, unless the link would lie outside of ``folder`` or in what is linked already."""
    if not Path(os.path.normpath(link)).parent.resolve().is_relative_to(folder.resolve()):
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    if target.exists() and not link.exists():
        link.symlink_to(target)
