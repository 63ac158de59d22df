"""Sizes and durations as people write them: 4GiB, 1.5GB, 60s, 10min."""

from pydantic import ByteSize, TypeAdapter

__all__ = ["DURATION", "DURATION_UNITS", "SIZE", "SIZE_UNITS", "parse_duration", "parse_size"]
SIZE_UNITS = ("B", *(f"{letter}{mark}B" for mark in ("", "i") for letter in "KMGT"))
SIZE = rf"^(auto|none|[0-9]+(\.[0-9]+)? ?({'|'.join(SIZE_UNITS)}))$"
DURATION = r"^(none|[0-9]+(\.[0-9]+)? ?(s|min|h))$"
DURATION_UNITS = {"s": 1, "min": 60, "h": 3600}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``4GiB`` or ``1.5 GB``."""
    return int(TypeAdapter(ByteSize).validate_python(text))


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as ``60s``, ``10min`` or ``1h``; ``none`` is infinity."""
    if text == "none":
        return float("inf")
    digits = text.rstrip("smhin ")
    return float(digits) * DURATION_UNITS[text[len(digits) :].strip()]
