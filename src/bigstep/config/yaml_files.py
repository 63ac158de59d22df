"""params.yaml, ``--set`` and presets, read by one parser: ``1e-3`` is a float wherever it is written."""

import difflib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from bigstep.config.section import Section, rule_of
from bigstep.errors import ConfigError

__all__ = [
    "Override",
    "apply_overrides",
    "example_of",
    "load_plain",
    "nearest",
    "parse_overrides",
    "parse_section",
    "problems_of_key",
    "read_mapping",
    "read_plain",
    "read_yaml",
    "write_yaml",
]

S = TypeVar("S", bound=Section)
MAX_DEPTH = 32
OPTIONS = "options."  # of your own code: section.options.name
Override = tuple[str, str, Any]  # section, key, value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping, comments kept.

    Raises:
        ConfigError: the file is missing, is not valid YAML, or is not a mapping of sections.
    """
    return read_mapping(path, lambda text: _load(text, YAML()))


def read_plain(path: Path) -> Mapping[str, Any]:
    """Read a YAML mapping that is only looked at, into plain values; the same text is parsed once by a process.

    Raises:
        ConfigError: as :func:`read_yaml`.
    """
    return read_mapping(path, _load_once)


def read_mapping(path: Path, load: Callable[[str], Any]) -> dict[str, Any]:
    """Read a file by ``load``, whose YAMLError and ValueError become a ConfigError; so does anything that is not a mapping."""
    try:
        content = load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path.name}: {error.strerror}; create it or name another file") from None
    except (YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path.name}: expected valid YAML, got: {_first_problem(error)}; fix it there") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name}: expected a mapping of sections, got {_shown(content)}; start with `data:`")
    return content


@lru_cache(maxsize=4)  # params.yaml and dvc.yaml take 0.03 s each, and a stage looks at them again and again
def _load_once(text: str) -> Any:
    return load_plain(text)


def load_plain(text: str) -> Any:
    """Read YAML into plain values.

    Raises:
        YAMLError, ValueError: it is not valid YAML, is nested too deeply, or has aliases.
    """
    return _load(text, YAML(typ="safe", pure=True))


def _load(text: str, reader: YAML) -> Any:
    """Load after checking the events: a deep or recursive value would exhaust the stack, aliases the memory."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, AliasEvent):
            raise ValueError(f"the alias *{event.anchor}, and aliases are not supported")  # noqa: TRY004 # of the text, not of a type
        depth += isinstance(event, CollectionStartEvent)
        depth -= isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    return reader.load(text)


def write_yaml(content: Mapping[str, Any], path: Path) -> None:
    """Write a mapping from :func:`read_yaml`, comments kept."""
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(content, file)


def parse_overrides(texts: Iterable[str], origin: str = "--set") -> tuple[Override, ...]:
    """Split ``section.key=value`` texts; each value is a YAML scalar or flow collection.

    Raises:
        ConfigError: a text does not have this form.
    """
    return tuple(_parse_override(text, origin) for text in texts)


def _parse_override(text: str, origin: str) -> Override:
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key) or "." in key.removeprefix(OPTIONS):
        raise ConfigError(f"{origin}: expected section.key=value, got {text!r}; write for example train.learning_rate=0.01")
    try:
        return section, key, load_plain(value)
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{origin} {name}: expected a YAML value, got: {_first_problem(error)}; quote it") from None


def apply_overrides(content: dict[str, Any], overrides: Collection[Override]) -> dict[str, Any]:
    """Set each override in ``content`` (in place, so that comments stay) and return it; values are checked later.

    Of effective batch size, micro-batch size and accumulation steps, those that are not overridden become null where
    needed: B is kept unless both others are overridden.
    """
    chosen = {f"{section}.{key}": value for section, key, value in overrides}
    for section, key, value in [*overrides, *_giving_way(content, chosen)]:
        if content.get(section) is None:
            content[section] = {}
        target = content[section]
        if not isinstance(target, dict):
            raise ConfigError(
                f"params.yaml: {section}: expected a mapping of keys, got {_shown(target)}; indent its keys below it"
            )
        _set(target, key, value)
    return content


def _set(target: dict[str, Any], key: str, value: Any) -> None:
    if key.startswith(OPTIONS):
        options = target.get("options") or {}
        target["options"] = {**options, key.removeprefix(OPTIONS): value} if isinstance(options, dict) else options
    else:
        target[key] = value


def _giving_way(content: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[Override]:
    slicing = ["hardware.micro_batch_size", "hardware.accumulation_steps"]
    given = [name for name in slicing if chosen.get(name) is not None]
    train = content.get("train")
    kept = train.get("effective_batch_size") if isinstance(train, dict) else None
    whole = chosen.get("train.effective_batch_size", kept)
    if len(given) == 2 and "train.effective_batch_size" not in chosen:
        return [("train", "effective_batch_size", None)]
    if len(given) == 1 and whole is not None:
        return [("hardware", name.partition(".")[2], None) for name in slicing if name not in chosen]
    return []


def parse_section(section: type[S], content: Mapping[str, Any], origin: str = "params.yaml") -> S:
    """Validate one section of ``content``.

    Raises:
        ConfigError: one line for each invalid value.
    """
    values = content.get(section.title, {})
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{origin}: {section.title}: expected a mapping of keys, got {_shown(values)}; indent its keys below it"
        )
    try:
        found = section.model_validate(_plain(values))
    except ValidationError as error:
        lines = {
            problem["loc"][:1]: _line(section, values, dict(problem), origin) for problem in error.errors(include_url=False)
        }
        raise ConfigError("\n".join(lines.values())) from None
    for key, value in values.items():
        _check_json(f"{origin}: {section.title}.{key}", value)
    return found


def _check_json(name: str, value: Any) -> None:
    """Refuse what YAML has and JSON has not, such as a date: arguments of your own code are sent to other processes."""
    try:
        json.dumps(value)
    except TypeError:
        raise ConfigError(
            f"{name}: expected text, numbers, lists and mappings, got {_shown(value)}; put it in quotes"
        ) from None


def problems_of_key(section: type[Section], key: str, value: Any, origin: str) -> list[str]:
    """Return the problem with ``value`` by itself, whatever the other keys are, as a list of at most one line."""
    if key.startswith(OPTIONS) and "options" in section.model_fields:
        return []  # an argument of the user's own code, which checks it
    try:
        section.model_validate(_plain({key: value}))
    except ValidationError as error:
        own = [dict(problem) for problem in error.errors(include_url=False) if problem["loc"][:1] == (key,)]
        return [_line(section, {key: value}, problem, origin) for problem in own[:1]]
    return []


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint: ``did you mean 'x'?`` with the closest known name, or a list of all."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"available: {', '.join(names)}"


def _plain(value: Any) -> Any:
    """Strip ruamel's subclasses, which strict validation refuses."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _line(section: type[Section], values: dict[str, Any], problem: dict[str, Any], origin: str) -> str:
    if problem["type"] == "value_error":
        return f"{origin}: {problem['ctx']['error']}"
    key = str(problem["loc"][0])
    name = f"{section.title}.{key}"
    if problem["type"] == "extra_forbidden":
        return f"{origin}: {name}: unknown key; {nearest(key, section.model_fields)}"
    field = section.model_fields[key]
    found = _shown(values[key])
    return f"{origin}: {name}: expected {rule_of(field)}, got {found}; write for example {example_of(field.default)}"


def example_of(value: object) -> str:
    """Write a default as in params.yaml."""
    plain = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return plain[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _shown(value: object) -> str:
    text = repr(_plain(value)) if value is not None else "null"
    text = {"True": "true", "False": "false"}.get(text, text)
    return text if len(text) <= 80 else text[:77] + "..."


def _first_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}" if mark is not None else ""
    problem = str(getattr(error, "problem", None) or str(error).splitlines()[0])
    return f"{problem.strip()}{where}"
