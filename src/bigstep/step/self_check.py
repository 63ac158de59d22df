"""The accumulator's check of the user's own model: on the first batch, a few samples in one pass and cut must agree."""

import warnings
from typing import Any, final

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bigstep.errors import ExactnessError, ExactnessWarning, RandomnessError
from bigstep.step.batch_norm import find_batch_layers
from bigstep.step.batch_structure import BatchStructure
from bigstep.step.comparison import Passes, SingleSampleError, compare_passes
from bigstep.step.coupling import describe

__all__ = ["SelfCheck", "unwrapped"]

MAX_SAMPLES = 4
MAX_TRIES = 3  # batches on which nothing could be compared, before no more are tried


@final
class SelfCheck:
    """Checks the first batch, and the first after modules or their modes changed."""

    def __init__(self, model: nn.Module, loss: Any, seed: int | None) -> None:
        """Check ``model`` with ``loss``; ``seed`` is that of the accumulator."""
        self._model, self._loss, self._seed = unwrapped(model), loss, seed
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
                _warn(f"gradients depend on micro_batch_size: {layer.name} ({layer.kind}) {layer.reason}")
        indices = choose_samples(batch, self._loss, micro_batch_size)
        settled = len(indices) > 1 and self._compare(batch, indices, micro_batch_size, device)
        self._tries += 1
        if settled or self._tries == MAX_TRIES:
            self._checked.add(key)
            self._tries = 0

    def _compare(self, batch: BatchStructure, indices: list[int], micro_batch_size: int, device: torch.device) -> bool:
        """Return whether there was something to compare, or never will be."""
        try:
            passes = Passes(self._model, self._loss, batch, indices, device, self._seed or 0)
            comparison = compare_passes(passes, micro_batch_size)
        except RandomnessError as error:
            if self._seed is not None:
                raise
            _warn(f"not checked whether gradients depend on micro_batch_size: {str(error).split(';')[0]}")
            return True
        except SingleSampleError as error:
            _warn(f"not checked whether gradients depend on micro_batch_size: the model takes no single sample ({error})")
            return True
        if not comparison.is_exact:
            raise ExactnessError(describe(passes, comparison))
        return comparison.has_gradient


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel, whose passes communicate."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def choose_samples(batch: BatchStructure, loss: Any, micro_batch_size: int) -> list[int]:
    """Choose at most four samples, and no more than a micro-batch has but for two: they are in one pass together."""
    places = torch.arange(batch.num_samples)
    if hasattr(loss, "sample_weights"):
        places = places[loss.sample_weights(batch.targets) != 0]
    count = min(MAX_SAMPLES, max(micro_batch_size, 2), len(places))
    return [int(places[index]) for index in torch.linspace(0, len(places) - 1, count).round().long()] if count else []


def _warn(text: str) -> None:
    warnings.warn(f"{text}; self_check=False leaves this check out", ExactnessWarning, stacklevel=5)
