"""The files of a package that a module imports, directly or through others, found in the syntax trees."""

import ast
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bigstep.runs.code_digest import NO_RESULT

__all__ = ["files_of", "import_closure", "imported_names"]


def import_closure(script: Path, homes: Sequence[Path]) -> set[Path]:
    """Return ``script`` and the files below ``homes`` that it imports.

    What decides no result (:data:`bigstep.runs.code_digest.NO_RESULT`) is left out, with what only it imports.

    Args:
        script: a Python file.
        homes: folders on Python's path, such as ``src``.
    """
    found: set[Path] = set()
    waiting = [script.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            names = (name for name in imported_names(path) if not _decides_no_result(name))
            waiting += [file for name in names for file in files_of(name, homes)]
    return found


def imported_names(path: Path, *, typing: bool = False) -> Iterator[str]:
    """Yield every module a file may import, in functions too; ``typing``: those for the type checker only as well."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if typing else _walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(name: str, homes: Iterable[Path]) -> Iterator[Path]:
    """Yield the files that importing a module runs: its own, and the ``__init__.py`` of every package above it."""
    parts = name.split(".")
    for home in homes:
        for depth in range(1, len(parts) + 1):
            base = home.joinpath(*parts[:depth])
            yield from (path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file())


def _decides_no_result(name: str) -> bool:
    return any(f"{name}.".startswith(f"bigstep.{part}.") for part in NO_RESULT)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    for child in ast.iter_child_nodes(node):
        yield from _walk(child)
