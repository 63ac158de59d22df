"""Code that a project brings: a network in ``custom/model/``, a data set in ``custom/data/``, or one of an installed package.

It is named ``custom/model/net.py:build`` or ``package.module:Class``. DVC's lists are static: the stages that need a network
depend on ``custom/model``, ``prepare`` depends on ``custom/data``, so code of one folder must not import that of another.
"""

import functools
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigstep.errors import ConfigError, ModelError
from bigstep.user_places import FOLDER, place_of, project_root, reason, shown

__all__ = [
    "call_user_code",
    "is_user_code",
    "load_user_code",
    "load_user_function",
    "module_file",
    "was_loaded",
]

KINDS = {"model": "a function or class that returns a torch.nn.Module", "data": "a function or class that returns a data set"}


_loaded: set[str] = set()


def was_loaded() -> bool:
    """Return whether this process has loaded any."""
    return bool(_loaded)


def is_user_code(name: str) -> bool:
    """Return whether a value of params.yaml names code: it has a colon, which no built-in name has."""
    return ":" in name


def load_user_code(name: str, kind: str, key: str, what: str | None = None) -> Callable[..., Any]:
    """Import what ``name`` names; a file is looked up in the project, the nearest folder with a params.yaml.

    Args:
        name: ``custom/<kind>/file.py:name``, or ``package.module:name``.
        kind: ``model`` or ``data``.
        key: of params.yaml, for the message.
        what: is expected, for the message.

    Raises:
        ConfigError: there is no such file, module or name; it does not import; or it imports code of another kind.
    """
    what = what or KINDS[kind]
    where, _, attribute = name.partition(":")
    root = project_root()
    module = _module_name(root, where, attribute, kind, key)
    _forget_other_projects(root)
    before = set(sys.modules)
    _loaded.add(name)
    sys.path.insert(0, str(root))
    try:
        found: Any = pkgutil.resolve_name(f"{module}:{attribute}")
    except Exception as error:
        raise ConfigError(f"{key}: expected {what} named {name}, got {reason(error)}; correct it") from error
    finally:
        sys.path.remove(str(root))
    if not callable(found):
        raise ConfigError(f"{key}: expected {what}, got {name}, a {type(found).__name__}; name a function or class")
    if where.endswith(".py"):
        _check_imports(kind, key, before)
    result: Callable[..., Any] = found
    return result


def call_user_code(
    function: Callable[..., Any],
    name: str,
    key: str,
    offered: Mapping[str, Any],
    options: Mapping[str, Any],
    options_key: str = "",
) -> Any:
    """Call ``function`` with the options, and with those of the offered arguments that its signature names.

    Args:
        function: from :func:`load_user_code`.
        name: of the function in params.yaml.
        key: of params.yaml, for the message; the options are those of ``<section>.options``.
        offered: what bigstep knows; left out where the signature does not ask for it.
        options: each an argument.
        options_key: where they are in params.yaml, for the message; ``<section>.options`` if it is empty.

    Raises:
        ConfigError: the signature takes no such option, or asks for more.
        ModelError: the call raised an exception; the line names its file and line.
    """
    options_key = options_key or f"{key.partition('.')[0]}.options"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        signature = inspect.Signature([inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)])
    parameters = signature.parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD}
    arguments = {**{key: value for key, value in offered.items() if key in named}, **options}
    try:
        bound = signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"{key}: expected arguments among {', '.join(offered) or 'none'} and those of {options_key} "
            f"({', '.join(options) or 'none set'}), got {name}{signature}: {error}; correct one of them"
        ) from None
    try:
        return function(*bound.args, **bound.kwargs)
    except Exception as error:
        raise ModelError(f"{key} {name}: {reason(error)}") from error


def load_user_function(
    name: str, key: str, what: str, arguments: Sequence[str], offered: Mapping[str, Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Import a function of ``custom/model``, or a class and make an object of it, that is called with ``arguments``.

    Args:
        name: as of :func:`load_user_code`.
        key: of params.yaml.
        what: is expected, for the message.
        arguments: by their names, for the message.
        offered: to a class, as of :func:`call_user_code`.
        options: arguments of a class, or further arguments of each call of a function.

    Raises:
        ConfigError: there is no such code, or its signature does not fit.
        ModelError: making the object raised an exception.
    """
    found = load_user_code(name, "model", key, what)
    is_class = isinstance(found, type)
    result: Any = call_user_code(found, name, key, offered, options, key) if is_class else functools.partial(found, **options)
    try:
        inspect.signature(result if is_class else found).bind(*arguments, **({} if is_class else options))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{key} {name} ({place_of(found)}): expected {what}, called with ({', '.join(arguments)}), got: {error}; correct it"
        ) from None
    made: Callable[..., Any] = result
    return made


def _module_name(root: Path, where: str, attribute: str, kind: str, key: str) -> str:
    example = f"{FOLDER}/{kind}/file.py:name or package.module:name"
    if not where.endswith(".py"):
        if not all(part.isidentifier() for part in (*where.split("."), *attribute.split("."))):
            raise ConfigError(f"{key}: expected {example}, got {where}:{attribute}; correct it")
        return where
    path = Path(where)
    parts = path.with_suffix("").parts
    if (
        parts[:2] != (FOLDER, kind)
        or len(parts) < 3
        or not all(part.isidentifier() for part in (*parts, *attribute.split(".")))
    ):
        raise ConfigError(
            f"{key}: expected {example}, got {where}:{attribute}; "
            f"move the file into {FOLDER}/{kind}/, which DVC follows, and give it a name that Python can import"
        )
    if not (root / path).is_file():
        raise ConfigError(f"{key}: expected a file, got {where}, which {root} does not contain; correct it")
    return ".".join(parts)


def _forget_other_projects(root: Path) -> None:
    """Drop the modules ``custom.*`` of another project, as where one process works on several."""
    own = [name for name in sys.modules if name.partition(".")[0] == FOLDER]
    if not all(module_file(name).is_relative_to(root) for name in own if module_file(name) != Path()):
        for name in own:
            del sys.modules[name]


def module_file(module: str) -> Path:
    """Return the file of a module that is imported; an empty path where it has none."""
    return Path(getattr(sys.modules[module], "__file__", None) or "")


def _check_imports(kind: str, key: str, before: set[str]) -> None:
    """Refuse an import of another folder of the project: DVC would not run the stage again when that changes."""
    new = sorted(set(sys.modules) - before)
    for name in new:
        if _is_elsewhere(name, kind):
            file = module_file(name)
            for other in new:  # so that the next try imports them again, and is refused, too
                if other.partition(".")[0] in (FOLDER, name.partition(".")[0]):
                    del sys.modules[other]
            raise ConfigError(
                f"{key}: expected imports from {FOLDER}/{kind} only, which DVC follows for this stage, got one of "
                f"{shown(file) if file != Path() else name}; move what both need into an installed package"
            )


def _is_elsewhere(module: str, kind: str) -> bool:
    """Return whether a module is of the project, and not of ``custom/<kind>``."""
    top = module.partition(".")[0]
    if module == FOLDER:  # an empty __init__.py decides nothing
        return module_file(module) != Path() and bool(module_file(module).read_bytes().strip())
    if top == FOLDER:
        return module != f"{FOLDER}.{kind}" and not module.startswith(f"{FOLDER}.{kind}.")
    file, root = module_file(module), project_root()
    # not of a package that is installed in place
    is_beside = file.is_relative_to(root) and file.relative_to(root).parts[0].removesuffix(".py") == top
    return is_beside and not any(finder.find_spec(top, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
