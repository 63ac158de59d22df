"""Digests of a registered model's files, kept as tags of its version, and a private copy that is checked against them.

MLflow and torch.export run code that a model's files name (``loader_module``, ``code``, ``expr_str`` in the pt2), so the
files are checked before either reads them, and loaded from the copy that was checked.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from bigstep.atomic_files import sha256
from bigstep.errors import ModelError
from bigstep.tracking.model_code import WAY_OUT, check_code

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["COUNT_TAG", "SEAL_TAG", "checked_copy", "local_folder", "seal", "seal_source"]

SEAL_TAG, COUNT_TAG = "bigstep.files_sha256", "bigstep.files_count"
ADDED = "registered_model_meta"  # by MLflow, when it loads a version from a folder of this machine: name and number


def seal(folder: Path) -> dict[str, str]:
    """Return the tags for a folder: the number of its files, and one digest over their sorted paths and digests.

    Raises:
        ModelError: there is anything but plain files and folders.
    """
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in _plain_files(folder)}
    whole = json.dumps(sorted(files.items())).encode()
    return {SEAL_TAG: hashlib.sha256(whole).hexdigest(), COUNT_TAG: str(len(files))}


def seal_source(client: "MlflowClient", source: str) -> dict[str, str]:
    """Return the tags for a model that was just logged, ``models:/m-…``, as it reached the store."""
    with tempfile.TemporaryDirectory(prefix="bigstep-model-") as scratch:
        return seal(_fetch(client, source, Path(scratch) / "model"))


@contextmanager
def checked_copy(client: "MlflowClient", version: "ModelVersion") -> Iterator[Path]:
    """Yield a private copy of a version's files that matches its tags; it is deleted at the end of the block.

    Raises:
        ModelError: the version has no digest, its files cannot be read, or they are not those that were registered.
    """
    name = f"version {version.version} of {version.name}"
    if SEAL_TAG not in version.tags:
        raise ModelError(
            f"{name}: expected the tag {SEAL_TAG}, got a model registered without it; {WAY_OUT}, "
            "or name the folder of an exported model"
        )
    with tempfile.TemporaryDirectory(prefix="bigstep-model-") as scratch:
        copy = _fetch_or_refuse(client, version, Path(scratch) / "model", name)
        _compare(seal(copy), version.tags, name)
        check_code(copy, name)
        yield copy


def _compare(found: Mapping[str, str], tags: Mapping[str, str], name: str) -> None:
    if found[COUNT_TAG] != tags.get(COUNT_TAG):
        raise ModelError(
            f"{name}: expected the {tags.get(COUNT_TAG)} files it was registered with, got {found[COUNT_TAG]}; {WAY_OUT}"
        )
    if found[SEAL_TAG] != tags[SEAL_TAG]:
        raise ModelError(f"{name}: expected the files it was registered with, got changed ones; {WAY_OUT}")


def _fetch(client: "MlflowClient", source: str, target: Path) -> Path:
    """Copy a model's files once; a folder of this machine is copied without following links."""
    from mlflow.artifacts import download_artifacts

    location = source
    if source.startswith("models:/"):
        location = str(client.get_logged_model(source.removeprefix("models:/")).artifact_location)
    local = local_folder(location)
    target.mkdir()
    if local is None:
        return Path(download_artifacts(artifact_uri=location, dst_path=str(target)))
    for path in _plain_files(local):
        beside = target / path.relative_to(local)
        beside.parent.mkdir(parents=True, exist_ok=True)
        _copy(path, beside)
    return target


def _fetch_or_refuse(client: "MlflowClient", version: "ModelVersion", target: Path, name: str) -> Path:
    from mlflow.exceptions import MlflowException

    try:
        return _fetch(client, str(version.source), target)
    except (MlflowException, OSError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot read the files of {name}: {problem}; {WAY_OUT}") from None


def _copy(path: Path, target: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy)


def local_folder(location: str) -> Path | None:
    """Return the folder of this machine that MLflow calls ``location``; None for one elsewhere."""
    parts = urlparse(location)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(location) if parts.scheme == "" else None


def _plain_files(folder: Path) -> Iterator[Path]:
    if folder.is_symlink() or not folder.is_dir():
        raise ModelError(f"{folder}: expected the folder of a registered model; {WAY_OUT}")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ModelError(f"{folder}: expected regular files only, got {path.name!r}; {WAY_OUT}")
        if path.is_file() and path != folder / ADDED:
            yield path
