"""The scores of a model with several labels a sample: a label is predicted where its probability is above one half."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bigstep.evaluation.predictions import check_finite

__all__ = ["LabelAnswers", "LabelScores", "OneLabelScores", "calibration_bins", "score_labels"]


@dataclass(frozen=True)
class OneLabelScores:
    """Scores of one label; ``support`` counts the samples that have it."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class LabelScores:
    """Scores on one split, from 0 to 1; ``loss`` is the mean binary cross-entropy in nats."""

    macro_f1: float
    micro_f1: float
    exact_match: float
    """Share of the samples whose labels are all right."""
    loss: float
    calibration_error: float
    classes: tuple[OneLabelScores, ...]

    @property
    def title(self) -> str:
        """The most important of them, in words."""
        return f"{self.macro_f1:.4f} test macro F1"

    def summary(self) -> dict[str, float]:
        """Return the totals by name."""
        return {
            "macro_f1": self.macro_f1,
            "micro_f1": self.micro_f1,
            "exact_match": self.exact_match,
            "loss": self.loss,
            "calibration_error": self.calibration_error,
        }


@dataclass(frozen=True)
class LabelAnswers:
    """Probabilities and targets of all samples, ``(n, labels)`` in float32 and uint8."""

    probabilities: NDArray[np.float32]
    actual: NDArray[np.uint8]

    @classmethod
    def joined(cls, parts: "list[LabelAnswers]") -> "LabelAnswers":
        """Join the answers of batches, in their order.

        Raises:
            ModelError: a probability is not a finite number.
        """
        probabilities = np.concatenate([part.probabilities for part in parts])
        check_finite(probabilities)
        return cls(probabilities, np.concatenate([part.actual for part in parts]))

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """Which labels each sample is given."""
        return self.probabilities > 0.5

    @property
    def nats(self) -> NDArray[np.float64]:
        """Mean binary cross-entropy of each sample, ``(n,)``."""
        eps = float(np.finfo(np.float64).eps)
        right = np.where(self.actual == 1, self.probabilities.astype(np.float64), 1 - self.probabilities.astype(np.float64))
        nats: NDArray[np.float64] = -np.log(right.clip(eps, 1)).mean(axis=1)
        return nats


def score_labels(answers: LabelAnswers, names: tuple[str, ...], *, num_bins: int) -> LabelScores:
    """Compute the totals, and the scores of each label; what has no answers scores 0."""
    predicted, actual = answers.predicted, answers.actual == 1
    hits, given, support = ((part).sum(axis=0) for part in (predicted & actual, predicted, actual))
    columns = (hits / np.maximum(given, 1), hits / np.maximum(support, 1), 2.0 * hits / np.maximum(given + support, 1))
    bins = calibration_bins(answers, num_bins)
    return LabelScores(
        macro_f1=float(columns[2].mean()),
        micro_f1=float(2.0 * hits.sum() / max(int(given.sum() + support.sum()), 1)),
        exact_match=float((predicted == actual).all(axis=1).mean()),
        loss=float(answers.nats.mean()),
        calibration_error=sum(count * abs(share - mean) for count, mean, share in bins) / answers.probabilities.size,
        classes=tuple(
            OneLabelScores(name, float(precision), float(recall), float(f1), int(count))
            for name, precision, recall, f1, count in zip(names, *columns, support, strict=True)
        ),
    )


def calibration_bins(answers: LabelAnswers, num_bins: int) -> list[tuple[int, float, float]]:
    """Return, for each bin of probabilities with answers, their number, their mean, and how many of them are labels."""
    flat, actual = answers.probabilities.ravel().astype(np.float64), answers.actual.ravel()
    which = np.minimum((flat * num_bins).astype(int), num_bins - 1)
    used = [which == number for number in range(num_bins)]
    return [(int(is_in.sum()), float(flat[is_in].mean()), float(actual[is_in].mean())) for is_in in used if is_in.any()]
