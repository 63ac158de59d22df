"""How members are weighed and calibrated on the validation part."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["choose_greedily", "fit_temperature", "mean_nats", "nats"]

Probabilities = NDArray[np.float64]  # (n, num_classes)
Labels = NDArray[np.int64]  # (n,)
TINY = float(np.finfo(np.float32).tiny)
ROUNDS_PER_MEMBER = 3
LOWEST, HIGHEST, HALVINGS = 0.1, 10.0, 60  # of the temperature, and of the interval that it is in


def mean_nats(probabilities: Probabilities, labels: Labels) -> float:
    """Return the mean negative log-likelihood of the true classes."""
    return float(np.mean(nats(probabilities, labels)))


def nats(probabilities: Probabilities, labels: Labels) -> NDArray[np.float64]:
    """Return the negative log-likelihood of each sample's true class, shape ``(n,)``."""
    return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], TINY))


def choose_greedily(members: Sequence[Probabilities], labels: Labels) -> tuple[int, ...]:
    """Choose how often each member counts: start with the best, and add the one that helps most as long as one helps.

    Members may be chosen again (Caruana et al., 2004), which weighs them.

    Args:
        members: probabilities of each on the validation part.
        labels: their classes.

    Returns:
        One count for each member, some of them 0.
    """
    counts = [0] * len(members)
    total, best = np.zeros_like(members[0]), float("inf")
    for size in range(1, ROUNDS_PER_MEMBER * len(members) + 1):
        values = [mean_nats((total + member) / size, labels) for member in members]
        chosen = int(np.argmin(values))
        if values[chosen] >= best:
            break
        best, total = values[chosen], total + members[chosen]
        counts[chosen] += 1
    return tuple(counts)


def fit_temperature(probabilities: Probabilities, labels: Labels) -> float:
    """Return the temperature with the lowest negative log-likelihood; dividing the logits by it calibrates them.

    The likelihood has one minimum over 1 / temperature, so an interval around it is made smaller and smaller.
    """
    logits = np.log(np.maximum(probabilities, TINY))
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(HALVINGS):
        third = (high - low) / 3
        left, right = low + third, high - third
        if _nats_of(logits * left, labels) < _nats_of(logits * right, labels):
            high = right
        else:
            low = left
    return 2 / (low + high)


def _nats_of(logits: NDArray[np.float64], labels: Labels) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))
