"""Which layer, or the loss, looks across samples: found by watching every module in passes over the same samples, cut twice."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigstep.randomness.keyed_randomness import KeyedStep, RandomCallsChangedError
from bigstep.step.comparison import Comparison
from bigstep.step.containers import find_tensors
from bigstep.step.passes import Passes, evaluating
from bigstep.step.preserved_state import preserved_state

__all__ = ["describe"]

CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4}
CLOSE_COARSE = 0.05


@dataclass(frozen=True)
class _Event:
    """The tensors that went into a module, or came out, and the module that was running then."""

    module: str
    kind: str
    caller: str
    values: tuple[Tensor, ...]
    is_output: bool


_Tensors = tuple[Tensor, ...]
_BothCuts = tuple[tuple[_Event, ...], tuple[_Event, ...]]


def describe(passes: Passes, comparison: Comparison) -> str:
    """Return the error's text: the layer or the loss that looks across samples, by how much, and the way out."""
    culprit = None if comparison.agrees else _find(passes)
    if comparison.buffer is not None and culprit is None:
        kind = "parameter" if comparison.buffer in dict(passes.model.named_parameters()) else "buffer"
        return (
            f"model: expected a state that does not depend on micro_batch_size, got the {kind} '{comparison.buffer}', which "
            "moves once in every forward pass; freeze it (evaluation mode), or accept that with self_check=False"
        )
    off = f"{comparison.where} is off by {comparison.error:.2g} of its size"
    if culprit is None and comparison.loss_agrees:
        return (
            f"model: expected backward passes that treat samples apart, got gradients that depend on the others in the pass "
            f"where results do not ({off}); look for hooks and autograd functions that compute across samples, or accept that "
            "with self_check=False"
        )
    if culprit is None:
        return (
            f"loss: expected a sum over samples, each treated apart from the others, got another result for the same samples "
            f"in parts ({off}); return one loss per sample that depends on that sample only, or accept that with "
            "self_check=False"
        )
    return (
        f"model: expected layers that treat samples apart, got {culprit}, whose result for a sample depends on the others in "
        f"the pass or on their number ({off}); replace the layer, put it into evaluation mode if it is "
        "stateful, name inputs that all samples share in shared=, or accept that with self_check=False"
    )


def _find(passes: Passes) -> str | None:
    try:
        with evaluating(passes.model), preserved_state(*passes.modules) as state:
            randomness = passes.randomness()
            first = [_watch(passes, randomness, group) for group in passes.groups.together]
            state.restore()
            second = [_watch(passes, randomness, group) for group in passes.groups.apart]
    except RandomCallsChangedError:
        return "the model, which draws other random numbers in each pass"
    events = [(found[: len(first)], found[len(first) :]) for found in zip(*first, *second, strict=False)]
    culprit = _first(events, _agree)
    if culprit is None and _first(events[-1:], _agree_in_order) is not None:
        culprit = _first(events, _agree_in_order)  # the samples were shuffled, or random numbers given to other samples
    return culprit


def _first(events: list[_BothCuts], agree: Callable[[_Tensors, _Tensors], bool]) -> str | None:
    for first, second in events:
        event = first[0]
        if any(other.module != event.module or other.is_output != event.is_output for other in (*first, *second)):
            return _named(event, "the order of its layers")
        values = (zip(*(each.values for each in cut), strict=False) for cut in (first, second))
        if not all(agree(one, other) for one, other in zip(*values, strict=False)):
            return _named(event, None)
    return None


def _named(event: _Event, what: str | None) -> str:
    name = f"'{event.module}' ({event.kind})" if event.module else f"{event.kind}.forward"
    if what is not None:
        return f"{what} within {name}"
    return name if event.is_output else f"what {event.caller}.forward computes before {name} is called"


def _watch(passes: Passes, randomness: KeyedStep, group: slice) -> list[_Event]:
    events: list[_Event] = []
    with torch.no_grad(), _hooks(passes.model, events):
        passes.forward(group, randomness)
    return events


@contextmanager
def _hooks(model: nn.Module, events: list[_Event]) -> Iterator[None]:
    handles: list[Any] = []
    running = [type(model).__name__]
    for name, module in model.named_modules():
        kind = type(module).__name__

        def before(_module: nn.Module, args: Any, kwargs: Any, name: str = name, kind: str = kind) -> None:
            events.append(_Event(name, kind, running[-1], _tensors((args, kwargs)), is_output=False))
            running.append(kind)

        def after(_module: nn.Module, _args: Any, result: Any, name: str = name, kind: str = kind) -> None:
            running.pop()
            events.append(_Event(name, kind, running[-1], _tensors(result), is_output=True))

        handles += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(values: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().to("cpu", copy=True) for tensor in find_tensors(values))


def _agree(first: _Tensors, second: _Tensors) -> bool:
    """Compare as sets of numbers, so that it does not matter where in a tensor the samples lie."""
    one, other = (torch.cat([tensor.flatten() for tensor in cut]) for cut in (first, second))
    if not one.is_floating_point():
        return True
    if len(one) == len(other):
        return _close(one.sort().values, other.sort().values)
    everything = (*first, *second)  # what all samples share is there once in each pass
    same_shape = all(tensor.shape == first[0].shape for tensor in everything)
    return not same_shape or all(_close(first[0].flatten(), tensor.flatten()) for tensor in everything)


def _agree_in_order(first: _Tensors, second: _Tensors) -> bool:
    """Compare one after the other, where the first dimension counts samples."""
    whole, rest = first[0], first[0].shape[1:]
    counted = all(tensor.ndim == whole.ndim and tensor.shape[1:] == rest for tensor in (*first, *second))
    if not whole.is_floating_point() or whole.ndim == 0 or not counted or sum(map(len, first)) != sum(map(len, second)):
        return True
    return _close(torch.cat(first).flatten(), torch.cat(second).flatten())


def _close(first: Tensor, second: Tensor) -> bool:
    limit = CLOSE.get(first.dtype, CLOSE_COARSE)
    return float((first.double() - second.double()).norm()) <= limit * max(float(first.double().norm()), 1e-300)
