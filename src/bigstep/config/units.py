"""Sizes and durations as people write them: 4GiB, 1.5GB, 60s, 10min."""

__all__ = ["DURATION", "DURATION_UNITS", "SIZE", "SIZE_UNITS", "parse_duration", "parse_size"]
SIZE_UNITS = {"B": 1} | {
    f"{letter}{mark}B": base**power for base, mark in ((1000, ""), (1024, "i")) for power, letter in enumerate("KMGT", 1)
}
SIZE = rf"^(auto|none|[0-9]+(\.[0-9]+)? ?({'|'.join(SIZE_UNITS)}))$"
DURATION = r"^(none|[0-9]+(\.[0-9]+)? ?(s|min|h))$"
DURATION_UNITS = {"s": 1, "min": 60, "h": 3600}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``4GiB`` or ``1.5 GB``."""
    digits = text.rstrip("BKMGTi ")
    return int(float(digits) * SIZE_UNITS[text[len(digits) :].strip()])


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as ``60s``, ``10min`` or ``1h``; ``none`` is infinity."""
    if text == "none":
        return float("inf")
    digits = text.rstrip("smhin ")
    return float(digits) * DURATION_UNITS[text[len(digits) :].strip()]
