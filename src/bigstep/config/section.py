"""What every section of params.yaml has in common."""

from typing import Annotated, Any, ClassVar

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
    """Return in words what values ``field`` accepts, for error messages and the table of parameters."""
    if isinstance(field.json_schema_extra, dict) and "rule" in field.json_schema_extra:
        return str(field.json_schema_extra["rule"])
    annotation: Any = field.annotation
    for item in field.metadata:
        annotation = Annotated[annotation, item]
    schema = TypeAdapter(annotation).json_schema()
    return " or ".join(dict.fromkeys(_option_rule(option) for option in schema.get("anyOf", [schema])))


def _option_rule(option: dict[str, Any]) -> str:
    if "enum" in option or "const" in option:
        return "one of " + ", ".join(map(str, option.get("enum", [option.get("const")])))
    kind = str(option["type"])
    if kind == "array":
        items = option.get("items") or option["prefixItems"][0]
        count = f"{option['minItems']} " if "maxItems" in option else ""
        return f"list of {count}numbers{_limits(items)}"
    if kind == "string":
        return "non-empty string" if option.get("minLength") else "string"
    names = {"integer": "integer", "number": "number", "boolean": "true or false", "null": "null"}
    return names[kind] + _limits(option)


def _limits(schema: dict[str, Any]) -> str:
    words = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    text = " and ".join(f"{word} {schema[name]:g}" for name, word in words.items() if name in schema)
    return f" {text}" if text else ""
