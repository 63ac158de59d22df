"""What every section of params.yaml has in common."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic.fields import FieldInfo

from bigstep.user_code import is_user_code

__all__ = ["Named", "Section", "code_of", "named_items", "rule_of"]

Named = str | dict[str, dict[str, Any]]  # a name, with or without arguments


class Section(BaseModel):
    """A frozen section of params.yaml.

    ``learning`` says whether its keys decide what is learned (DVC follows them) or only speed, memory and bookkeeping.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    title: ClassVar[str]
    learning: ClassVar[bool]


def named_items(value: Named) -> list[tuple[str, dict[str, Any]]]:
    """Return names with their arguments."""
    return [(value, {})] if isinstance(value, str) else list(value.items())


def code_of(value: Any) -> list[str]:
    """Return the names of the user's own code in a value: in lists, and in mappings of names to arguments."""
    if isinstance(value, str):
        return [value] if is_user_code(value) else []
    if isinstance(value, dict):
        return [name for key, inner in value.items() for name in (*code_of(key), *code_of(inner))]
    return [name for item in value for name in code_of(item)] if isinstance(value, list | tuple) else []


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
