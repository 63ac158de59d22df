"""The cases that every system runs: data, model, loss, and what one pass over the whole batch would give."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CASES", "CAUSAL", "Case", "make_model", "reference_gradients"]

FEATURES, CLASSES = 6, 5
VOCABULARY, LENGTH = 11, 12
WEIGHTS = torch.tensor([0.2, 0.5, 1.0, 3.0, 5.0]).double()


def make_model(*, batch_norm: bool = False) -> nn.Module:
    """Make the same small float64 network every time."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(16) if batch_norm else nn.LayerNorm(16)
    return nn.Sequential(nn.Linear(FEATURES, 16), norm, nn.GELU(), nn.Linear(16, CLASSES)).double()


def make_language_model(*, batch_norm: bool = False) -> nn.Module:
    """Make the same small float64 network over token ids every time; it has no BatchNorm."""
    assert not batch_norm
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(VOCABULARY, FEATURES), nn.Linear(FEATURES, 16), nn.GELU(), nn.Linear(16, VOCABULARY)
    ).double()


@dataclass(frozen=True)
class Case:
    """Samples in the loader's order, the loader's batch size, and accumulation steps."""

    name: str
    inputs: Tensor
    targets: Tensor
    micro: int
    steps: int
    loss: Callable[[Tensor, Tensor], Tensor]
    ours: Callable[[], Any]
    """Makes the same loss as one of bigstep's."""
    make: Callable[..., nn.Module] = make_model

    def windows(self) -> list[slice]:
        """Return the samples of each optimizer step; the last may hold fewer."""
        size = self.micro * self.steps
        return [slice(start, min(start + size, len(self.inputs))) for start in range(0, len(self.inputs), size)]


def reference_gradients(case: Case, learning_rate: float) -> list[Tensor]:
    """Return the gradient of each step by one backward pass over all its samples, with plain SGD in between."""
    model = case.make()
    found = []
    for window in case.windows():
        model.zero_grad()
        case.loss(model(case.inputs[window]), case.targets[window]).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(learning_rate * parameter.grad)
    return found


def _inputs(count: int) -> Tensor:
    return torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(1)).double()


def _labels(count: int) -> Tensor:
    return torch.randint(0, CLASSES, (count,), generator=torch.Generator().manual_seed(2))


def _ignoring(count: int) -> Tensor:
    dropped = torch.rand(count, generator=torch.Generator().manual_seed(3)) < 0.4
    return torch.where(dropped, -100, _labels(count))


def _many(count: int) -> Tensor:
    return (torch.rand(count, CLASSES, generator=torch.Generator().manual_seed(4)) < 0.3).double()


def _cross_entropy(**options: Any) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[], Any]]:
    def ours() -> Any:
        from bigstep import losses

        return losses.CrossEntropy(**options)

    return lambda outputs, targets: F.cross_entropy(outputs, targets, **options), ours


def _binary() -> Any:
    from bigstep import losses

    return losses.BinaryCrossEntropy()


def _tokens(count: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(5))


def _padded(count: int) -> Tensor:
    """Sequences of 2 to 12 tokens; the rest is padding."""
    lengths = torch.randint(2, LENGTH + 1, (count, 1), generator=torch.Generator().manual_seed(6))
    return torch.where(torch.arange(LENGTH) < lengths, _tokens(count), -100)


def _next_token(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def _causal() -> Any:
    from bigstep import losses

    return losses.CausalLM()


CAUSAL = Case("causal language model, ragged tokens", _tokens(32), _padded(32), 4, 4, _next_token, _causal, make_language_model)
CASES = (
    Case("ragged last window (10 micro-batches, steps of 4)", _inputs(40), _labels(40), 4, 4, *_cross_entropy()),
    Case("unequal micro-batches (4 + 3)", _inputs(7), _labels(7), 4, 2, *_cross_entropy()),
    Case("class weights", _inputs(32), _labels(32), 8, 4, *_cross_entropy(weight=WEIGHTS)),
    Case("ignore_index", _inputs(32), _ignoring(32), 8, 4, *_cross_entropy()),
    Case("label smoothing", _inputs(32), _labels(32), 8, 4, *_cross_entropy(label_smoothing=0.2)),
    Case("multi-label", _inputs(32), _many(32), 8, 4, F.binary_cross_entropy_with_logits, _binary),
    CAUSAL,
)
