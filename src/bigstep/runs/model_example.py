"""How a trained model is handed to MLflow."""

from pathlib import Path

import numpy as np

from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.models.model_files import ModelCard
from bigstep.tracking.tracker import CHAMPION_TAG, ModelRecord

__all__ = ["model_record"]


def model_record(folder: Path, store: Store, card: ModelCard) -> ModelRecord:
    """Describe the model in ``folder``, with two validation images of another size than the model's as an example."""
    images = np.asarray(store.images[store.indices(Split.VALIDATION)[:2]])
    tags = {
        "bigstep.weights_sha256": card.weights_sha256,
        "bigstep.validation_digest": card.validation_digest,
        "bigstep.val_loss": repr(card.val_loss),
        f"bigstep.val_{card.output.score}": repr(card.score),
    }
    if card.output.champion != "val_loss":
        tags[CHAMPION_TAG] = card.output.champion
    return ModelRecord(folder, np.pad(images, ((0, 0), (1, 2), (0, 1), (0, 0)), mode="edge"), card.classes, tags)
