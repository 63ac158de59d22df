"""A trained model in the form that is served: raw samples in, what its task predicts out."""

from typing import final

from torch import Tensor, nn

from bigstep.models.classifier import Classifier, ServedClassifier
from bigstep.models.ensemble import Ensemble
from bigstep.models.model_files import ModelCard
from bigstep.tasks.task import Task

__all__ = ["ServedArrays", "serve"]


@final
class ServedArrays(nn.Module):
    """Samples that are no images in, what the task predicts out."""

    def __init__(self, classifier: Classifier | Ensemble, task: Task) -> None:
        """Wrap ``classifier``."""
        super().__init__()
        self.classifier = classifier
        self.task = task

    def forward(self, samples: Tensor) -> Tensor:
        """Map samples ``(n, ...)`` to probabilities or values ``(n, outputs)`` in float32."""
        return self.task.predict(self.classifier(samples))


def serve(classifier: Classifier | Ensemble, card: ModelCard) -> nn.Module:
    """Return what is served, in evaluation mode."""
    if card.sample_shape:
        return ServedArrays(classifier, card.output).eval()
    return ServedClassifier(classifier, card.size, card.output).eval()
