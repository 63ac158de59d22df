"""Which random numbers a model draws, and where its samples lie in them: found by running it on two and three samples."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigstep.errors import RandomnessError
from bigstep.step.nested_tensors import call_model, map_tensors, num_samples
from bigstep.step.torch_internals import TorchDispatchMode, operation_arguments

__all__ = ["RandomCall", "find_random_calls"]

aten = torch.ops.aten
KEYABLE = {
    aten.bernoulli_.float,
    aten.bernoulli_.Tensor,
    aten.bernoulli.default,
    aten.bernoulli.p,
    aten.native_dropout.default,
    aten.normal_.default,
    aten.rand.default,
    aten.rand_like.default,
    aten.randn.default,
    aten.randn_like.default,
    aten.uniform_.default,
}


@dataclass(frozen=True)
class RandomCall:
    """One random call of the forward pass: its operation, and the dimension in which the samples lie (None: it has none)."""

    operation: str
    batch_dim: int | None


def find_random_calls(model: nn.Module, inputs: Any, context: Callable[[], Any]) -> tuple[RandomCall, ...]:
    """Run the model on two and on three samples of ``inputs``, and compare the shapes of its random calls.

    Parameters, buffers, gradients and torch's random state stay as they are; forward hooks run.

    Args:
        model: in the mode in which it will be used.
        inputs: some samples, on the model's device.
        context: returns the context manager of the forward pass.

    Raises:
        RandomnessError: a call cannot be keyed; its operation is named.
    """
    two, three = (_record(model, _repeat(inputs, count), context) for count in (2, 3))
    if [name for name, _ in two] != [name for name, _ in three]:
        raise RandomnessError(
            f"seed: expected a model that makes the same random calls for any number of samples, got {len(two)} for two and "
            f"{len(three)} for three; leave out the seed to use torch's own generators"
        )
    return tuple(RandomCall(name, _batch_dim(name, small, large)) for (name, small), (_, large) in zip(two, three, strict=True))


def _record(model: nn.Module, inputs: Any, context: Callable[[], Any]) -> list[tuple[str, torch.Size]]:
    recorder = _Recorder()
    with _undisturbed(model), recorder, context():
        call_model(model, inputs)
    return recorder.calls


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.calls: list[tuple[str, torch.Size]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        named = kwargs or {}
        result = func(*args, **named)
        if torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, named):
            _check_keyable(func, named)
            first = result[0] if isinstance(result, tuple) else result
            self.calls.append((str(func), first.shape))
        return result


def _draws(func: Any, args: Any, named: dict[str, Any]) -> bool:
    """Return whether a call with the tag draws: fused attention and native dropout have it also where their share is zero."""
    arguments = operation_arguments(func)
    values = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    values |= dict(zip((argument.name for argument in arguments), args, strict=False)) | named
    if "dropout_p" in values:
        return bool(values["dropout_p"])
    return not (func is aten.native_dropout.default and (values["p"] == 0 or values["train"] is False))


def _check_keyable(func: Any, named: dict[str, Any]) -> None:
    if named.get("generator") is not None:
        raise RandomnessError(
            f"seed: expected random calls with torch's default generator, got {func} with another one; "
            "leave out the seed, or remove the generator"
        )
    if func not in KEYABLE:
        raise RandomnessError(
            f"seed: expected random calls that can be keyed by sample, got {func}; "
            "leave out the seed to use torch's own generators, or replace the layer"
        )


def _batch_dim(name: str, small: torch.Size, large: torch.Size) -> int | None:
    changed = [dim for dim, (two, three) in enumerate(zip(small, large, strict=True)) if two != three]
    if not changed:
        return None
    if len(changed) > 1 or small[changed[0]] * 3 != large[changed[0]] * 2:
        raise RandomnessError(
            f"seed: expected random calls with one dimension for the samples, got {name}: {tuple(small)} for two samples, "
            f"{tuple(large)} for three; leave out the seed to use torch's own generators"
        )
    return changed[0]


def _repeat(inputs: Any, count: int) -> Any:
    indices = [index % num_samples(inputs) for index in range(count)]
    return map_tensors(lambda tensor: tensor[indices], inputs)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    buffers: list[tuple[Tensor, Tensor]] = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    python_state = random.getstate()
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        yield
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    if random.getstate() != python_state:
        random.setstate(python_state)
        raise RandomnessError(
            "seed: expected a model that draws from torch only, got one that draws from Python's random; leave out the seed"
        )
