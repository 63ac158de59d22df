"""The scores of a classifier on the test set, from its probabilities batch by batch.

The scores are those of scikit-learn and torchmetrics, to the bit; importing either takes seconds. The matrix of all
probabilities is never held: 200,000 images of 1,000 classes would take 1.6 GB.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigstep.evaluation.predictions import check_finite

__all__ = ["Answers", "ClassScores", "Scores", "confusion_matrix", "score"]

TOP = 5


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class; ``support`` counts its samples."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """Scores on one split; all are from 0 to 1, but ``loss`` is the mean negative log-likelihood in nats."""

    accuracy: float
    top5_accuracy: float | None
    """None with five classes or fewer, where it is always 1."""
    loss: float
    macro_f1: float
    calibration_error: float
    classes: tuple[ClassScores, ...]

    @property
    def title(self) -> str:
        """The most important of them, in words."""
        return f"{self.accuracy:.2%} test accuracy"

    def summary(self) -> dict[str, float]:
        """Return the totals by name."""
        totals = {
            "accuracy": self.accuracy,
            "top5_accuracy": self.top5_accuracy,
            "loss": self.loss,
            "macro_f1": self.macro_f1,
            "calibration_error": self.calibration_error,
        }
        return {name: value for name, value in totals.items() if value is not None}


@dataclass(frozen=True)
class Answers:
    """What is kept of a classifier's answers: a few numbers for each image, however many classes; arrays of shape ``(n,)``."""

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    p_actual: NDArray[np.float32]
    """Probability of the true class."""
    p_predicted: NDArray[np.float32]
    confidence: NDArray[np.float64]
    """The largest probability, of probabilities whose sum is 1 in float64."""
    nats: NDArray[np.float64]
    """Negative log-likelihood of the true class."""
    is_in_top5: NDArray[np.bool_]

    @classmethod
    def of(cls, probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> "Answers":
        """Compare probabilities ``(n, num_classes)`` with class indices ``(n,)``.

        Raises:
            ModelError: a probability is not a finite number.
        """
        check_finite(probabilities)
        rows, predicted = np.arange(len(labels)), probabilities.argmax(axis=1)
        double = probabilities.astype(np.float64)
        double /= double.sum(axis=1, keepdims=True)
        eps = float(np.finfo(np.float64).eps)
        given = double[rows, labels].clip(eps, 1 - eps)
        nats = np.array([-math.log(value) for value in given])  # np.log rounds by the processor's instructions
        likeliest = np.argsort(double, axis=1, kind="stable")[:, ::-1][:, :TOP]
        return cls(
            labels,
            predicted,
            probabilities[rows, labels],
            probabilities[rows, predicted],
            double.max(axis=1),
            nats,
            (likeliest == labels[:, None]).any(axis=1),
        )

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        """Join the answers of batches, in their order."""
        return cls(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(cls)))


def score(answers: Answers, classes: tuple[str, ...], *, calibration_bins: int) -> Scores:
    """Compute the totals, and the scores of each class.

    The calibration error is the expected one of Guo et al. (2017), with equal-width bins of the largest probability.
    """
    labels, predicted = answers.labels, answers.predicted
    classes_scores = _score_classes(confusion_matrix(labels, predicted, len(classes)), classes)
    right = torch.from_numpy(labels == predicted)
    return Scores(
        accuracy=float(np.mean(labels == predicted)),
        top5_accuracy=float(np.mean(answers.is_in_top5)) if len(classes) > TOP else None,
        loss=float(np.mean(answers.nats)),
        macro_f1=float(np.mean([item.f1 for item in classes_scores])),
        calibration_error=_calibration_error(torch.from_numpy(answers.confidence), right, calibration_bins),
        classes=classes_scores,
    )


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Count the samples of each class (row) by the class predicted for them (column)."""
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.astype(np.int64).reshape(num_classes, num_classes)


def _score_classes(matrix: NDArray[np.int64], classes: tuple[str, ...]) -> tuple[ClassScores, ...]:
    hits, answers, support = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
    columns = (hits / np.maximum(answers, 1), hits / np.maximum(support, 1), 2.0 * hits / np.maximum(answers + support, 1))
    return tuple(
        ClassScores(name, float(precision), float(recall), float(f1), int(count))
        for name, precision, recall, f1, count in zip(classes, *columns, support, strict=True)
    )


def _calibration_error(confidences: Tensor, right: Tensor, num_bins: int) -> float:
    """Sum over the bins: share of the samples, times the distance between accuracy and mean confidence; in float32."""
    confidences, right = confidences.float(), right.float()
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float32)
    which = torch.bucketize(confidences, edges, right=True) - 1  # a confidence of exactly 1 has a bin of its own
    counts, accuracy, confidence = (
        torch.zeros(num_bins + 1).scatter_add_(0, which, values) for values in (torch.ones_like(right), right, confidences)
    )
    distances = ((accuracy / counts).nan_to_num() - (confidence / counts).nan_to_num()).abs()
    return float((distances * (counts / counts.sum())).sum())
