"""Check a model, a loss and a batch of your own: does the gradient depend on the micro-batch size, where, and why?"""

import copy
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from bigstep.errors import ExactnessError, ExactnessWarning, LossError, RandomnessError
from bigstep.step.batch_norm import find_batch_layers
from bigstep.step.batch_structure import BatchStructure, check_usable
from bigstep.step.containers import map_tensors
from bigstep.step.exactness import EXACT, LayerCheck, check_cuts
from bigstep.step.loss_arguments import resolve_loss
from bigstep.step.preserved_state import preserved_gradients, preserved_state
from bigstep.step.self_check import SelfCheck, weighty_samples

__all__ = ["CheckResult", "check"]

COARSE = 0.1  # of a gradient in 16 bits, where the model does not run in float64
FINE = 1e-4  # of one in float32
JOINED, LOSS = "model", "loss"


@dataclass(frozen=True)
class CheckResult:
    """What :func:`check` found."""

    layers: tuple[LayerCheck, ...]
    """Every layer with parameters of its own, in the model's order, then the loss's; an error for each of ``cuts``."""
    cuts: tuple[int, ...]
    """The micro-batch sizes that were compared with one pass over the whole batch."""
    reason: str
    """Why it is not exact, with the name of the layer or the loss; empty if it is."""
    tolerance: float
    """The largest relative error that is rounding: 1e-10 in float64."""

    @property
    def is_exact(self) -> bool:
        """Whether gradients and buffers depend on the micro-batch size by no more than rounding."""
        return not self.reason

    @property
    def worst(self) -> float:
        """The largest relative error of a layer."""
        return max((error for layer in self.layers for error in layer.errors), default=0.0)

    def __str__(self) -> str:
        """Return a line for each layer, and the reason."""
        lines = [f"{layer.name or JOINED} ({layer.kind}): {max(layer.errors):.0e}" for layer in self.layers]
        return "\n".join([*lines, self.reason or "exact: gradients do not depend on the micro-batch size"])


def check(
    model: nn.Module,
    loss: Any,
    batch: tuple[Any, Any],
    *,
    cuts: Sequence[int] | None = None,
    seed: int | None = 0,
    shared: Sequence[str | int] = (),
) -> CheckResult:
    """Accumulate one batch in micro-batches of several sizes, and compare with one pass over all of it, layer by layer.

    It runs in float64 on a copy of the model, or, where the model does not run in float64, on the model itself. Model and loss
    are as before afterwards, with their gradients.

    Args:
        model: in the mode in which it is trained.
        loss: as for :class:`bigstep.Accumulator`: of this package, of torch, or a function of outputs and targets.
        batch: inputs and targets of at least two samples.
        cuts: micro-batch sizes; None takes a half, a quarter, 7 and 1, as far as the model takes them.
        seed: keys random calls, as in the accumulator; None lets torch draw natively.
        shared: keys, fields or positions of the inputs that all samples share, as in the accumulator.

    Raises:
        LossError: the loss does not return a loss for each sample.
        RandomnessError: random calls cannot be keyed.
        TypeError: the loss is neither a loss nor callable.
        ValueError: the batch cannot be cut, or a cut is not one of it.
    """
    structure = _structure(model, batch, shared)
    sizes = _cuts(structure.num_samples, cuts)
    loss = resolve_loss(loss)
    modules = [part for part in (model, loss) if isinstance(part, nn.Module)]
    originals = [parameter for module in modules for parameter in module.parameters()]
    with preserved_gradients(originals), preserved_state(*modules), torch.random.fork_rng(devices=[]):
        try:
            return _check(*_doubled(model, loss, structure), sizes, seed, given=cuts is not None)
        except (LossError, RandomnessError):
            raise
        except Exception:  # noqa: BLE001 # types that do not fit, whatever says so: what is wrong anyway is raised again
            return _check(model, loss, structure, sizes, seed, given=cuts is not None)


def _structure(model: nn.Module, batch: Any, shared: Sequence[str | int]) -> BatchStructure:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError(f"batch: expected (inputs, targets), got {type(batch).__name__}; pass both as a tuple")
    inputs, targets = batch
    structure = BatchStructure(inputs, targets, shared)
    parameters = list(model.parameters())
    check_usable(parameters, structure)
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError("model: expected parameters that require a gradient, got none; nothing depends on micro_batch_size")
    if structure.num_samples < 2:
        raise ValueError(f"batch: expected at least two samples, got {structure.num_samples}; pass more")
    return structure


def _cuts(size: int, cuts: Sequence[int] | None) -> tuple[int, ...]:
    if cuts is None:
        return tuple(sorted({cut for cut in (size // 2, size // 4, 7, 1) if 1 <= cut < size}, reverse=True))
    wrong = [cut for cut in cuts if not 1 <= cut <= size]
    if wrong or not cuts:
        raise ValueError(f"cuts: expected micro-batch sizes from 1 to {size}, got {list(cuts)}; pass at least one of these")
    return tuple(cuts)


def _doubled(model: nn.Module, loss: Any, batch: BatchStructure) -> tuple[nn.Module, Any, BatchStructure]:
    model, loss = copy.deepcopy((model, loss))  # together, since the loss may know layers of the model
    if isinstance(loss, nn.Module):
        loss = loss.double()
    inputs, targets = (map_tensors(_double, part) for part in (batch.inputs, batch.targets))
    return model.double(), loss, BatchStructure(inputs, targets, batch.shared)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor


def _check(
    model: nn.Module, loss: Any, batch: BatchStructure, cuts: tuple[int, ...], seed: int | None, *, given: bool
) -> CheckResult:
    joined = _Joined(model, loss)
    compare = partial(check_cuts, joined, loss, batch.inputs, batch.targets, seed=seed, shared=batch.shared)
    try:
        layers = compare(cuts)
    except ValueError as error:
        larger = tuple(cut for cut in cuts if cut > 1 and batch.num_samples % cut != 1)
        if larger == cuts:
            raise
        if given or not larger:
            raise ValueError(
                f"cuts: expected micro-batches that the model takes, got the error {str(error)!r}; BatchNorm needs two samples"
            ) from error
        cuts, layers = larger, compare(larger)
    if len(weighty_samples(batch, loss)) < 2:
        raise ValueError("targets: expected at least two samples with a weight, got fewer; pass some that are not ignored")
    layers = tuple(replace(layer, name=_own_name(layer.name)) for layer in layers)
    tolerance = _tolerance(joined.parameters())
    found = CheckResult(layers, cuts, "", tolerance)
    return replace(found, reason=_reason(model, loss, batch, found, seed))


def _reason(model: nn.Module, loss: Any, batch: BatchStructure, found: CheckResult, seed: int | None) -> str:
    across = find_batch_layers(model)
    if across:
        return f"model: {across[0].name} ({across[0].kind}) {across[0].reason}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExactnessWarning)
        try:
            SelfCheck(model, loss, seed).check(batch, batch.num_samples, _device(model))
        except ExactnessError as error:
            return str(error)
    if found.worst <= found.tolerance:
        return ""
    if seed is None:
        return "model: expected no random numbers that are not keyed by sample, got other ones in each pass; pass a seed"
    layer = max(found.layers, key=lambda layer: max(layer.errors))
    return f"model: expected the same gradients for every micro-batch size, got others in {layer.name or JOINED} ({layer.kind})"


def _tolerance(parameters: Iterable[Tensor]) -> float:
    dtypes = {parameter.dtype for parameter in parameters}
    if dtypes <= {torch.float64}:
        return EXACT
    return FINE if dtypes <= {torch.float64, torch.float32} else COARSE


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _own_name(name: str) -> str:
    return "" if name == JOINED else name.removeprefix(f"{JOINED}.")


@final
class _Joined(nn.Module):
    """The model, with the loss's own parameters beside its own."""

    def __init__(self, model: nn.Module, loss: Any) -> None:
        super().__init__()
        self.add_module(JOINED, model)
        if isinstance(loss, nn.Module):
            self.add_module(LOSS, loss)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.get_submodule(JOINED)(*args, **kwargs)
