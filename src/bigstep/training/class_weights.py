"""The key ``train.class_weights`` into numbers."""

import numpy as np
import torch

from bigstep.config.train import TrainConfig
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.errors import ConfigError

__all__ = ["class_weights"]


def class_weights(train: TrainConfig, store: Store) -> torch.Tensor | None:
    """Return the weights that ``train.class_weights`` means for the data, shape ``(num_classes,)``.

    Raises:
        ConfigError: there are not as many as classes.
    """
    if train.class_weights is None:
        return None
    classes = store.manifest.classes
    if train.class_weights == "balanced":
        counts = np.bincount(store.labels[store.indices(Split.TRAIN)], minlength=len(classes))
        return torch.from_numpy(counts.sum() / (len(classes) * counts))  # as scikit-learn's class_weight="balanced"
    if len(train.class_weights) != len(classes):
        raise ConfigError(
            f"train.class_weights: expected one weight for each of the {len(classes)} classes, got "
            f"{len(train.class_weights)}; write {len(classes)} numbers, or balanced"
        )
    return torch.tensor(train.class_weights, dtype=torch.float64)
