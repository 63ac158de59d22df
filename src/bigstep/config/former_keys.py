"""Former names of keys of params.yaml, and of one value: they work until version 0.3, with one line each."""

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from ruamel.yaml.comments import CommentedMap

from bigstep.config.yaml_files import Override
from bigstep.errors import ConfigError

__all__ = ["FORMER", "FORMER_SECTIONS", "former_values", "new_values", "update_content", "update_overrides"]

FORMER = {
    "data.normalization": "data.pixel_statistics",
    "train.step_epochs": "train.lr_decay_epochs",
    "train.factor": "train.lr_decay_factor",
    "train.select_by": "train.monitor",
    "train.max_bad_steps": "train.max_nonfinite_steps",
    "memory.checkpoint_activations": "hardware.activation_checkpointing",
    "checkpoint.every": "hardware.checkpoint_interval",
    "search.top": "search.confirm_top",
    "search.replicates": "search.confirm_seeds",
    "search.audit": "search.audit_fraction",
}
FORMER_SECTIONS = ("memory", "checkpoint")  # which there are no more
VALUES = {"data.on_bad_image": ("refuse", "skip")}  # the former and the new value of a key
PARAMETERS = "search.parameters"  # its keys are keys of params.yaml


def update_content(content: dict[str, Any], origin: str = "params.yaml") -> list[str]:
    """Replace former names in ``content``, in place, so that comments stay.

    Returns:
        One line for each name that was replaced.

    Raises:
        ConfigError: a key is there under its former and its new name.
    """
    _check_one_name(content, origin)
    lines = []
    for former, name in FORMER.items():
        (old, old_key), (section, key) = former.split("."), name.split(".")
        if old_key in _section(content, old):
            _move(content, old, old_key, section, key)
            lines.append(_line(origin, former, name))
    for section in FORMER_SECTIONS:
        if section in content and not content[section]:
            del content[section]
    for section, values in content.items():
        for key in values if isinstance(values, dict) else ():
            values[key], found = _updated(f"{section}.{key}", values[key], origin)
            lines += found
    return lines


def update_overrides(overrides: Iterable[Override], origin: str) -> tuple[tuple[Override, ...], list[str]]:
    """Replace former names in ``overrides``.

    Returns:
        The overrides, and one line for each name that was replaced.

    Raises:
        ConfigError: ``search.parameters`` has a key under its former and its new name.
    """
    updated: list[Override] = []
    lines = []
    for section, key, value in overrides:
        name = f"{section}.{key}"
        if name in FORMER:
            lines.append(_line(origin, name, FORMER[name]))
            name = FORMER[name]
        new_value, found = _updated(name, value, origin)
        section_now, _, key_now = name.partition(".")
        updated.append((section_now, key_now, new_value))
        lines += found
    return tuple(updated), lines


def new_values(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an earlier version recorded as ``section.key`` under the names of now."""
    named = {FORMER.get(name, name): value for name, value in flat.items()}
    return {name: VALUES[name][1] if VALUES.get(name, ("",))[0] == value else value for name, value in named.items()}


def former_values(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of now as an earlier version recorded them."""
    former = {name: old for old, name in FORMER.items()}
    return {
        former.get(name, name): VALUES[name][0] if name in VALUES and value == VALUES[name][1] else value
        for name, value in flat.items()
    }


def _check_one_name(content: Mapping[str, Any], origin: str) -> None:
    both = [
        (former, name)
        for former, name in FORMER.items()
        if all(key in _section(content, section) for section, key in (former.split("."), name.split(".")))
    ]
    if both:
        raise ConfigError("\n".join(_twice(origin, former, name) for former, name in both))


def _updated(name: str, value: Any, origin: str) -> tuple[Any, list[str]]:
    if name in VALUES and value == VALUES[name][0]:
        new = VALUES[name][1]
        return new, [f"{origin}: {name}: {value} is now {new}; the former value works until version 0.3"]
    if name != PARAMETERS or not isinstance(value, dict):
        return value, []
    former = [key for key in value if key in FORMER]
    for key in former:
        if FORMER[key] in value:
            raise ConfigError(_twice(f"{origin}: {PARAMETERS}", key, FORMER[key]))
    renamed = {FORMER.get(key, key): item for key, item in value.items()}
    return renamed if former else value, [_line(f"{origin}: {PARAMETERS}", key, FORMER[key]) for key in former]


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    values = content.get(name)
    return values if isinstance(values, dict) else {}


def _move(content: MutableMapping[str, Any], old: str, old_key: str, section: str, key: str) -> None:
    """Move a value, and the comment beside it."""
    source = content[old]
    if content.get(section) is None:
        content[section] = type(source)()
    place, value = list(source).index(old_key), source[old_key]
    comment = source.ca.items.pop(old_key, None) if isinstance(source, CommentedMap) else None
    del source[old_key]
    target = content[section]
    if isinstance(target, CommentedMap):
        target.insert(place if old == section else len(target), key, value)
        if comment is not None:
            target.ca.items[key] = comment
    else:
        target[key] = value


def _line(origin: str, former: str, name: str) -> str:
    return f"{origin}: {former} is now {name}; the former name works until version 0.3"


def _twice(origin: str, former: str, name: str) -> str:
    return f"{origin}: {name}: expected it once, got it as {former}, its former name, too; delete {former}"
