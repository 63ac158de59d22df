"""Checkpoints on disk: complete and verified, or absent.

A checkpoint is a folder ``step-N``: ``tensors.safetensors``, ``values.json``, and ``commit.json`` with the size and the
SHA-256 of both. It is written beside, flushed to the disk, committed by a rename, and only then are older ones deleted; the
newest two are kept. Which is the latest is read from the commits; nothing points at it. Nothing is pickled.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from bigstep.atomic_files import read_json, read_record, sha256, sync, write_json
from bigstep.errors import CheckpointError
from bigstep.models.tensor_files import save_tensors
from bigstep.training.snapshot import Snapshot

__all__ = ["Commit", "check_folder", "clear_checkpoints", "latest_values", "load_latest", "read_commit", "save_checkpoint"]

FORMAT = 1
KEPT = 2
TENSORS, VALUES, COMMIT = "tensors.safetensors", "values.json", "commit.json"


@dataclass(frozen=True)
class FileSum:
    """What a file must be."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """What ``commit.json`` says; without it a folder is no checkpoint."""

    step: int
    files: dict[str, FileSum]
    versions: dict[str, str]
    format: int = FORMAT


def save_checkpoint(folder: Path, snapshot: Snapshot, versions: Mapping[str, str]) -> Path:
    """Commit ``snapshot`` to ``folder``, then delete all but the newest two.

    Args:
        folder: that holds the checkpoints of one training.
        snapshot: tensors on any device.
        versions: of what computed it, by name.

    Returns:
        The committed folder.

    Raises:
        OSError: it could not be written; earlier checkpoints stay.
    """
    target = folder / _name(snapshot.step)
    if target.exists() and check_folder(target) is None:
        return target
    beside = folder / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        _fill(beside, snapshot, versions)
        shutil.rmtree(target, ignore_errors=True)
        beside.replace(target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync(folder)
    _purge(folder)
    return target


def load_latest(folder: Path, device: str = "cpu") -> tuple[Snapshot, Commit, list[str]] | None:
    """Return the newest intact checkpoint, its commit, and what is wrong with newer ones; None if there is no checkpoint.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
    """
    problems: list[str] = []
    for path in reversed(_committed(folder)):
        problem = check_folder(path)
        if problem is None:
            commit = read_commit(path)
            try:
                values = read_json(path / VALUES)
                tensors = safetensors.torch.load_file(path / TENSORS, device=device)
            except (ValueError, SafetensorError) as error:
                problem = f"{path} does not read ({type(error).__name__})"
            else:
                return Snapshot(commit.step, tensors, values), commit, problems
        problems.append(problem)
    if problems:
        raise CheckpointError(
            f"checkpoints: expected an intact one, got none: {'; '.join(problems)}; delete {folder} to start from step 0"
        )
    return None


def latest_values(folder: Path) -> Mapping[str, Any] | None:
    """Return the plain values of the newest checkpoint whose values are intact, without its tensors, or None."""
    for path in reversed(_committed(folder)):
        try:
            if sha256(path / VALUES) == read_commit(path).files[VALUES].sha256:
                return dict(read_json(path / VALUES))
        except (OSError, ValueError, KeyError):
            continue
    return None


def check_folder(path: Path) -> str | None:
    """Return what is wrong with a committed checkpoint, in words, or None; every byte is read."""
    try:
        commit = read_commit(path)
    except (OSError, ValueError) as error:
        return f"{path / COMMIT} does not read ({error})"
    if path.name != _name(commit.step):
        return f"{path / COMMIT} is of step {commit.step}, which its folder is not"
    for name in (TENSORS, VALUES):
        expected, file = commit.files.get(name), path / name
        if expected is None or not file.is_file() or file.stat().st_size != expected.num_bytes:
            return f"{file} has another size than was committed"
        if sha256(file) != expected.sha256:
            return f"{file} has other bytes than were committed"
    return None


def read_commit(path: Path) -> Commit:
    """Read a checkpoint's commit.

    Raises:
        OSError: it is missing.
        ValueError: it is of another shape or format.
    """
    commit = read_record(Commit, path / COMMIT)
    if commit.format != FORMAT:
        raise ValueError(f"format {commit.format}")
    return commit


def clear_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a training, the commits first, so that none is left half."""
    for path in _committed(folder):
        (path / COMMIT).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _name(step: int) -> str:
    return f"step-{step:09}"


def _fill(folder: Path, snapshot: Snapshot, versions: Mapping[str, str]) -> None:
    save_tensors(snapshot.tensors, folder / TENSORS)
    (folder / VALUES).write_text(json.dumps(dict(snapshot.values)), encoding="utf-8")
    files = {}
    for name in (TENSORS, VALUES):
        sync(folder / name)
        files[name] = FileSum((folder / name).stat().st_size, sha256(folder / name))
    write_json(asdict(Commit(snapshot.step, files, dict(versions))), folder / COMMIT)
    sync(folder)


def _committed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if (path / COMMIT).exists())


def _purge(folder: Path) -> None:
    for path in _committed(folder)[:-KEPT]:
        (path / COMMIT).unlink(missing_ok=True)  # first: what is half deleted is no checkpoint
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.iterdir():
        if path.name.startswith(".step-") or not (path / COMMIT).exists():
            shutil.rmtree(path, ignore_errors=True)
