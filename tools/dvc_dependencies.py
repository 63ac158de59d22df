"""The project's own files that a script imports, found in the syntax tree: what dvc.yaml must list."""

import ast
from collections.abc import Iterator
from pathlib import Path

from bigstep.runs.code_digest import NO_RESULT

ROOT = Path(__file__).resolve().parents[1]
HOMES = (ROOT / "src", ROOT / "pipelines")


def import_closure(script: Path) -> set[str]:
    """Return the files below the project that ``script`` imports, itself included, as paths from the root.

    What decides no result (:data:`bigstep.runs.code_digest.NO_RESULT`) is left out, with what only it imports.
    """
    found: set[Path] = set()
    waiting = [script.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [file for name in imported_names(path) if not _decides_no_result(name) for file in files_of(name)]
    return {path.relative_to(ROOT).as_posix() for path in found}


def _decides_no_result(name: str) -> bool:
    return any(f"{name}.".startswith(f"bigstep.{part}.") for part in NO_RESULT)


def imported_names(path: Path, *, typing: bool = False) -> Iterator[str]:
    """Yield every module a file may import, in functions too; ``typing``: those for the type checker only as well."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if typing else _walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(name: str) -> Iterator[Path]:
    """Yield the files that importing a module runs: its own, and the ``__init__.py`` of every package above it."""
    parts = name.split(".")
    for home in HOMES:
        for depth in range(1, len(parts) + 1):
            base = home.joinpath(*parts[:depth])
            yield from (path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file())


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    for child in ast.iter_child_nodes(node):
        yield from _walk(child)


def write_dependencies() -> None:
    """Write the closure of every stage's script into dvc.yaml, comments and other dependencies kept."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 120
    path = ROOT / "dvc.yaml"
    content = yaml.load(path)
    for stage in content["stages"].values():
        code = sorted(import_closure(ROOT / stage["cmd"].split()[1]))
        others = [item for item in stage["deps"] if not str(item).endswith(".py")]
        stage["deps"] = others + code
    yaml.dump(content, path)


if __name__ == "__main__":
    write_dependencies()
