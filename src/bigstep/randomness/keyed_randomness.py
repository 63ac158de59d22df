"""Dropout and every other random call of a model, keyed by (seed, step, position of the sample in the effective batch).

Within a keyed step every random call of the model and the loss takes its numbers from a hash of (seed, step, number of the
call, position of the sample, element). No generator of torch is seeded, read or moved, so other threads draw as ever. The one
exception is activation checkpointing: it repeats calls in the backward pass, and saves and restores torch's default generator
around them. There each call takes a number from that generator, by which the repetition finds the call again.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any, Protocol, final

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from bigstep.errors import RandomnessError
from bigstep.randomness.calls import RandomCall, find_random_calls
from bigstep.randomness.counter_rng import CallKeys, derive_seed
from bigstep.randomness.kernels import drawing_from

__all__ = ["KeyedRandomness", "KeyedStep", "NativeRandomness", "RandomCallsChangedError", "StepRandomness"]

CHECKPOINT_FILE = torch.utils.checkpoint.__file__


class RandomCallsChangedError(Exception):
    """The model drew other random calls than when it was probed: the step must be done again with a new probe."""


class StepRandomness(Protocol):
    """Where the random numbers of a step's forward and backward passes come from."""

    def forward(self, positions: Tensor) -> Any:
        """Return the context of a forward pass over samples at these positions in the effective batch, shape ``(n,)``."""
        ...

    def backward(self) -> Any:
        """Return the context of its backward pass."""
        ...


@final
class NativeRandomness:
    """Torch's own generators."""

    def forward(self, positions: Tensor) -> Any:
        """Change nothing."""
        del positions
        return nullcontext()

    def backward(self) -> Any:
        """Change nothing."""
        return nullcontext()


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
        mode = tuple(module.training for module in self.model.modules())
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
        self._keys = CallKeys(seed)
        self.calls = calls
        self.device = device
        self._ids = torch.zeros(1, dtype=torch.int64, device=device)
        self._shared = torch.zeros(1, dtype=torch.int64, device=device)
        self._count = 0
        self._forward = True
        self._numbers: dict[int, int] = {}  # of the calls under activation checkpointing, by what the generator gave
        self._generator_state: Tensor | None = None

    @contextmanager
    def forward(self, positions: Tensor) -> Iterator[None]:
        """Key the calls of a forward pass over samples at these positions in the effective batch, shape ``(n,)``.

        Raises:
            RandomCallsChangedError: they are other calls than those of the probe.
        """
        self._ids = positions.to(self.device, torch.int64)
        self._count, self._forward, self._numbers = 0, True, {}
        try:
            with drawing_from(self):
                yield
            if self._count != len(self.calls):
                raise RandomCallsChangedError
        except BaseException:
            self._restore_generator()
            raise

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Key calls that are repeated by recomputation in the backward pass; no others are allowed.

        Raises:
            RandomnessError: it draws others.
        """
        self._forward = False
        try:
            with drawing_from(self):
                yield
        finally:
            self._restore_generator()

    def draw(self, operation: str, shape: torch.Size, values: Callable[[int, Tensor, int], Tensor]) -> Tensor:
        """Draw a tensor of ``shape``; ``values(key, ids, count)`` returns ``(len(ids), count)`` numbers."""
        number = self._next_number() if self._forward else self._repeated_number()
        call, key = self.calls[number], self._keys[number]
        if call.operation != operation or call.num_dims != len(shape):
            raise RandomCallsChangedError
        if call.batch_dim is None:
            return values(key, self._shared, shape.numel()).reshape(shape)
        count, left = divmod(shape[call.batch_dim], len(self._ids))
        if left:
            raise RandomCallsChangedError
        rest = [size for dim, size in enumerate(shape) if dim != call.batch_dim]
        drawn = values(key, self._ids, count * torch.Size(rest).numel()).reshape([shape[call.batch_dim], *rest])
        return drawn.movedim(0, call.batch_dim)

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
