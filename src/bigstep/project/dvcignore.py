"""Files that DVC cannot hash: it hangs on a pipe and fails at a broken link, so they go into .dvcignore."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from bigstep.atomic_files import whole_file
from bigstep.console import console
from bigstep.errors import DataError

__all__ = ["ignore_unhashable", "unhashable_files"]

SPECIAL = re.compile(r"[\\*?\[\]#! ]")  # what a .gitignore pattern gives a meaning to
FORMER = re.compile(r"[^\w./-]")  # earlier versions wrote `?` for these, which hides other files too


def ignore_unhashable(project: Path, root: str) -> None:
    """Add what DVC cannot hash below ``root`` (relative to ``project``) to the project's .dvcignore.

    A line that an earlier version wrote for one of these files, with ``?`` in it, is replaced.

    Raises:
        DataError: there is such a file, and ``root`` lies where .dvcignore does not reach.
    """
    folder = project / root
    found = [path.relative_to(folder).as_posix() for path in unhashable_files(folder)]
    if not found:
        return
    inside = os.path.normpath(root)
    if Path(root).is_absolute() or inside.startswith(".."):
        raise DataError(
            f"data.root: expected only regular files outside the project, which DVC can hash, got in {folder} "
            f"{found[0]!r} ({len(found)} such); remove it, or link the folder into the project and name the link as data.root"
        )
    patterns = dict.fromkeys(_pattern(f"{inside}/{name}") for name in found)
    former = {"/" + FORMER.sub("?", f"{inside}/{name}") for name in found} - patterns.keys()
    _replace(project / ".dvcignore", list(patterns), former)


def _replace(path: Path, patterns: list[str], former: set[str]) -> None:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    present = text.removesuffix("\n").split("\n") if text else []
    kept = [line for line in present if line not in former]
    new = [pattern for pattern in patterns if pattern not in kept]
    replaced = len(present) - len(kept)
    if not new and not replaced:
        return
    with whole_file(path) as beside:
        beside.write_text("".join(f"{line}\n" for line in [*kept, *new]), encoding="utf-8")
    if new:
        console.print(
            f"{len(new)} files that DVC cannot hash (pipes, broken links) added to .dvcignore; prepare lists them as refused"
        )
    if replaced:
        console.print(f"removed {replaced} lines of an earlier version from .dvcignore: they hid other files, too")


def _pattern(name: str) -> str:
    """Return the pattern that matches the path ``name`` and no other.

    Raises:
        DataError: no pattern can, since the name holds the end of a line or bytes that are no text.
    """
    if len(name.splitlines()) != 1 or not name.isprintable():
        raise DataError(
            f"files that DVC cannot hash: expected a name that .dvcignore can contain, got {name!r}; rename or remove it"
        )
    return "/" + SPECIAL.sub(lambda found: "[ ]" if found[0] == " " else "\\" + found[0], name)


def unhashable_files(folder: Path) -> Iterator[Path]:
    """Find pipes, sockets, devices, links that lead nowhere and files that may not be read."""
    for where, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(where, name)
            try:
                regular = stat.S_ISREG(path.stat().st_mode) and os.access(path, os.R_OK)
            except OSError:
                regular = False
            if not regular:
                yield path
