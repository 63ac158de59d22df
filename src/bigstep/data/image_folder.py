"""A folder of class folders: which files, which class, which split."""

import contextlib
import os
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final, overload

from bigstep.data.counting import MAX_ENTRIES, EntryCount
from bigstep.data.split import UNASSIGNED, Split
from bigstep.errors import DataError

__all__ = ["Entries", "Entry", "Listing", "list_folder"]

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


@final
class Entries(Sequence[Entry]):
    """Files in order. Their names lie one after another in one text: a million of them take tens of bytes each."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        """Keep ``entries``."""
        self._names, self._ends, self._labels, self._splits = bytearray(), array("Q", [0]), array("i"), array("b")
        self._refusals: dict[int, str] = {}
        for index, entry in enumerate(entries):
            self._names += os.fsencode(entry.name)
            self._ends.append(len(self._names))
            self._labels.append(entry.label)
            self._splits.append(UNASSIGNED if entry.split is None else entry.split)
            if entry.refusal is not None:
                self._refusals[index] = entry.refusal

    def __len__(self) -> int:
        """Count the files."""
        return len(self._labels)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...

    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        """Return a file, or several."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        name = os.fsdecode(bytes(self._names[self._ends[number] : self._ends[number + 1]]))
        split = None if self._splits[number] == UNASSIGNED else Split(self._splits[number])
        return Entry(name, self._labels[number], split, self._refusals.get(number))


@dataclass(frozen=True)
class Listing:
    """Classes in order of their names, and every file below their folders."""

    classes: tuple[str, ...]
    entries: Entries
    num_ignored: int
    """Files beside the class folders, which belong to no class."""


def list_folder(root: Path, max_entries: int = MAX_ENTRIES) -> Listing:
    """List ``root/<class>/**``, or ``root/<train|val|test>/<class>/**`` where the root holds split folders only.

    Hidden files and folders (a leading dot) are skipped. Every folder is listed once, and under its own name if it is below
    the root: a link to a folder that is listed elsewhere is refused, as is a folder more than 64 deep.

    Raises:
        DataError: there is no such folder or no class folder, two class names are alike, a link leads to a folder outside of
            the root, or there are more than ``max_entries`` files and folders.
    """
    if not root.is_dir():
        raise DataError(f"data.root: {root} is not a directory; set it to a directory with one sub-directory per class")
    root, count = root.resolve(), EntryCount(max_entries)  # it may be a link itself, to which DVC follows
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
    entries = Entries(
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
        self.home, self.root = root, _identity(root)
        self.real = frozenset(_real_folders(root, count))
        self.listed: set[Identity] = set()

    def check_inside(self, folder: Path) -> None:
        """Check that a folder lies in the root: DVC hashes what does, so a change elsewhere would go unnoticed.

        Raises:
            DataError: a link leads out of it.
        """
        if not folder.resolve().is_relative_to(self.home):
            raise DataError(
                f"data.root: expected folders that DVC follows, got the link {str(folder)!r} to one outside of data.root; "
                "copy it there (cp -al takes no space), or write another data.root"
            )

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


class _Place(NamedTuple):
    """A path, the folders that it lies in, whether a link leads to it, and the link or class folder that does."""

    path: Path
    above: tuple[Identity, ...]
    linked: bool
    home: Path


def _files(top: Path, root: Path, seen: _Seen, count: EntryCount) -> Iterator[tuple[Path, str | None]]:
    """List the files below ``top``, and folders that are refused."""
    linked = any((root / part).is_symlink() for part in _ways(top, root))
    waiting: list[Iterator[_Place]] = [iter([_Place(top, (seen.root,), linked, top)])]
    while waiting:
        place = next(waiting[-1], None)
        if place is None:
            waiting.pop()
            continue
        path, above, linked, home = place
        if not os.path.isdir(path):  # noqa: PTH112 # Path.is_dir raises for a name that is too long
            yield path, None
            continue
        if linked:
            seen.check_inside(path)
        identity = _identity(path)
        names: list[tuple[str, bool]] = []
        refusal = seen.refusal(identity, above, linked=linked)
        if refusal is None:
            seen.listed.add(identity)
            names, refusal = _names(path, home, count)
        if refusal is not None:
            yield path, refusal
        waiting.append(_below(place, names, identity))


def _below(place: _Place, names: list[tuple[str, bool]], identity: Identity) -> Iterator[_Place]:
    """Yield what a folder holds, one after another: a folder may hold a million files."""
    for name, is_link in names:
        path = place.path / name
        yield _Place(path, (*place.above, identity), place.linked or is_link, path if is_link else place.home)


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
