"""Which layer, or the loss, looks across samples: found by watching every module in one pass and in parts of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigstep.randomness.keyed_randomness import KeyedStep, RandomCallsChangedError
from bigstep.step.batch_structure import find_tensors
from bigstep.step.comparison import Comparison, Passes, evaluating
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


def describe(passes: Passes, comparison: Comparison) -> str:
    """Return the error's text: the layer or the loss that looks across samples, by how much, and the way out."""
    culprit = None if comparison.agrees else _find(passes, comparison.parts)
    if comparison.buffer is not None and culprit is None:
        return (
            f"model: expected a state that does not depend on micro_batch_size, got the buffer '{comparison.buffer}', which "
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


def _find(passes: Passes, parts: tuple[slice, ...]) -> str | None:
    try:
        with evaluating(passes.model), preserved_state(*passes.modules) as state:
            randomness = passes.randomness()
            whole = _watch(passes, randomness, slice(0, len(passes.indices)))
            state.restore()
            cut = [_watch(passes, randomness, part) for part in parts]
    except RandomCallsChangedError:
        return "the model, which draws other random numbers in each pass"
    events = list(zip(whole, *cut, strict=False))
    found = _first(events, _agree)
    if found is None and _first(events[-1:], _agree_in_order) is not None:
        found = _first(events, _agree_in_order)  # the samples were shuffled, or random numbers given to other samples
    return found


def _first(events: list[tuple[_Event, ...]], agree: Callable[[Tensor, list[Tensor]], bool]) -> str | None:
    for event, *others in events:
        if any(other.module != event.module or other.is_output != event.is_output for other in others):
            return _named(event, "the order of its layers")
        if not all(agree(value, pieces) for value, *pieces in zip(event.values, *(o.values for o in others), strict=False)):
            return _named(event, None)
    return None


def _named(event: _Event, what: str | None) -> str:
    name = f"'{event.module}' ({event.kind})" if event.module else f"{event.kind}.forward"
    if what is not None:
        return f"{what} within {name}"
    return name if event.is_output else f"what {event.caller}.forward computes before {name} is called"


def _watch(passes: Passes, randomness: KeyedStep, part: slice) -> list[_Event]:
    events: list[_Event] = []
    positions = torch.arange(len(passes.indices))[part]
    with torch.no_grad(), _hooks(passes.model, events), randomness.forward(positions):
        passes.forward(part)
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


def _agree(whole: Tensor, pieces: list[Tensor]) -> bool:
    """Compare as sets of numbers, so that it does not matter where in a tensor the samples lie."""
    if not whole.is_floating_point():
        return True
    joined = whole.flatten()
    parts = torch.cat([piece.flatten() for piece in pieces])
    if len(parts) != len(joined):  # what all samples share is there once in each part
        return all(piece.shape != whole.shape or _close(joined, piece.flatten()) for piece in pieces)
    return _close(joined.sort().values, parts.sort().values)


def _agree_in_order(whole: Tensor, pieces: list[Tensor]) -> bool:
    """Compare with the parts one after the other, where the first dimension counts samples."""
    counted = [piece for piece in pieces if piece.ndim == whole.ndim and piece.shape[1:] == whole.shape[1:]]
    if not whole.is_floating_point() or whole.ndim == 0 or sum(len(piece) for piece in counted) != len(whole):
        return True
    return _close(whole.flatten(), torch.cat(counted).flatten())


def _close(first: Tensor, second: Tensor) -> bool:
    limit = CLOSE.get(first.dtype, CLOSE_COARSE)
    return float((first.double() - second.double()).norm()) <= limit * max(float(first.double().norm()), 1e-300)
