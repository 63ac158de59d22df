"""Evaluate a trained classifier on the test set, batch by batch, with the metrics of scikit-learn and torchmetrics.

The matrix of all probabilities is never held: 200,000 images of 1,000 classes would take 1.6 GB.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigstep.models.classifier import Classifier

__all__ = ["Answers", "ClassScores", "Scores", "predict_probabilities", "score"]

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
        """Compare probabilities ``(n, num_classes)`` with class indices ``(n,)``."""
        from scipy.special import xlogy

        rows, predicted = np.arange(len(labels)), probabilities.argmax(axis=1)
        double = probabilities.astype(np.float64)
        double /= double.sum(axis=1, keepdims=True)
        eps = np.finfo(np.float64).eps  # as scikit-learn's log_loss
        nats = -xlogy(1.0, np.clip(double[rows, labels], eps, 1 - eps))
        likeliest = np.argsort(double, axis=1, kind="mergesort")[:, ::-1][:, :TOP]  # as scikit-learn's top_k_accuracy_score
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


@torch.no_grad()
def predict_probabilities(
    classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Yield class probabilities ``(n, num_classes)`` and class indices ``(n,)`` of each batch."""
    device = classifier.mean.device
    classifier.eval()
    for images, labels in batches:
        yield classifier(images.to(device)).float().softmax(dim=1).cpu().numpy(), labels.numpy()


def score(answers: Answers, classes: tuple[str, ...], *, calibration_bins: int) -> Scores:
    """Compute the totals, and the scores of each class.

    The calibration error is the expected one of Guo et al. (2017), with equal-width bins of the largest probability.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support
    from torchmetrics.functional.classification import multiclass_calibration_error

    labels, predicted = answers.labels, answers.predicted
    rows = precision_recall_fscore_support(labels, predicted, labels=list(range(len(classes))), zero_division=0)
    right = torch.from_numpy((labels != predicted).astype(np.int64))  # as the class of two: 0 is the answer, 1 any other
    confidence = torch.from_numpy(answers.confidence)
    two = torch.stack((confidence, torch.zeros_like(confidence)), dim=1)
    return Scores(
        accuracy=float(accuracy_score(labels, predicted)),
        top5_accuracy=float(np.average(answers.is_in_top5)) if len(classes) > TOP else 1.0,  # any answer is among five of five
        loss=float(np.average(answers.nats)),
        macro_f1=float(np.mean(rows[2])),
        calibration_error=float(multiclass_calibration_error(two, right, num_classes=2, n_bins=calibration_bins)),
        classes=tuple(
            ClassScores(name, float(precision), float(recall), float(f1), int(support))
            for name, precision, recall, f1, support in zip(classes, *rows, strict=True)
        ),
    )
