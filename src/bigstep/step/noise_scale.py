"""Gradient noise scale: how large an effective batch must be before its gradient is more signal than noise.

McCandlish et al., An Empirical Model of Large-Batch Training, 2018, appendix A.1. N samples in the effective batch, n_k in
micro-batch k of K, g_k its mean gradient and g that of the whole; S the trace of the covariance of a sample's gradient,
G2 the squared norm of the true gradient, the noise scale S / G2 in samples.
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor

__all__ = ["NoiseSample", "NoiseScale", "NoiseSummary", "advise"]

FAR = 3.0  # times the noise scale, above or below
VAGUE = 1.0  # relative standard error beyond which the value says nothing
LEAST_RATIO = 1.1  # of the effective batch to its first micro-batch, in what they are worth: below it the estimate is noise


@dataclass(frozen=True)
class NoiseSample:
    """Squared norms of one effective batch, on the device.

    Samples of weights w are worth (sum w)^2 / sum w^2 samples of equal weights: as many as they are, if all weigh the same.
    """

    sizes: tuple[float, ...]
    """What each micro-batch that has a weight is worth."""
    total: float
    """What the effective batch is worth."""
    num_samples: int
    """Of the effective batch."""
    whole: Tensor
    """|g|^2."""
    first: Tensor | None
    """|g_1|^2, of the first micro-batch that has a weight."""
    weighted: Tensor | None
    """Sum of n_k |g_k|^2 over all micro-batches, n_k what each is worth."""

    @property
    def is_usable(self) -> bool:
        """Whether the two equations for S and G2 are far enough apart; with very unequal weights they may not be."""
        if self.first is not None:
            return self.total >= LEAST_RATIO * self.sizes[0]
        return len(self.sizes) - sum(self.sizes) / self.total >= LEAST_RATIO - 1

    def estimate(self) -> tuple[float, float]:
        """Return unbiased estimates of S, for samples as they come, and G2; the sizes enter exactly, equal or not.

        Reading them waits for the device once.
        """
        total, whole = self.total, float(self.whole)
        as_they_come = self.num_samples / total
        if self.weighted is not None:
            within = sum(self.sizes)
            trace = (float(self.weighted) - within * whole) / (len(self.sizes) - within / total)
            return trace * as_they_come, whole - trace / total
        assert self.first is not None
        first, size = float(self.first), self.sizes[0]
        trace = (first - whole) / (1 / size - 1 / total)
        return trace * as_they_come, (total * whole - size * first) / (total - size)


@dataclass(frozen=True)
class NoiseSummary:
    """What a training saw: the noise scale in samples, its relative standard error, and the steps that went in."""

    noise_scale: float
    relative_error: float
    num_steps: int


@final
class NoiseScale:
    """Averages S and G2 over steps, and gives the ratio of the averages (an average of ratios would be biased).

    The average forgets: a step counts ``decay`` times as much as the one after it, since the noise scale grows in training.
    """

    def __init__(self, decay: float = 0.99) -> None:
        """Forget by ``decay`` per step, from 0 to below 1; 1 forgets nothing."""
        self.decay = decay
        self._trace = self._gradient = self._weight = self._square_weight = 0.0
        self._cross = [0.0, 0.0, 0.0]
        self.num_steps = 0

    def update(self, sample: NoiseSample) -> None:
        """Add one effective batch."""
        trace, gradient = sample.estimate()
        keep = self.decay
        self._trace = keep * self._trace + trace
        self._gradient = keep * self._gradient + gradient
        self._cross = [
            keep * old + new for old, new in zip(self._cross, (trace**2, trace * gradient, gradient**2), strict=True)
        ]
        self._weight = keep * self._weight + 1
        self._square_weight = keep**2 * self._square_weight + 1
        self.num_steps += 1

    def sums(self) -> list[float]:
        """Return the whole state, for a checkpoint."""
        return [self._trace, self._gradient, self._weight, self._square_weight, *self._cross, float(self.num_steps)]

    def restore(self, sums: list[float]) -> None:
        """Continue from the values of :meth:`sums`."""
        self._trace, self._gradient, self._weight, self._square_weight = sums[:4]
        self._cross, self.num_steps = list(sums[4:7]), int(sums[7])

    @property
    def value(self) -> float | None:
        """The noise scale in samples; None while the averages are not both positive, which too few steps leave them."""
        return self._trace / self._gradient if self._trace > 0 and self._gradient > 0 else None

    def summary(self) -> NoiseSummary | None:
        """Return the value with its standard error (delta method on the ratio of averages), or None if there is no value."""
        if self.value is None or self.num_steps < 2:
            return None
        mean_trace, mean_gradient = self._trace / self._weight, self._gradient / self._weight
        trace2, cross, gradient2 = (item / self._weight for item in self._cross)
        spread = (
            (trace2 - mean_trace**2) / mean_trace**2
            - 2 * (cross - mean_trace * mean_gradient) / (mean_trace * mean_gradient)
            + (gradient2 - mean_gradient**2) / mean_gradient**2
        )
        steps = self._weight**2 / self._square_weight
        return NoiseSummary(self.value, (max(spread, 0.0) / steps) ** 0.5, self.num_steps)


def advise(summary: NoiseSummary | None, effective_batch_size: int, accumulation_steps: int) -> str:
    """Return a sentence on whether the effective batch is far from the noise scale, and what that means for accumulating.

    The noise scale is a rough guide: it is measured along one training, grows over time, knows nothing of the optimizer's
    own averaging, and is doubted as the batch beyond which more does not help (Merrill et al., 2025).
    """
    if accumulation_steps == 1:
        return "The noise scale needs at least two micro-batches a step, and there was one: nothing was accumulated."
    if summary is None or summary.relative_error > VAGUE:
        return (
            "The noise scale could not be estimated from these steps; measure every micro-batch, train longer, or with a "
            "larger effective batch."
        )
    scale, ratio = summary.noise_scale, effective_batch_size / summary.noise_scale
    found = (
        f"The effective batch of {effective_batch_size} is {ratio:.2g} times the gradient noise scale of about {scale:,.0f} "
        f"samples (±{summary.relative_error:.0%})"
    )
    if ratio > FAR:
        return (
            f"{found}: each step averages over more than it needs. A smaller batch with more steps would learn more from the "
            "same samples, and would need less accumulation or none."
        )
    if ratio < 1 / FAR:
        return (
            f"{found}: each step is mostly noise. Accumulating more would give steps that carry a larger learning rate; for "
            "learning from a fixed number of samples the small batch loses nothing."
        )
    return f"{found}: near it, where a larger batch still saves steps and a smaller one still saves samples."
