"""Which random numbers a model draws, and where its samples lie in them: found by running it on two numbers of samples."""

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from bigstep.errors import RandomnessError
from bigstep.randomness.counter_rng import Words, call_keys, draw_words, shared_state
from bigstep.randomness.kernels import drawing_from

__all__ = ["RandomCall", "find_random_calls"]

TRIES = 3  # of the probe, where Python's or NumPy's generator moved: another thread may have drawn from it


@dataclass(frozen=True)
class RandomCall:
    """One random call of the forward pass: its operation, its dimensions, and the one in which the samples lie, if any."""

    operation: str
    num_dims: int
    batch_dim: int | None


def find_random_calls(
    run: Callable[[int], object], device: torch.device, seed: int = 0, sizes: tuple[int, int] = (2, 3)
) -> tuple[RandomCall, ...]:
    """Run the model on two and on three samples, and compare the shapes of its random calls; on two only if there is no call.

    All random states stay as they are.

    Args:
        run: runs the model, and the loss if there is one, forward on as many samples as it is given, and leaves their
            state as it was.
        device: of the model.
        seed: of the step; calls that all samples share get the numbers that they will have in it.
        sizes: the two numbers of samples, the smaller one first.

    Raises:
        RandomnessError: a call cannot be keyed; its operation is named.
    """
    few = _record(run, sizes[0], device, seed)
    if not few:
        return ()
    more = _record(run, sizes[1], device, seed)
    if [(name, len(shape)) for name, shape in few] != [(name, len(shape)) for name, shape in more]:
        raise RandomnessError(
            f"model: expected the same random calls for any number of samples, got {len(few)} for {sizes[0]} and {len(more)} "
            f"for {sizes[1]}; leave out the seed to draw natively"
        )
    return tuple(
        RandomCall(name, len(small), _batch_dim(name, small, large, sizes))
        for (name, small), (_, large) in zip(few, more, strict=True)
    )


def _record(run: Callable[[int], object], count: int, device: torch.device, seed: int) -> list[tuple[str, torch.Size]]:
    first = _foreign_states()
    for _ in range(TRIES):
        recorder, before = _Recorder(seed, device), _foreign_states()
        with drawing_from(recorder):
            run(count)
        moved = [name for name, state in _foreign_states().items() if name in before and state != before[name]]
        if not moved:
            return recorder.calls
    _set_foreign_states(first)
    raise RandomnessError(
        f"model: expected random numbers from torch, got some from {moved[0]}; leave out the seed to draw natively"
    )


@final
class _Recorder:
    """Notes the shape of each call; all numbers are as if the call were shared by all samples."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.calls: list[tuple[str, torch.Size]] = []
        self._seed = seed
        self._device = device

    def draw(self, operation: str, shape: torch.Size, values: Callable[[Words, int], Tensor]) -> Tensor:
        self.calls.append((operation, shape))
        key = call_keys(self._seed, len(self.calls))[-1].to(self._device)
        return values(partial(draw_words, shared_state(key)), shape.numel()).reshape(shape)


def _foreign_states() -> dict[str, Any]:
    """Return the states of the global generators that are not torch's."""
    states: dict[str, Any] = {"Python's random": random.getstate()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, *rest = numpy.random.get_state(legacy=True)
        states["NumPy's random"] = (kind, keys.tobytes(), *rest)
    return states


def _set_foreign_states(states: dict[str, Any]) -> None:
    random.setstate(states["Python's random"])
    numpy = sys.modules.get("numpy")
    if numpy is not None and "NumPy's random" in states:
        kind, keys, *rest = states["NumPy's random"]
        numpy.random.set_state((kind, numpy.frombuffer(keys, dtype=numpy.uint32), *rest))


def _batch_dim(name: str, small: torch.Size, large: torch.Size, sizes: tuple[int, int]) -> int | None:
    changed = [dim for dim, (few, more) in enumerate(zip(small, large, strict=True)) if few != more]
    if not changed:
        return None
    if len(changed) > 1 or small[changed[0]] * sizes[1] != large[changed[0]] * sizes[0]:
        raise RandomnessError(
            f"model: expected random calls with one dimension that counts samples, got {name} of shape {tuple(small)} for "
            f"{sizes[0]} samples and {tuple(large)} for {sizes[1]}; leave out the seed to draw natively"
        )
    return changed[0]
