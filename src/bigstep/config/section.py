"""What every section of params.yaml has in common."""

from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic.fields import FieldInfo

__all__ = ["Section", "rule_of"]


class Section(BaseModel):
    """A frozen section of params.yaml.

    ``learning`` says whether its keys decide what is learned (DVC follows them) or only speed, memory and bookkeeping.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    title: ClassVar[str]
    learning: ClassVar[bool]


def rule_of(field: FieldInfo) -> str:
    """Say in words what a value of ``field`` must be, as the error messages and the table in the README do."""
    bounds = _bounds(field.metadata)
    schema = _json_schema(field)
    options = schema.get("anyOf", [schema])
    return " or ".join(dict.fromkeys(_option_rule(option, bounds) for option in options))


def _json_schema(field: FieldInfo) -> dict[str, Any]:
    annotation: Any = field.annotation
    return TypeAdapter(annotation).json_schema()


def _option_rule(option: dict[str, Any], outer: str) -> str:
    if "enum" in option or "const" in option:
        return "one of " + ", ".join(map(str, option.get("enum", [option.get("const")])))
    kind = option.get("type")
    if kind == "null":
        return "null"
    if kind == "array":
        items = option.get("items") or option["prefixItems"][0]
        count = f"{option['minItems']} " if "maxItems" in option else ""
        return f"a list of {count}numbers{_limits(items)}"
    if kind == "string" and option.get("minLength"):
        return "a text that is not empty"
    names = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}
    return names[str(kind)] + (_limits(option) or (outer if kind in ("integer", "number") else ""))


def _limits(schema: dict[str, Any]) -> str:
    words = {
        "exclusiveMinimum": "above",
        "minimum": "of at least",
        "exclusiveMaximum": "below",
        "maximum": "of at most",
    }
    return _join(f"{word} {schema[name]:g}" for name, word in words.items() if name in schema)


def _bounds(metadata: Iterable[object]) -> str:
    words = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
    return _join(
        f"{words[name]} {getattr(item, name):g}" for item in metadata for name in words if getattr(item, name, None) is not None
    )


def _join(parts: Iterable[str]) -> str:
    text = " and ".join(parts)
    return f" {text}" if text else ""
