"""A line of a spool's journal, checked: a disk or a hand may have damaged it."""

from typing import Any

from bigstep.atomic_files import parse_json

__all__ = ["read_entry"]

FIELDS: dict[str, dict[str, type]] = {
    "params": {"values": dict},
    "metrics": {"rows": list},
    "tags": {"values": dict},
    "dataset": {"values": dict},
    "file": {"path": str, "folder": str},
    "model": {"path": str, "example": list, "classes": list, "tags": dict},
    "promote": {"name": str, "weights_sha256": str},
    "continues": {"run_id": str},
    "finish": {"status": str},
}


def read_entry(line: bytes) -> dict[str, Any] | None:
    """Return the entry that a line holds; None if there is no entry, or a field is missing."""
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("entry"), str):
        return None
    fields = FIELDS.get(entry["entry"], {})
    if not all(isinstance(entry.get(name), kind) for name, kind in fields.items()):
        return None
    return entry if entry["entry"] != "metrics" or all(map(_is_row, entry["rows"])) else None


def _is_row(row: object) -> bool:
    """Return whether ``row`` is a metric's key, value, step and time."""
    if not isinstance(row, list) or len(row) != 4:
        return False
    key, value, step, timestamp = row
    return isinstance(key, str) and isinstance(value, int | float) and isinstance(step, int) and isinstance(timestamp, int)
