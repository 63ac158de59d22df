"""What a model predicts for the samples of a part, batch by batch."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigstep.errors import ModelError
from bigstep.models.classifier import Classifier
from bigstep.models.ensemble import Ensemble
from bigstep.tasks.task import Task

__all__ = ["Predictions", "check_finite", "predict_batches"]

Predictions = tuple[NDArray[np.float32], NDArray[Any]]  # (n, outputs): probabilities or values; and the targets


@torch.no_grad()
def predict_batches(
    classifier: Classifier | Ensemble, task: Task, batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[Predictions]:
    """Yield what the task predicts ``(n, outputs)``, probabilities or values, and the targets of each batch."""
    device = classifier.mean.device
    classifier.eval()
    for images, targets in batches:
        yield task.predict(classifier(images.to(device))).cpu().numpy(), targets.numpy()


def check_finite(predictions: NDArray[np.float32]) -> None:
    """Refuse predictions that are no numbers.

    Raises:
        ModelError: one is not finite.
    """
    if not np.isfinite(predictions).all():
        raise ModelError("the model: expected finite probabilities on the test set, got NaN; lower train.learning_rate")
