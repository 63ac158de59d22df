"""A folder of class folders: which files, which class, which split."""

import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bigstep.errors import DataError

__all__ = ["Entry", "Listing", "list_folder"]

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Entry:
    """A file below a class folder; ``name`` is its path from the root, ``refusal`` says why it cannot be opened at all."""

    name: str
    label: int
    split: str | None
    refusal: str | None = None


@dataclass(frozen=True)
class Listing:
    """Classes in order of their names, and every file below their folders."""

    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    num_ignored: int
    """Files beside the class folders, which belong to no class."""


def list_folder(root: Path) -> Listing:
    """List ``root/<class>/**``, or ``root/<train|val|test>/<class>/**`` where the root holds split folders only.

    Hidden names (a leading dot) are passed over. Links to folders are followed once.

    Raises:
        DataError: there is no such folder or no class folder, or two class names are alike.
    """
    if not root.is_dir():
        raise DataError(f"data.root must be a folder of class folders, but {root} is none; correct data.root in params.yaml")
    folders, ignored = _children(root)
    splits = {name: SPLITS.get(name.lower()) for name in folders}
    if "train" in splits.values() and all(splits.values()):
        homes = [(root / name, split) for name, split in splits.items()]
    else:
        homes = [(root, None)]
    found: dict[str, list[tuple[Path, str | None]]] = {}
    for home, split in homes:
        names, beside = _children(home)
        ignored += beside if home != root else 0
        for name in names:
            found.setdefault(name, []).append((home / name, split))
    classes = tuple(sorted(found, key=os.fsencode))
    _check_names(classes, root)
    entries = tuple(
        entry
        for label, name in enumerate(classes)
        for folder, split in found[name]
        for entry in _entries(folder, root, label, split)
    )
    return Listing(classes, entries, ignored)


def _children(folder: Path) -> tuple[list[str], int]:
    with os.scandir(folder) as items:
        visible = [item for item in items if not item.name.startswith(".")]
    folders = sorted((item.name for item in visible if Path(item.path).is_dir()), key=os.fsencode)
    return folders, len(visible) - len(folders)


def _check_names(classes: tuple[str, ...], root: Path) -> None:
    if not classes:
        raise DataError(
            f"data.root must hold one folder for each class, but {root} holds no folder; put the images in such folders"
        )
    seen: dict[str, str] = {}
    for name in classes:
        alike = unicodedata.normalize("NFC", name).casefold().strip()
        if alike in seen:
            raise DataError(
                f"class names must differ in more than case, but {seen[alike]!r} and {name!r} do not; rename one folder"
            )
        seen[alike] = name


def _entries(folder: Path, root: Path, label: int, split: str | None) -> Iterator[Entry]:
    for path, refusal in _files(folder, ancestors=(_identity(folder),)):
        yield Entry(path.relative_to(root).as_posix(), label, split, refusal)


def _files(folder: Path, ancestors: tuple[tuple[int, int], ...]) -> Iterator[tuple[Path, str | None]]:
    for item in _sorted(folder):
        path = folder / item.name
        if not path.is_dir():  # false for a loop of links, where DirEntry.is_dir raises
            yield path, None
        elif _identity(path) in ancestors:
            yield path, "a loop of links"
        else:
            yield from _files(path, (*ancestors, _identity(path)))


def _sorted(folder: Path) -> Iterable[os.DirEntry[str]]:
    with os.scandir(folder) as items:
        return sorted((item for item in items if not item.name.startswith(".")), key=lambda item: os.fsencode(item.name))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
