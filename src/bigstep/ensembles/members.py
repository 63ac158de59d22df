"""The members of an ensemble: trained models in folders, or in MLflow, over the same data."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bigstep.data.ordered_batches import ordered_batches
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.ensembles.measures import Part
from bigstep.errors import ModelError
from bigstep.evaluation.predictions import predict_batches
from bigstep.models.classifier import Classifier
from bigstep.models.ensemble import Ensemble
from bigstep.models.model_files import ModelCard, load_classifier
from bigstep.tasks.targets import CLASSIFICATION
from bigstep.training.setup import task_of_store

__all__ = ["Member", "check_members", "predict_part", "read_members"]

BATCH = 256  # images of a forward pass
SAME = (
    "task",
    "classes",
    "size",
    "channels",
    "sample_shape",
    "sample_dtype",
    "mean",
    "std",
    "data_digest",
    "validation_digest",
    "precision",
)


@dataclass(frozen=True)
class Member:
    """A trained model, its description, and the name that it is shown by."""

    name: str
    classifier: Classifier
    card: ModelCard


def read_members(folders: Sequence[tuple[str, Path]], *, code: str) -> list[Member]:
    """Load each model.

    Args:
        folders: a name for each, and where its ``model.json`` and ``model.safetensors`` are.
        code: as for :func:`load_classifier`.

    Raises:
        ModelError: a model cannot be read, or is an ensemble itself.
    """
    found = []
    for name, folder in folders:
        classifier, card = load_classifier(folder, code=code)
        if not isinstance(classifier, Classifier):
            raise ModelError(f"{name}: expected a single model, got an ensemble of {len(card.members)}; name its members")
        found.append(Member(name, classifier, card))
    return found


def check_members(members: Sequence[Member], store: Store) -> None:
    """Check that there are several models, and that all of them were trained on the project's data.

    Raises:
        ModelError: one line that names the member and the difference.
    """
    if len(members) < 2:
        raise ModelError(f"members: expected at least two models, got {len(members)}; name more of them, or use --seeds 3")
    seen: dict[str, str] = {}
    for member in members:
        known = seen.get(member.card.weights_sha256)
        if known is not None:
            raise ModelError(f"{member.name}: expected other weights than those of {known}, got the same; leave one out")
        seen[member.card.weights_sha256] = member.name
        if member.card.data_digest != store.manifest.digest:
            raise ModelError(
                f"{member.name}: expected a model of the data in data/prepared, got one of other data; train it with "
                "the same data, or leave it out"
            )
        for key in SAME:
            if getattr(member.card, key) != getattr(members[0].card, key):
                raise ModelError(f"{member.name}: expected the same {key} as {members[0].name}, got another; leave it out")


def predict_part(model: Classifier | Ensemble, store: Store, split: Split, device: torch.device) -> Part:
    """Run ``model`` over a part of the data."""
    task = task_of_store(store)
    with _on(model, device):
        found = list(predict_batches(model, task, ordered_batches(store, split, BATCH)))
    predictions = np.concatenate([part for part, _ in found]).astype(np.float64)
    if task.name == CLASSIFICATION:
        predictions /= predictions.sum(axis=1, keepdims=True)
    return Part(predictions, np.concatenate([targets for _, targets in found]))


@contextmanager
def _on(model: Classifier | Ensemble, device: torch.device) -> Iterator[None]:
    """Have one model at a time on the device."""
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")
