"""A digest of the code that a project brings: a training is resumed, and measurements are used, with the same code only."""

import hashlib
import os
from pathlib import Path

from bigstep.user_code import load_user_code, module_file
from bigstep.user_places import FOLDER, project_root

__all__ = ["digest_user_code"]


def digest_user_code(name: str, kind: str) -> str:
    """Hash the code that ``name`` names: the files of ``custom/<kind>``, or the Python files of an installed package.

    Raises:
        ConfigError: as :func:`load_user_code`.
    """
    digest, root = hashlib.sha256(), project_root()
    where = name.partition(":")[0]
    if where.endswith(".py"):
        base, paths = root, _visible_files(root / FOLDER / kind)
    else:
        load_user_code(name, kind, f"{kind}.name")
        base, paths = _package_files(where)
    for path in sorted(paths):
        digest.update(os.fsencode(path.relative_to(base).as_posix()) + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _visible_files(folder: Path) -> list[Path]:
    """Return all files, since code may read some, but for bytecode and what a leading dot hides, as editors' own files."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _package_files(module: str) -> tuple[Path, list[Path]]:
    """Return the Python files of the package that a module is in, and the folder of the package; of a module alone its file."""
    parts = module.split(".")
    files = [module_file(".".join(parts[: end + 1])) for end in range(len(parts))]
    first = next((file for file in files if file != Path()), Path())  # a namespace package has no file
    if first.name == "__init__.py":
        return first.parent, list(first.parent.rglob("*.py"))
    return first.parent, [first] if first.is_file() else []
