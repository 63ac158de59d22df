"""The gradients of one effective batch while they add up: kept separate from earlier ones, and never half done."""

from types import TracebackType
from typing import final

import torch
from torch import Tensor, nn

from bigstep.step.torch_internals import scale_all, vector_norms

__all__ = ["GradientSum", "squared_norm"]

NARROW = (torch.bfloat16, torch.float16)


@final
class GradientSum:
    """Collects ``.grad`` over micro-batches.

    Gradients that exist already are kept separately and added at the end. Those of parameters kept in 16 bits add up in
    float32 and are cast once: added in bfloat16, sixty-four micro-batches lose half a percent. When the block ends by an
    exception or without :meth:`finish`, ``.grad`` is what it was.
    """

    def __init__(self, model: nn.Module, *, apart: bool = False) -> None:
        """Collect the gradients of ``model``'s parameters; ``apart`` keeps each micro-batch's to itself until :meth:`add`."""
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._moved = [parameter for parameter in self._parameters if apart or parameter.dtype in NARROW]
        self._aside: dict[Tensor, Tensor] = {}
        self._earlier: list[Tensor | None] = []
        self._complete = False

    def __enter__(self) -> "GradientSum":
        self._earlier = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._complete and kind is None:
            self._leave_sums()
        else:
            for parameter, before in zip(self._parameters, self._earlier, strict=True):
                parameter.grad = before

    def add(self) -> None:
        """Add what a backward pass left in ``.grad`` of parameters whose sums are kept separately."""
        for parameter in self._moved:
            if parameter.grad is not None:
                wide = parameter.grad.float() if parameter.dtype in NARROW else parameter.grad
                self._aside[parameter] = self._aside[parameter].add_(wide) if parameter in self._aside else wide
                parameter.grad = None

    def latest(self) -> list[Tensor]:
        """Return what is in ``.grad``: the last micro-batch's gradients where they are kept apart, else the sums so far."""
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def current(self) -> list[Tensor]:
        """Return the sums so far."""
        return self.latest() + list(self._aside.values())

    def scale(self, factor: float) -> None:
        """Multiply the sums by ``factor``."""
        if factor != 1.0 and self.current():
            scale_all(self.current(), factor)

    def finish(self) -> None:
        """Make the end of the block leave the sums in ``.grad``, cast and added to what was there before."""
        self._complete = True

    def _leave_sums(self) -> None:
        for parameter, total in self._aside.items():
            parameter.grad = total.to(parameter.dtype)
        for parameter, before in zip(self._parameters, self._earlier, strict=True):
            if parameter.grad is None:
                parameter.grad = before
            elif before is not None:
                parameter.grad.add_(before)


def squared_norm(tensors: list[Tensor]) -> Tensor:
    """Sum the squares of all elements: a float64 scalar on the tensors' device."""
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([norm.to(torch.float64) for norm in vector_norms(tensors)]).square().sum()
