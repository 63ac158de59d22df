"""Dropout and every other random call of a model, keyed by (seed, step, position of the sample in the effective batch).

While a keyed step runs, torch's kernels that draw are replaced. Every call of one takes a key from the default CPU generator,
which is seeded alike before every micro-batch: so all micro-batches see the same keys in the same order, and activation
checkpointing, which saves and restores that generator, replays them. The numbers are a hash of (key, position, element).
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.library import Library

from bigstep.errors import RandomnessError
from bigstep.step.counter_rng import bernoulli_mask, derive_seed, normal_values, uniform_values
from bigstep.step.random_calls import RandomCall, find_random_calls
from bigstep.step.torch_internals import remove_kernels

__all__ = ["KeyedRandomness", "RandomCallsChangedError"]

DEVICES = {"cpu": "CPU", "cuda": "CUDA"}
_ALONE = threading.Lock()  # the replaced kernels are the whole process's


class RandomCallsChangedError(Exception):
    """The model drew other random calls than when it was probed: the step has to be repeated with a new probe."""


@final
class KeyedRandomness:
    """Keys a model's random calls; costs nothing if it has none."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        """Key the calls of ``model`` by ``seed``."""
        self.model = model
        self.seed = seed
        self._plans: dict[Any, tuple[RandomCall, ...]] = {}

    def sites(self, inputs: Any, context: Callable[[], Any], *, fresh: bool = False) -> tuple[RandomCall, ...]:
        """Return the model's random calls in the mode it is in, from a probe on ``inputs`` where that mode is new.

        Raises:
            RandomnessError: a call cannot be keyed.
        """
        mode = tuple(module.training for module in self.model.modules())
        if fresh or mode not in self._plans:
            self._plans[mode] = find_random_calls(self.model, inputs, context)
        return self._plans[mode]

    @contextmanager
    def step(self, step: int, sites: tuple[RandomCall, ...], device: torch.device) -> Iterator["KeyedStep"]:
        """Key every random call within the block; torch's random state is as before when it ends.

        Raises:
            RandomCallsChangedError: the model drew other calls than ``sites``.
        """
        before = torch.random.get_rng_state()
        keyed = KeyedStep(derive_seed(self.seed, step), sites, device)
        with _replaced_kernels(keyed, device) if sites else _untouched():
            yield keyed
        if not sites and not torch.equal(before, torch.random.get_rng_state()):
            torch.random.set_rng_state(before)
            raise RandomCallsChangedError
        torch.random.set_rng_state(before)


@final
class KeyedStep:
    """The random calls of one step, micro-batch by micro-batch."""

    def __init__(self, seed: int, sites: tuple[RandomCall, ...], device: torch.device) -> None:
        """Start a step whose calls are keyed by ``seed``."""
        self.seed = seed
        self.sites = sites
        self.device = device
        self._ids = torch.zeros(1, dtype=torch.int64, device=device)
        self._shared = torch.zeros(1, dtype=torch.int64, device=device)
        self._numbers: dict[int, int] = {}
        self._forward = True

    def begin_forward(self, positions: Tensor) -> None:
        """Start a micro-batch whose samples have these positions in the effective batch, shape ``(n,)``."""
        if self.sites:
            self._ids = positions.to(self.device, torch.int64)
            self._numbers = {}
            self._forward = True
            torch.default_generator.manual_seed(self.seed)

    def begin_backward(self) -> None:
        """Allow from here on only calls that the forward pass made, as recomputation repeats them.

        Raises:
            RandomCallsChangedError: the forward pass made fewer calls than the probe.
        """
        if len(self._numbers) != len(self.sites):
            raise RandomCallsChangedError
        self._forward = False

    def draw(self, shape: torch.Size, values: Callable[[int, Tensor, int], Tensor]) -> Tensor:
        """Draw a tensor of ``shape``; ``values(key, ids, count)`` returns ``(len(ids), count)`` numbers."""
        key = int(torch.randint(0, 2**63 - 1, (), generator=torch.default_generator))
        dim = self._site(key).batch_dim
        if dim is None:
            return values(key, self._shared, shape.numel()).reshape(shape)
        count, left = divmod(shape[dim], len(self._ids))
        if left:
            raise RandomCallsChangedError
        rest = [size for index, size in enumerate(shape) if index != dim]
        per_sample = count * (torch.Size(rest).numel())
        drawn = values(key, self._ids, per_sample).reshape([shape[dim], *rest])
        return drawn.movedim(0, dim)

    def _site(self, key: int) -> RandomCall:
        if key not in self._numbers:
            if not self._forward:
                raise RandomnessError(
                    "activation checkpointing: expected the random calls of the forward pass again, got others; "
                    "leave preserve_rng_state=True in torch.utils.checkpoint"
                )
            if len(self._numbers) == len(self.sites):
                raise RandomCallsChangedError
            self._numbers[key] = len(self._numbers)
        return self.sites[self._numbers[key]]


@contextmanager
def _untouched() -> Iterator[None]:
    yield


@contextmanager
def _replaced_kernels(keyed: KeyedStep, device: torch.device) -> Iterator[None]:
    if device.type not in DEVICES:
        raise RandomnessError(f"seed: expected a model on {' or '.join(DEVICES)}, got one on {device}; leave out the seed")
    with _ALONE:
        library = Library("aten", "IMPL")  # type: ignore[no-untyped-call] # torch's
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that kernels are replaced is what is meant
                for name, kernel in _kernels(keyed).items():
                    library.impl(name, kernel, DEVICES[device.type])  # type: ignore[no-untyped-call] # torch's
            yield
        finally:
            remove_kernels(library)


def _kernels(keyed: KeyedStep) -> dict[str, Callable[..., Any]]:
    """Return the kernels that draw, by name; torch's others (rand, randn, dropout, ...) call these."""

    def bernoulli_(target: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
        del generator
        return target.copy_(keyed.draw(target.shape, lambda key, ids, count: bernoulli_mask(key, ids, count, p)))

    def bernoulli_tensor(target: Tensor, p: Tensor, *, generator: Any = None) -> Tensor:
        del generator
        shares = keyed.draw(target.shape, lambda key, ids, count: uniform_values(key, ids, count, torch.float64))
        return target.copy_(shares < p.to(torch.float64))

    def uniform_(target: Tensor, start: float = 0.0, end: float = 1.0, *, generator: Any = None) -> Tensor:
        del generator
        shares = keyed.draw(target.shape, lambda key, ids, count: uniform_values(key, ids, count, target.dtype))
        return target.copy_(shares * (end - start) + start)

    def normal_(target: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
        del generator
        values = keyed.draw(target.shape, lambda key, ids, count: normal_values(key, ids, count, target.dtype))
        return target.copy_(values * std + mean)

    def native_dropout(inputs: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:  # noqa: FBT001 # torch's schema
        if p == 0 or train is False:
            return inputs.clone(), torch.ones_like(inputs, dtype=torch.bool)
        mask = keyed.draw(inputs.shape, lambda key, ids, count: bernoulli_mask(key, ids, count, 1 - p))
        return inputs * mask * (1 / (1 - p) if p < 1 else 0.0), mask

    return {
        "bernoulli_.float": bernoulli_,
        "bernoulli_.Tensor": bernoulli_tensor,
        "uniform_": uniform_,
        "normal_": normal_,
        "native_dropout": native_dropout,
    }
