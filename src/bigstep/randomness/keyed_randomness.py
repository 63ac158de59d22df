"""Dropout and every other random call of a model, keyed by (seed, step, position of the sample in the effective batch).

Within a keyed step every random call of the model and the loss takes its numbers from a hash of (seed, step, number of the
call, position of the sample, element). No generator of torch is seeded, read or moved, so other threads draw as ever. The one
exception is activation checkpointing: it repeats calls in the backward pass, and saves and restores torch's default generator
around them. There each call takes a number from that generator, by which the repetition finds the call again.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import FrameType
from typing import Any, Protocol, final

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from bigstep.errors import RandomnessError
from bigstep.randomness.calls import RandomCall, find_random_calls
from bigstep.randomness.counter_rng import Words, call_keys, derive_seed, draw_words, sample_states, shared_state
from bigstep.randomness.kernels import drawing_from
from bigstep.randomness.torch_internals import all_modules

__all__ = ["KeyedRandomness", "KeyedStep", "NativeRandomness", "RandomCallsChangedError", "StepRandomness"]

CHECKPOINT_FILE = torch.utils.checkpoint.__file__


class RandomCallsChangedError(Exception):
    """The model drew other random calls than when it was probed: the step must be done again with a new probe."""


class StepRandomness(Protocol):
    """Where the random numbers of a step's forward and backward passes come from."""

    def micro_batch(self, positions: Tensor, part: slice | None = None) -> Any:
        """Return the context of a forward pass, and of the backward pass after :meth:`end_forward`.

        Args:
            positions: of samples in the effective batch, shape ``(n,)``; the same tensor for all micro-batches cut from it.
            part: those of them that the micro-batch holds; None: all.
        """
        ...

    def end_forward(self) -> None:
        """End the forward pass."""
        ...


@final
class NativeRandomness:
    """Torch's own generators."""

    def micro_batch(self, positions: Tensor, part: slice | None = None) -> Any:
        """Change nothing."""
        del positions, part
        return nullcontext()

    def end_forward(self) -> None:
        """Change nothing."""


@final
class KeyedRandomness:
    """Keys a model's random calls; costs nothing if it makes none."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        """Key the calls of ``model`` by ``seed``; its attribute ``probe_sizes``, if any, replaces two and three samples."""
        self.model = model
        self.seed = seed
        self._calls_by_mode: dict[Any, tuple[RandomCall, ...]] = {}

    def step(
        self, step: int, run: Callable[[int], object], device: torch.device, *, fresh: bool = False, only_once: bool = False
    ) -> "KeyedStep":
        """Return the randomness of a step; its random calls are found by a probe where the model's mode is new.

        Args:
            step: number of the step.
            run: runs model and loss forward on as many samples as it is given, and leaves their state as it was; for the
                probe.
            device: of the model.
            fresh: probe again, with the numbers of this step.
            only_once: the step cannot be run again if its calls are others: probe wherever they may be, which is where
                all samples share one, by which the model may take another branch.

        Raises:
            RandomnessError: a call cannot be keyed.
        """
        seed = derive_seed(self.seed, step)
        mode = tuple([module.training for module in all_modules([self.model])])
        known = self._calls_by_mode.get(mode)
        may_branch = only_once and known is not None and any(call.batch_dim is None for call in known)
        if fresh or may_branch or known is None:
            sizes = getattr(self.model, "probe_sizes", (2, 3))
            self._calls_by_mode[mode] = find_random_calls(run, device, seed, sizes)
        return KeyedStep(seed, self._calls_by_mode[mode], device)


@final
class KeyedStep:
    """The random calls of one step, micro-batch by micro-batch."""

    def __init__(self, seed: int, calls: tuple[RandomCall, ...], device: torch.device) -> None:
        """Start a step whose calls are keyed by ``seed``."""
        self.calls = calls
        self.device = device
        self._seed = seed
        self._positions: Tensor | None = None
        self._keys: Tensor  # of the calls, (c,)
        self._states: Tensor  # of the samples in each call, (c, n)
        self._part = slice(0)
        self._count = 0
        self._forward = True
        self._numbers: dict[int, int] = {}  # of the calls under activation checkpointing, by what the generator gave
        self._generator_state: Tensor | None = None

    @contextmanager
    def micro_batch(self, positions: Tensor, part: slice | None = None) -> Iterator[None]:
        """Key the calls of a forward pass; after :meth:`end_forward` only what the backward pass repeats of them.

        Args:
            positions: of samples in the effective batch, shape ``(n,)``; the same tensor for all micro-batches cut from it.
            part: those of them that the micro-batch holds; None: all.

        Raises:
            RandomCallsChangedError: they are other calls than those of the probe.
            RandomnessError: the backward pass draws others.
        """
        self._part = slice(0, len(positions)) if part is None else part
        self._count, self._forward, self._numbers = 0, True, {}
        if self.calls and positions is not self._positions:
            self._positions = positions
            self._keys = call_keys(self._seed, len(self.calls)).to(self.device)
            self._states = sample_states(self._keys, positions.to(self.device, torch.int64))
        try:
            with drawing_from(self):
                yield
            if self._forward:
                self.end_forward()
        finally:
            self._restore_generator()

    def end_forward(self) -> None:
        """End the forward pass.

        Raises:
            RandomCallsChangedError: it drew less than the probe.
        """
        self._forward = False
        if self._count != len(self.calls):
            raise RandomCallsChangedError

    def draw(self, operation: str, shape: torch.Size, values: Callable[[Words, int], Tensor]) -> Tensor:
        """Draw a tensor of ``shape``; ``values(words, count)`` returns ``(n, count)`` numbers."""
        number = self._next_number() if self._forward else self._repeated_number()
        call = self.calls[number]
        if call.operation != operation or call.num_dims != len(shape):
            raise RandomCallsChangedError
        if call.batch_dim is None:
            return values(partial(draw_words, shared_state(self._keys[number])), shape.numel()).reshape(shape)
        size = shape[call.batch_dim]
        count, left = divmod(size, self._part.stop - self._part.start)
        if left:
            raise RandomCallsChangedError
        rest = shape[: call.batch_dim] + shape[call.batch_dim + 1 :]
        states = self._states[number, self._part]
        drawn = values(partial(draw_words, states), count * math.prod(rest)).reshape((size, *rest))
        return drawn if call.batch_dim == 0 else drawn.movedim(0, call.batch_dim)

    def _next_number(self) -> int:
        number, self._count = self._count, self._count + 1
        if number >= len(self.calls):
            raise RandomCallsChangedError
        if _in_checkpoint():
            self._numbers[self._draw_token()] = number
        return number

    def _repeated_number(self) -> int:
        number = self._numbers.get(self._draw_token())
        if number is None:
            raise RandomnessError(
                "model: expected a backward pass that repeats random calls of the forward pass only, got others; "
                "leave preserve_rng_state=True in torch.utils.checkpoint, or leave out the seed to draw natively"
            )
        return number

    def _draw_token(self) -> int:
        if self._generator_state is None:
            self._generator_state = torch.random.get_rng_state()
        return int(torch.randint(0, 2**63 - 1, (), generator=torch.default_generator))

    def _restore_generator(self) -> None:
        if self._generator_state is not None:
            torch.random.set_rng_state(self._generator_state)
            self._generator_state = None


def _in_checkpoint() -> bool:
    """Return whether torch.utils.checkpoint is among the callers."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_filename == CHECKPOINT_FILE:
            return True
        frame = frame.f_back
    return False
