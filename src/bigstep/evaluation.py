"""Evaluate a trained classifier on the test set, with the metrics of scikit-learn and torchmetrics."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigstep.models.classifier import Classifier

__all__ = ["ClassScores", "Scores", "predict_probabilities", "score"]


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
    """
    from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support, top_k_accuracy_score
    from torchmetrics.functional.classification import multiclass_calibration_error

    indices = list(range(len(classes)))
    predicted = probabilities.argmax(axis=1)
    double = probabilities.astype(np.float64)
    double /= double.sum(axis=1, keepdims=True)
    rows = precision_recall_fscore_support(labels, predicted, labels=indices, zero_division=0)
    calibration = multiclass_calibration_error(
        torch.from_numpy(double), torch.from_numpy(labels), num_classes=len(classes), n_bins=calibration_bins
    )
    return Scores(
        accuracy=float(accuracy_score(labels, predicted)),
        top5_accuracy=_top_k(double, labels, indices, top_k_accuracy_score),
        loss=float(log_loss(labels, double, labels=indices)),
        macro_f1=float(np.mean(rows[2])),
        calibration_error=float(calibration),
        classes=tuple(
            ClassScores(name, float(precision), float(recall), float(f1), int(support))
            for name, precision, recall, f1, support in zip(classes, *rows, strict=True)
        ),
    )


def _top_k(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], indices: list[int], function: Callable[..., float]
) -> float:
    if len(indices) <= 5:
        return 1.0  # any answer is among the five likeliest of at most five classes
    return float(function(labels, probabilities, k=5, labels=indices))
