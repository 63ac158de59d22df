"""Choose a micro-batch size from measured speed and memory."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = [
    "GAIN",
    "Plan",
    "PlannedSlicing",
    "SizeMeasurement",
    "ThroughputCurve",
    "candidate_sizes",
    "choose",
    "choose_curve",
    "measure_until_flat",
]

GAIN = 1.03  # a size must be this much faster than the best before it to be a gain
NEAR = 0.97  # of the fastest: as good, and the smaller micro-batch needs less memory


@dataclass(frozen=True)
class SizeMeasurement:
    """One micro-batch size: samples per second, growth of the process at its peak, predicted bytes of tensors."""

    micro_batch_size: int
    samples_per_second: float
    resident_growth_bytes: int
    predicted_bytes: int


@dataclass(frozen=True)
class PlannedSlicing:
    """A slicing of an effective batch."""

    effective_batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    samples_per_second: float


def candidate_sizes(effective_batch_size: int) -> tuple[int, ...]:
    """Return the micro-batch sizes to try: powers of two below the effective batch, and itself."""
    sizes = [1]
    while sizes[-1] * 2 < effective_batch_size:
        sizes.append(sizes[-1] * 2)
    return tuple(dict.fromkeys([*sizes, effective_batch_size]))


def measure_until_flat(sizes: Sequence[int], measure: Callable[[int], SizeMeasurement]) -> Iterator[SizeMeasurement]:
    """Measure size by size until two in a row are no faster than the best before them."""
    best, without_gain = 0.0, 0
    for size in sizes:
        rung = measure(size)
        yield rung
        without_gain = 0 if rung.samples_per_second > best * GAIN else without_gain + 1
        best = max(best, rung.samples_per_second)
        if without_gain == 2:
            return


def choose(rungs: Sequence[SizeMeasurement], effective_batch_size: int, limit_bytes: int | None) -> PlannedSlicing | None:
    """Return the smallest of the sizes that fit ``limit_bytes`` and are nearly as fast as the fastest; None if none fits.

    The effective batch stays exact: the last micro-batches may hold one sample less.
    """
    fitting = [rung for rung in rungs if limit_bytes is None or rung.resident_growth_bytes <= limit_bytes]
    if not fitting:
        return None
    fastest = max(rung.samples_per_second for rung in fitting)
    chosen = min(
        (rung for rung in fitting if rung.samples_per_second >= NEAR * fastest), key=lambda rung: rung.micro_batch_size
    )
    size = min(chosen.micro_batch_size, effective_batch_size)
    return PlannedSlicing(effective_batch_size, size, -(-effective_batch_size // size), chosen.samples_per_second)


@dataclass(frozen=True)
class ThroughputCurve:
    """Measurements of one precision and memory format.

    ``complete``: they end before the whole batch, since larger sizes gained nothing, did not fit or took too long to measure.
    """

    precision: str
    memory_format: str
    update_seconds: float
    rungs: tuple[SizeMeasurement, ...]
    complete: bool


def choose_curve(
    curves: Sequence[ThroughputCurve], effective_batch_size: int, limit_bytes: int | None
) -> tuple[ThroughputCurve, PlannedSlicing] | None:
    """Return the curve and the size of :func:`choose` among all curves; of two curves with that size the faster one."""
    rungs = [rung for curve in curves for rung in curve.rungs]
    choice = choose(rungs, effective_batch_size, limit_bytes)
    if choice is None:
        return None
    found = [(rung, curve) for curve in curves for rung in curve.rungs]
    same = [pair for pair in found if min(pair[0].micro_batch_size, effective_batch_size) == choice.micro_batch_size]
    rung, curve = max(same, key=lambda pair: pair[0].samples_per_second)
    return curve, replace(choice, samples_per_second=rung.samples_per_second)


@dataclass(frozen=True)
class Plan:
    """All curves, those of the configured precision and format first, and the folder of the files."""

    key: str
    folder: Path
    ladders: tuple[ThroughputCurve, ...]
    others: bool
    """Whether other precisions and formats were measured too, as far as time allowed."""

    def curves(self, formats: Collection[str]) -> tuple[ThroughputCurve, ...]:
        """Return the curves of the configured precision in these memory formats."""
        precision = self.ladders[0].precision
        return tuple(item for item in self.ladders if item.precision == precision and item.memory_format in formats)
