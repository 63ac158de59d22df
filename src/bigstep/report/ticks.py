"""Axes of charts: where a value is drawn, and which values are written beside."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Axis", "value_text"]


@dataclass(frozen=True)
class Axis:
    """Maps values from ``low`` to ``high`` to places from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: Sequence[float]

    @classmethod
    def over(
        cls,
        values: Iterable[float],
        start: float,
        end: float,
        *,
        log: bool,
        count: int,
        whole: bool = False,
        padded: bool = False,
    ) -> "Axis":
        """Return the axis that holds all values, with about ``count`` ticks; logarithmic ones hold positive values only."""
        kept = [value for value in values if value > 0 or not log] or [1.0]
        low, high = min(kept), max(kept)
        if log:
            low, high = (low / 2, high * 2) if (padded and high / low < 2) or low == high else (low, high)
            return cls(low, high, start, end, log, _log_ticks(low, high, count))
        if low == high:
            room = max(0.5, 1e-9 * abs(low))  # 0.5 is nothing beside a large number
            low, high = low - (room if low else 0.0), high + room
        step = _step((high - low) / count, whole=whole)
        if padded:
            low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        first = math.ceil(low / step - 1e-9)
        ticks = [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
        return cls(low, high, start, end, log, ticks)

    def place(self, value: float) -> float:
        """Return where a value is drawn."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log(max(item, self.low)) for item in (value, low, high))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def value_text(value: float) -> str:
    """Return at most four digits of a number, as short as they can be written."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10_000:
        for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if size >= unit:
                return f"{value / unit:.3g}{name}"
    return f"{value:.0f}" if size >= 1000 else f"{value:.4g}"


def _step(least: float, *, whole: bool) -> float:
    if whole and least <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    return max(step, 1.0) if whole else step


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Return powers of two, or of ten where the values span many."""
    base = 2.0 if high / low < 2.0 ** (2 * count) else 10.0
    first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
    each = max(1, -(-(last - first + 1) // (count + 2)))
    return [base**power for power in range(first, last + 1, each)]
