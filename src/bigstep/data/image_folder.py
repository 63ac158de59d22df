"""A folder of class folders: which files, which class, which split."""

import contextlib
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bigstep.data.counting import MAX_ENTRIES, EntryCount
from bigstep.data.split import Split
from bigstep.errors import DataError

__all__ = ["Entry", "Listing", "list_folder"]

FOLDER_SPLITS = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "val": Split.VALIDATION,
    "valid": Split.VALIDATION,
    "validation": Split.VALIDATION,
    "test": Split.TEST,
    "testing": Split.TEST,
}


MAX_DEPTH = 64
Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """A file below a class folder; ``name`` is its path from the root, ``refusal`` says why it cannot be opened at all."""

    name: str
    label: int
    split: Split | None
    refusal: str | None = None


@dataclass(frozen=True)
class Listing:
    """Classes in order of their names, and every file below their folders."""

    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    num_ignored: int
    """Files beside the class folders, which belong to no class."""


def list_folder(root: Path, max_entries: int = MAX_ENTRIES) -> Listing:
    """List ``root/<class>/**``, or ``root/<train|val|test>/<class>/**`` where the root holds split folders only.

    Hidden files and folders (a leading dot) are skipped. Every folder is listed once, and under its own name if it is below
    the root: a link to a folder that is listed elsewhere is refused, as is a folder more than 64 deep.

    Raises:
        DataError: there is no such folder or no class folder, two class names are alike, or there are more than ``max_entries``
            files and folders.
    """
    if not root.is_dir():
        raise DataError(f"data.root: {root} is not a directory; set it to a directory with one sub-directory per class")
    count = EntryCount(max_entries)
    folders, ignored = _children(root, EntryCount(max_entries))
    splits = {name: FOLDER_SPLITS.get(name.lower()) for name in folders}
    if Split.TRAIN in splits.values() and None not in splits.values():
        homes = [(root / name, split) for name, split in splits.items()]
    else:
        homes = [(root, None)]
    found: dict[str, list[tuple[Path, Split | None]]] = {}
    for home, split in homes:
        names, beside = _children(home, count)
        ignored += beside if home != root else 0
        for name in names:
            found.setdefault(name, []).append((home / name, split))
    classes = tuple(sorted(found, key=os.fsencode))
    _check_names(classes, root)
    seen = _Seen(root, EntryCount(max_entries))
    entries = tuple(
        entry
        for label, name in enumerate(classes)
        for folder, split in found[name]
        for entry in _entries(folder, root, label, split, seen, count)
    )
    return Listing(classes, entries, ignored)


def _children(folder: Path, count: EntryCount) -> tuple[list[str], int]:
    names, refusal = _names(folder, folder, count)
    if refusal is not None:
        raise DataError(f"data.root: expected folders that can be read, got {folder}: {refusal}; change its owner or mode")
    folders = [name for name, _ in names if os.path.isdir(folder / name)]  # noqa: PTH112 # Path.is_dir raises for some links
    return folders, len(names) - len(folders)


def _check_names(classes: tuple[str, ...], root: Path) -> None:
    if not classes:
        raise DataError(
            f"data.root: expected one sub-directory per class in {root}, got none; move the images into class directories"
        )
    seen: dict[str, str] = {}
    for name in classes:
        alike = unicodedata.normalize("NFC", name).casefold().strip()
        if alike in seen:
            raise DataError(
                f"class names: expected a difference in more than case, got {seen[alike]!r} and {name!r}; rename one"
            )
        seen[alike] = name


def _entries(folder: Path, root: Path, label: int, split: Split | None, seen: "_Seen", count: EntryCount) -> Iterator[Entry]:
    for path, refusal in _files(folder, root, seen, count):
        yield Entry(path.relative_to(root).as_posix(), label, split, refusal)


class _Seen:
    """Folders by identity: each is listed once, and by its own name rather than a link's."""

    def __init__(self, root: Path, count: EntryCount) -> None:
        self.root = _identity(root)
        self.real = frozenset(_real_folders(root, count))
        self.listed: set[Identity] = set()

    def refusal(self, identity: Identity, above: tuple[Identity, ...], *, linked: bool) -> str | None:
        """Return why a folder is not listed at this place, or None if it is."""
        if identity in above:
            return "a loop of links"
        if identity in self.listed or (linked and identity in self.real):
            return "a link to a folder that is listed elsewhere"
        return f"a folder more than {MAX_DEPTH} folders deep" if len(above) > MAX_DEPTH else None


def _real_folders(root: Path, count: EntryCount) -> Iterator[Identity]:
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        home = root.joinpath(*folder.relative_to(root).parts[:1])
        with contextlib.suppress(OSError), os.scandir(folder) as items:
            for item in items:
                count.add(home)
                if item.name.startswith(".") or not item.is_dir(follow_symlinks=False):
                    continue
                yield _identity(Path(item.path))
                if depth <= MAX_DEPTH:
                    waiting.append((Path(item.path), depth + 1))


def _files(top: Path, root: Path, seen: _Seen, count: EntryCount) -> Iterator[tuple[Path, str | None]]:
    """List the files below ``top``; ``home`` is the link, or the class folder, that led to a path."""
    linked = any((root / part).is_symlink() for part in _ways(top, root))
    waiting: list[tuple[Path, tuple[Identity, ...], bool, Path]] = [(top, (seen.root,), linked, top)]
    while waiting:
        path, above, linked, home = waiting.pop()
        if not os.path.isdir(path):  # noqa: PTH112 # Path.is_dir raises for a name that is too long
            yield path, None
            continue
        identity = _identity(path)
        names: list[tuple[str, bool]] = []
        refusal = seen.refusal(identity, above, linked=linked)
        if refusal is None:
            seen.listed.add(identity)
            names, refusal = _names(path, home, count)
        if refusal is not None:
            yield path, refusal
        below = (*above, identity)
        for name, is_link in reversed(names):
            waiting.append((path / name, below, linked or is_link, path / name if is_link else home))


def _ways(top: Path, root: Path) -> list[Path]:
    relative = top.relative_to(root)
    return [relative, *relative.parents]


def _names(folder: Path, home: Path, count: EntryCount) -> tuple[list[tuple[str, bool]], str | None]:
    found = []
    try:
        with os.scandir(folder) as items:
            for item in items:
                count.add(home)
                if not item.name.startswith("."):
                    found.append((item.name, item.is_symlink()))
    except OSError as error:
        return [], f"unreadable: {error.strerror}"
    return sorted(found, key=lambda item: os.fsencode(item[0])), None


def _identity(path: Path) -> Identity:
    status = path.stat()
    return status.st_dev, status.st_ino
