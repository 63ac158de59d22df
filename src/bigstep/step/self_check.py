"""The accumulator's check of the user's own model: on the first batch, a few samples in one pass and cut must agree."""

import re
import warnings
from typing import Any, final

import torch
from torch import Tensor, nn

from bigstep.errors import ExactnessError, ExactnessWarning, RandomnessError
from bigstep.step.batch_norm import find_batch_layers
from bigstep.step.batch_structure import BatchStructure
from bigstep.step.comparison import compare_passes
from bigstep.step.coupling import describe
from bigstep.step.grouping import choose_groups
from bigstep.step.passes import Passes, SingleSampleError
from bigstep.step.processes import is_sharded, unwrapped

__all__ = ["SelfCheck"]

OTHER_TYPE = re.compile("dtype|scalar type|Input type|fp16|bf16|half", re.IGNORECASE)  # in torch's messages
MAX_TRIES = 3  # batches on which nothing could be compared, before no more are tried


@final
class SelfCheck:
    """Checks the first batch, and the first after modules or their modes changed."""

    def __init__(self, model: nn.Module, loss: Any, seed: int | None, autocast: torch.dtype | None = None) -> None:
        """Check ``model`` with ``loss``; ``seed`` and ``autocast`` are those of the accumulator."""
        self._model, self._loss, self._seed, self._autocast = unwrapped(model), loss, seed, autocast
        self._checked: set[Any] = set()
        self._tries = 0

    def check(self, batch: BatchStructure, micro_batch_size: int, device: torch.device) -> None:
        """Compare on a few samples of ``batch``, unless that has been done for the model as it is.

        Raises:
            ExactnessError: the gradient depends on the micro-batch size.
            RandomnessError: random calls are to be keyed, and cannot.
        """
        key = tuple((type(module), module.training) for module in self._model.modules())
        if key in self._checked:
            return
        if not self._tries:
            for layer in find_batch_layers(self._model):
                _warn(f"{layer.dependent} depend on micro_batch_size: {layer.name} ({layer.kind}) {layer.reason}")
        if is_sharded(self._model.modules()):  # the gradients of the check would stay in it
            _warn("not checked whether gradients depend on micro_batch_size: FSDP shards the model")
            self._checked.add(key)
            return
        places = weighty_samples(batch, self._loss)
        settled = len(places) > 1 and self._compare(batch, places, micro_batch_size, device)
        self._tries += 1
        if settled or self._tries == MAX_TRIES:
            self._checked.add(key)
            self._tries = 0

    def _compare(self, batch: BatchStructure, places: Tensor, micro_batch_size: int, device: torch.device) -> bool:
        """Return whether there was something to compare, or never will be."""
        try:
            groups = choose_groups(places.tolist(), micro_batch_size)
            passes = Passes(self._model, self._loss, batch, groups, device, self._seed or 0)
            comparison = compare_passes(passes, micro_batch_size)
        except RandomnessError as error:
            if self._seed is not None:
                raise
            _warn(f"not checked whether gradients depend on micro_batch_size: {str(error).split(';')[0]}")
            return True
        except SingleSampleError as error:
            _warn(f"not checked whether gradients depend on micro_batch_size: the model takes no single sample ({error})")
            return True
        except RuntimeError as error:
            if self._autocast is None or not OTHER_TYPE.search(str(error)):
                raise
            cause = str(error).split("\n", 1)[0]
            _warn(f"not checked whether gradients depend on micro_batch_size: it failed without autocast ({cause})")
            return True
        if not comparison.is_exact:
            raise ExactnessError(describe(passes, comparison))
        return comparison.has_gradient


def weighty_samples(batch: BatchStructure, loss: Any) -> Tensor:
    """Return the numbers of the samples that have a weight, as far as the loss says."""
    places = torch.arange(batch.num_samples)
    return places[loss.sample_weights(batch.targets) != 0] if hasattr(loss, "sample_weights") else places


def _warn(text: str) -> None:
    warnings.warn(f"{text}; self_check=False leaves this check out", ExactnessWarning, stacklevel=5)
