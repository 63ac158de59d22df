"""Evaluate a trained classifier on the test set.

The scores are those of scikit-learn and torchmetrics, to the bit; importing either takes seconds.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigstep.errors import ModelError
from bigstep.models.classifier import Classifier

__all__ = ["ClassScores", "Scores", "confusion_matrix", "predict_probabilities", "score"]


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
    top5_accuracy: float
    loss: float
    macro_f1: float
    calibration_error: float
    classes: tuple[ClassScores, ...]

    def summary(self) -> dict[str, float]:
        """Return the totals by name."""
        return {
            "accuracy": self.accuracy,
            "top5_accuracy": self.top5_accuracy,
            "loss": self.loss,
            "macro_f1": self.macro_f1,
            "calibration_error": self.calibration_error,
        }


@torch.no_grad()
def predict_probabilities(classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]]) -> NDArray[np.float32]:
    """Return class probabilities, shape ``(n, num_classes)``, in the order of the batches."""
    device = classifier.mean.device
    classifier.eval()
    parts = [classifier(images.to(device)).float().softmax(dim=1).cpu() for images, _ in batches]
    probabilities: NDArray[np.float32] = torch.cat(parts).numpy()
    return probabilities


def score(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], classes: tuple[str, ...], *, calibration_bins: int
) -> Scores:
    """Compare probabilities ``(n, num_classes)`` with class indices ``(n,)``.

    The calibration error is the expected one of Guo et al. (2017), with equal-width bins of the largest probability.

    Raises:
        ModelError: a probability is not a finite number.
    """
    if not np.isfinite(probabilities).all():
        raise ModelError("the model: expected finite probabilities on the test set, got NaN; lower train.learning_rate")
    predicted = probabilities.argmax(axis=1)
    double = probabilities.astype(np.float64)
    double /= double.sum(axis=1, keepdims=True)
    classes_scores = _score_classes(confusion_matrix(labels, predicted, len(classes)), classes)
    return Scores(
        accuracy=float(np.mean(labels == predicted)),
        top5_accuracy=_top_k(double, labels),
        loss=_log_loss(double, labels),
        macro_f1=float(np.mean([item.f1 for item in classes_scores])),
        calibration_error=_calibration_error(torch.from_numpy(double), torch.from_numpy(labels), calibration_bins),
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


def _top_k(probabilities: NDArray[np.float64], labels: NDArray[np.int64], k: int = 5) -> float:
    likeliest = np.argsort(probabilities, axis=1, kind="stable")[:, ::-1][:, :k]
    return float(np.mean((likeliest == labels[:, None]).any(axis=1)))


def _log_loss(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    eps = float(np.finfo(np.float64).eps)
    given = probabilities[np.arange(len(labels)), labels].clip(eps, 1 - eps)
    return float(np.mean([-math.log(value) for value in given]))  # np.log rounds by the processor's instructions


def _calibration_error(probabilities: Tensor, labels: Tensor, num_bins: int) -> float:
    """Sum over the bins: share of the samples, times the distance between accuracy and mean confidence; in float32."""
    confidences, predicted = probabilities.max(dim=1)
    confidences, right = confidences.float(), predicted.eq(labels).float()
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float32)
    which = torch.bucketize(confidences, edges, right=True) - 1  # a confidence of exactly 1 has a bin of its own
    counts, accuracy, confidence = (
        torch.zeros(num_bins + 1).scatter_add_(0, which, values) for values in (torch.ones_like(right), right, confidences)
    )
    distances = ((accuracy / counts).nan_to_num() - (confidence / counts).nan_to_num()).abs()
    return float((distances * (counts / counts.sum())).sum())
