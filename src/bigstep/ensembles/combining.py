"""How members are weighed and calibrated on the validation part."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["choose_greedily", "fit_label_temperature", "fit_temperature", "label_nats", "mean_nats", "nats"]

Probabilities = NDArray[np.float64]  # (n, num_classes)
Labels = NDArray[np.int64]  # (n,)
HasLabel = NDArray[np.uint8]  # (n, labels), with probabilities of the same shape
TINY = float(np.finfo(np.float32).tiny)
ROUNDS_PER_MEMBER = 3
LOWEST, HIGHEST, HALVINGS = 0.1, 10.0, 60  # of the temperature, and of the interval that it is in


def mean_nats(probabilities: Probabilities, labels: Labels) -> float:
    """Return the mean negative log-likelihood of the true classes."""
    return float(np.mean(nats(probabilities, labels)))


def nats(probabilities: Probabilities, labels: Labels) -> NDArray[np.float64]:
    """Return the negative log-likelihood of each sample's true class, shape ``(n,)``."""
    return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], TINY))


def label_nats(probabilities: Probabilities, has_label: HasLabel) -> NDArray[np.float64]:
    """Return the binary cross-entropy of each sample, averaged over its labels, shape ``(n,)``."""
    right = np.where(has_label == 1, probabilities, 1 - probabilities)
    found: NDArray[np.float64] = -np.log(np.maximum(right, TINY)).mean(axis=1)
    return found


def choose_greedily(members: Sequence[NDArray[np.float64]], loss: Callable[[NDArray[np.float64]], float]) -> tuple[int, ...]:
    """Choose how often each member counts: start with the best, and add the one that helps most as long as one helps.

    Members may be chosen again (Caruana et al., 2004), which weighs them.

    Args:
        members: predictions of each on the validation part.
        loss: of the mean of some of them.

    Returns:
        One count for each member, some of them 0.
    """
    counts = [0] * len(members)
    total, best = np.zeros_like(members[0]), float("inf")
    for size in range(1, ROUNDS_PER_MEMBER * len(members) + 1):
        values = [loss((total + member) / size) for member in members]
        chosen = int(np.argmin(values))
        if values[chosen] >= best:
            break
        best, total = values[chosen], total + members[chosen]
        counts[chosen] += 1
    return tuple(counts)


def fit_temperature(probabilities: Probabilities, labels: Labels) -> float:
    """Return the temperature with the lowest negative log-likelihood; dividing the logits by it calibrates them."""
    logits = np.log(np.maximum(probabilities, TINY))
    return _fit(lambda scale: _nats_of(logits * scale, labels))


def fit_label_temperature(probabilities: Probabilities, has_label: HasLabel) -> float:
    """Return the one temperature of all labels with the lowest binary cross-entropy."""
    logits = np.log(np.maximum(probabilities, TINY)) - np.log(np.maximum(1 - probabilities, TINY))
    against = np.where(has_label == 1, -logits, logits)
    return _fit(lambda scale: float(np.logaddexp(0, against * scale).mean()))


def _fit(nats_at: Callable[[float], float]) -> float:
    """Return the temperature at whose inverse the function is lowest.

    A likelihood has one minimum over 1 / temperature, so an interval around it is made smaller and smaller.
    """
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(HALVINGS):
        third = (high - low) / 3
        left, right = low + third, high - third
        if nats_at(left) < nats_at(right):
            high = right
        else:
            low = left
    return 2 / (low + high)


def _nats_of(logits: NDArray[np.float64], labels: Labels) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))
