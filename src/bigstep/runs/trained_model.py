"""A trained model: its description, and how it is handed to MLflow."""

from pathlib import Path

import numpy as np

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.params import Params
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.models.model_files import ModelCard
from bigstep.tasks.targets import CLASSIFICATION
from bigstep.tracking.tracker import CHAMPION_TAG, ModelRecord
from bigstep.training.state import Best, TrainingState

__all__ = ["model_card", "model_record"]


def model_card(store: Store, state: TrainingState, best: Best, params: Params, batch: BatchSizes) -> ModelCard:
    """Describe the weights of ``best``, so that the model can be rebuilt."""
    manifest, is_class = store.manifest, store.manifest.task == CLASSIFICATION
    return ModelCard(
        model=params.model.model_dump(mode="json"),
        classes=manifest.classes,
        size=manifest.size,
        channels=manifest.channels,
        mean=manifest.mean,
        std=manifest.std,
        precision=params.train.precision,
        effective_batch_size=batch.effective_batch_size,
        epoch=best.epoch + 1,
        num_updates=state.num_updates,
        val_loss=best.loss,
        val_accuracy=best.score if is_class else None,
        data_digest=manifest.digest,
        validation_digest=manifest.digests["validation"],
        task=manifest.task,
        val_score=None if is_class else best.score,
        target_mean=manifest.target_mean,
        target_std=manifest.target_std,
        sample_shape=manifest.sample_shape,
        sample_dtype=manifest.sample_dtype,
    )


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
    if store.manifest.is_image:
        images = np.pad(images, ((0, 0), (1, 2), (0, 1), (0, 0)), mode="edge")
    return ModelRecord(folder, images, card.classes, tags)
