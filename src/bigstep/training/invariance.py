"""Whether a training depends on how its effective batches are cut, and why."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bigstep.config.train import TrainConfig
from bigstep.data.ordered_batches import ordered_batches
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.errors import ConfigError, RandomnessError
from bigstep.step.batch_norm import BatchLayer, find_batch_layers
from bigstep.step.batch_structure import BatchStructure
from bigstep.step.comparison import compare_passes
from bigstep.step.containers import map_tensors
from bigstep.step.coupling import describe
from bigstep.step.grouping import Groups
from bigstep.step.passes import Passes, SingleSampleError
from bigstep.step.precision import PRECISIONS
from bigstep.training.loop import set_training_mode
from bigstep.training.places import layer_place, named_place, with_place
from bigstep.training.state import TrainingState
from bigstep.user_places import raised_at

__all__ = ["Invariance", "check_slice_invariance", "find_invariance"]


@dataclass(frozen=True)
class Invariance:
    """The verdict, its reason in words, and the layers that look across samples."""

    holds: bool
    reason: str
    layers: tuple[BatchLayer, ...] = ()
    is_coarse: bool = False
    """Whether rounding is that of 16 bits, so that results of other cuts are close, and not nearly the same."""

    @property
    def tags(self) -> dict[str, str]:
        """The tags of a run."""
        return {"slice_invariant": str(self.holds).lower(), "slice_invariant_reason": self.reason}

    @property
    def line(self) -> str:
        """One line for the screen; empty where there is nothing to warn of."""
        if not self.holds:
            return f"not slice-invariant: {self.reason}"
        return f"slice-invariant up to rounding: {self.reason}" if self.is_coarse else ""


def find_invariance(
    model: nn.Module, inputs: Any, *, keyed: bool, loss: Any = None, targets: Any = None, name: str = ""
) -> Invariance:
    """Compare one pass over some samples with passes over parts of them, as the accumulator does on its first batch.

    Args:
        model: as it will be trained, in training mode.
        inputs: three or four samples, on its device.
        keyed: whether its random calls are keyed.
        loss: that it will be trained with; None: the sum of squares of its outputs.
        targets: of the samples.
        name: ``model.name``; of code of the project, whose file and line are named.

    Raises:
        ConfigError: random calls should be keyed and cannot.
    """
    layers = find_batch_layers(model)
    batch = BatchStructure(inputs, inputs if loss is None else targets)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    found, draws = None, True
    try:
        groups = Groups.of(range(batch.num_samples), batch.num_samples)
        passes = Passes(model, loss or _squares, batch, groups, device, seed=0)
        draws = bool(passes.randomness().calls)
        comparison = compare_passes(passes, micro_batch_size=2)
        if not comparison.is_exact:
            found = describe(passes, comparison).partition("; ")[0]  # without the way out
            found = with_place(found, named_place(found, model, loss, name))
    except RandomnessError as error:
        if keyed:
            raise ConfigError(f"{with_place(str(error), raised_at(error))}: set train.keyed_randomness=false") from None
    except SingleSampleError:
        pass
    if layers:
        names = ", ".join(layer.name for layer in layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
        place = layer_place(model, layers[0].name, name)
        reason = f"{layers[0].kind} in {names}{place and f' ({place})'} {layers[0].reason}"
        return Invariance(holds=False, reason=reason, layers=layers)
    if found is not None:
        return Invariance(holds=False, reason=found)
    if draws and not keyed:
        return Invariance(holds=False, reason="the model draws random numbers that are not keyed by sample")
    return Invariance(holds=True, reason="every layer treats samples apart, and every random number is keyed by sample")


def _squares(outputs: Any, targets: Any) -> Tensor:
    tensors: list[Tensor] = []
    map_tensors(tensors.append, outputs)
    squares = [tensor.flatten(1).square().sum(dim=1) for tensor in tensors if len(tensor) == len(targets) and tensor.ndim > 1]
    return torch.stack(squares).sum(dim=0)


def check_slice_invariance(state: TrainingState, train: TrainConfig, store: Store, name: str = "") -> Invariance:
    """Check on three training images whether the micro-batch size can change what is learned; ``name`` is ``model.name``."""
    set_training_mode(state)
    images, labels = next(ordered_batches(store, Split.TRAIN, 3))
    if len(labels) < 2:
        return Invariance(holds=True, reason="there is one training sample, and nothing to cut")
    device = state.classifier.mean.device
    found = find_invariance(
        state.classifier, images.to(device), keyed=train.keyed_randomness, loss=state.loss, targets=labels.to(device), name=name
    )
    return _rounded(found, train.precision)


def _rounded(found: Invariance, precision: str) -> Invariance:
    """Add to a verdict that holds what the precision leaves of it."""
    if not found.holds or PRECISIONS[precision].autocast is None:
        return found
    left = f"with precision {precision} results agree up to rounding to 16 bits, not to the bit"
    return replace(found, reason=f"{found.reason}; {left}", is_coarse=True)
