"""dvc.lock, which DVC writes and every stage reads: by libyaml, ten times as fast as by ruamel.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml.resolver import implicit_resolvers

from bigstep.config.yaml_files import MAX_DEPTH, read_mapping

__all__ = ["load_lock", "read_lock"]

VERSION = (1, 2)  # of YAML, as ruamel.yaml writes it for DVC: `yes` is a text, and 1e-05 a number


class _Loader(yaml.CSafeLoader):  # type: ignore[misc] # no types
    """libyaml's parser, with the plain values of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 # as the class above declares it

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 # as above
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(found) != len(node.value):
            raise ValueError(f"a key twice in line {node.start_mark.line + 1}")
        return found


for _versions, _tag, _pattern, _first in implicit_resolvers:
    if VERSION in _versions and _tag.rpartition(":")[2] in ("bool", "float", "int", "null"):
        _Loader.add_implicit_resolver(_tag, _pattern, _first)


def read_lock(path: Path) -> Mapping[str, Any]:
    """Read dvc.lock into plain values.

    Raises:
        ConfigError: it is missing, is not valid YAML, or is not a mapping.
    """
    return read_mapping(path, load_lock)


def load_lock(text: str) -> Any:
    """Read the text of dvc.lock into plain values.

    Raises:
        ValueError: it is not valid YAML, is nested too deeply, has aliases, or has a key twice.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                raise ValueError(f"an alias, or more than {MAX_DEPTH} levels, in line {event.start_mark.line + 1}")
        return yaml.load(text, Loader=_Loader)  # noqa: S506 # a safe loader
    except yaml.YAMLError as error:
        raise ValueError(str(error).partition("\n")[0]) from None
