"""Whether a training depends on how its effective batches are cut, and why."""

import contextlib
from dataclasses import dataclass

from torch import Tensor, nn

from bigstep.config.train import TrainConfig
from bigstep.data.ordered_batches import ordered_batches
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.errors import ConfigError, RandomnessError
from bigstep.step.batch_norm import BatchLayer, find_batch_layers
from bigstep.step.random_calls import find_random_calls
from bigstep.training.loop import set_training_mode
from bigstep.training.state import TrainingState

__all__ = ["Invariance", "check_slice_invariance", "find_invariance"]


@dataclass(frozen=True)
class Invariance:
    """The verdict, its reason in words, and the layers that look across samples."""

    holds: bool
    reason: str
    layers: tuple[BatchLayer, ...] = ()


def find_invariance(model: nn.Module, inputs: Tensor, *, keyed: bool) -> Invariance:
    """Look at a model in training mode.

    Args:
        model: as it will be trained.
        inputs: some samples, on its device.
        keyed: whether its random calls are keyed.

    Raises:
        ConfigError: they should be keyed and cannot.
    """
    layers = find_batch_layers(model)
    try:
        draws = len(find_random_calls(model, inputs, contextlib.nullcontext))
    except RandomnessError as error:
        if keyed:
            raise ConfigError(f"{error}: set train.keyed_randomness=false") from None
        draws = 1
    if layers:
        names = ", ".join(layer.name for layer in layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
        return Invariance(holds=False, reason=f"{layers[0].kind} in {names} {layers[0].reason}", layers=layers)
    if draws and not keyed:
        return Invariance(holds=False, reason="the model draws random numbers that are not keyed by sample")
    return Invariance(holds=True, reason="every layer treats samples apart, and every random number is keyed by sample")


def check_slice_invariance(state: TrainingState, train: TrainConfig, store: Store) -> Invariance:
    """Check on three training images whether the micro-batch size can change what is learned."""
    set_training_mode(state)
    images, _ = next(ordered_batches(store, Split.TRAIN, 3))
    return find_invariance(state.classifier, images.to(state.classifier.mean.device), keyed=train.keyed_randomness)
