"""Where in a project's own code something is: file and line, for messages."""

import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "own_place", "place_of", "project_root", "raised_at", "reason", "shown", "user_code_line"]

FOLDER = "custom"  # of the project's code
CALLER = Path(__file__).with_name("user_code.py")  # its own frames are no place


def place_of(function: Callable[..., Any]) -> str:
    """Return ``file:line`` of a function or class, or of the class of another object; its name where there is no file."""
    function = getattr(function, "func", function)  # of a partial
    if not isinstance(function, type) and not inspect.isroutine(function):
        function = type(function)
    try:
        path, line = inspect.getsourcefile(function), inspect.getsourcelines(function)[1]
    except (TypeError, OSError):
        return getattr(function, "__qualname__", repr(function))
    return f"{shown(Path(path or '?'))}:{line}"


def own_place(function: Callable[..., Any]) -> str:
    """Return what :func:`place_of` does for code in ``custom/``, and nothing for other code."""
    function = inspect.unwrap(getattr(function, "func", function))
    if not isinstance(function, type) and not inspect.isroutine(function):
        function = type(function)
    try:
        path = inspect.getsourcefile(function)
    except TypeError:
        return ""
    return place_of(function) if path is not None and _is_own(path) else ""


def raised_at(error: BaseException) -> str:
    """Return file and line of the innermost frame in ``custom/`` that an exception came through, else nothing."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return f"{shown(Path(own[-1].filename))}:{own[-1].lineno}" if own else ""


def user_code_line(error: BaseException) -> str | None:
    """Return one line for an exception that was raised in a file of ``custom/``, or by what it called; None for others."""
    if not any(_is_own(frame.filename) for frame in traceback.extract_tb(error.__traceback__)):
        return None
    return f"{reason(error)}; correct the code"


def project_root() -> Path:
    """Return the nearest folder with a params.yaml, or the current one."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "params.yaml").is_file()), here)


def _is_own(filename: str) -> bool:
    path = Path(filename)
    root = project_root()
    return path.is_relative_to(root) and path.relative_to(root).parts[:1] == (FOLDER,)


def reason(error: BaseException) -> str:
    """Return file and line of the innermost frame in ``custom/``, or the innermost of all, with type and message."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shown(Path(error.filename))}:{error.lineno}: SyntaxError: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_own(frame.filename)] or [
        frame for frame in frames if Path(frame.filename) != CALLER and "pkgutil" not in frame.filename
    ]
    message = (str(error).splitlines() or [""])[0]
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"{shown(Path(own[-1].filename))}:{own[-1].lineno}: {text}" if own else text


def shown(path: Path) -> str:
    """Return a path as the project's own names: without the folder of the project."""
    root = project_root()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
