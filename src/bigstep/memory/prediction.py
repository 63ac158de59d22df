"""Peak memory of an optimizer step, before it is run.

The step runs under fake tensors, which have sizes and no content, as its second micro-batch and later: gradients and
optimizer state are alive. What oneDNN allocates inside an operation no fake tensor shows, so such operations run once, each
by itself, on tensors of the right shape. The peak is affine in the micro-batch size, but for changes of kernel.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from bigstep.memory.inner_peak import inner_peak
from bigstep.memory.measurement import held_bytes, peak_growth
from bigstep.memory.sample_inputs import DtypeTree, ShapeTree, build_inputs, call_model, check_shapes, first_samples
from bigstep.memory.storage_tracker import StorageTracker
from bigstep.memory.torch_internals import FakeCopyMode, FakeTensorMode, tree_leaves
from bigstep.step.precision import PRECISIONS

__all__ = ["MemoryPrediction", "OptimizerFactory", "predict_memory"]

OptimizerFactory = Callable[[Iterable[Tensor]], Optimizer]
OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": lambda parameters: SGD(parameters, lr=1e-9, momentum=0.9),
    "adam": lambda parameters: Adam(parameters, lr=1e-9),
    "adamw": lambda parameters: AdamW(parameters, lr=1e-9),
}


@dataclass(frozen=True)
class MemoryPrediction:
    """Bytes of tensors alive at the peak of a step, for one micro-batch size and, by a line through two, for any.

    The line is of steps of several micro-batches; a step of one has no gradients before its backward pass.
    """

    peak_bytes: int
    fixed_bytes: int
    bytes_per_sample: int
    micro_batch_size: int
    method: str
    """``fake``: predicted; ``measured``: the model cannot run on fake tensors, and was run on real ones."""

    def at(self, micro_batch_size: int) -> int:
        """Return the bytes at another micro-batch size."""
        return self.fixed_bytes + self.bytes_per_sample * micro_batch_size

    def largest(self, budget_bytes: int) -> int:
        """Return the largest micro-batch size within ``budget_bytes``; 0 if none fits."""
        return max(0, (budget_bytes - self.fixed_bytes) // max(self.bytes_per_sample, 1))


@dataclass(frozen=True)
class _Step:
    model: nn.Module
    sample_shape: ShapeTree
    input_dtype: DtypeTree
    dtype: torch.dtype
    optimizer: OptimizerFactory
    autocast: torch.dtype | None
    loss: Callable[[Any], Tensor]
    held_samples: int
    extra_bytes: int
    channels_last: bool


def predict_memory(  # noqa: PLR0913 # keywords with defaults, each apart
    model: nn.Module,
    sample_shape: ShapeTree,
    micro_batch_size: int,
    *,
    optimizer: str | OptimizerFactory = "sgd",
    precision: str = "float32",
    input_dtype: DtypeTree = None,
    loss: Callable[[Any], Tensor] | None = None,
    effective_batch_size: int | None = None,
    average: bool = False,
    channels_last: bool = False,
) -> MemoryPrediction:
    """Predict the most bytes of tensors alive during one optimizer step: parameters, gradients, optimizer state, activations.

    Args:
        model: on the CPU or a GPU, in the mode in which it is trained; it is not changed.
        sample_shape: of one sample, without the batch dimension; a dictionary of shapes is passed as keywords, a tuple of
            shapes as arguments, and both may be nested.
        micro_batch_size: samples of a forward and backward pass.
        optimizer: ``sgd`` (with momentum), ``adam``, ``adamw``, or a function of the parameters.
        precision: ``float32``, ``bfloat16``, ``float16`` or ``float64``, as ``train.precision``.
        input_dtype: of the samples, for all or in the structure of ``sample_shape``; None is that of the parameters.
        loss: from the model's output to a scalar; None is the cross-entropy of logits, or the mean of other outputs.
        effective_batch_size: samples held while the step runs, where they lie on the model's device; None holds a micro-batch.
        average: whether an exponential moving average of the weights is kept beside them.
        channels_last: whether the channels of a pixel lie side by side, as in a decoded file.

    Raises:
        ValueError: ``micro_batch_size`` is below 1, a name is unknown, or shapes and types do not fit together.
    """
    check_shapes(sample_shape, input_dtype)
    if micro_batch_size < 1:
        raise ValueError(f"micro_batch_size: expected an integer >= 1, got {micro_batch_size}; pass a larger one")
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}; pass one of them")
    if isinstance(optimizer, str) and optimizer not in OPTIMIZERS:
        raise ValueError(
            f"optimizer: expected one of {', '.join(OPTIMIZERS)} or a function, got {optimizer!r}; pass one of them"
        )
    kind = PRECISIONS[precision]
    step = _Step(
        model=model,
        sample_shape=sample_shape,
        input_dtype=input_dtype,
        dtype=kind.parameter_dtype,
        optimizer=OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer,
        autocast=kind.autocast,
        loss=loss or _mean_loss,
        held_samples=effective_batch_size or 0,
        extra_bytes=held_bytes(_in_dtype(model, kind.parameter_dtype)) if average else 0,
        channels_last=channels_last,
    )
    other = micro_batch_size // 2 if micro_batch_size >= 4 else 2 * micro_batch_size  # BatchNorm takes no single sample
    try:
        method = "fake"
        fake = FakeTensorMode()
        fake_model = _fake_copy(_in_dtype(model, kind.parameter_dtype), fake)
        with fake:
            peaks, whole = _predict(step, fake_model, (micro_batch_size, other))
    except Exception:  # noqa: BLE001 # whatever a model does that fake tensors do not know: run it instead
        method = "measured"
        peaks = _measure(step, _in_dtype(copy.deepcopy(model), kind.parameter_dtype), (micro_batch_size, other))
        whole = peaks[0]
    slope = round((peaks[0] - peaks[1]) / (micro_batch_size - other))
    return MemoryPrediction(whole, peaks[0] - slope * micro_batch_size, slope, micro_batch_size, method)


def _in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return model if next(model.parameters()).dtype == dtype else copy.deepcopy(model).to(dtype)


def _fake_copy(model: nn.Module, fake: FakeTensorMode) -> nn.Module:
    with FakeCopyMode(fake):
        return copy.deepcopy(model)


def _predict(step: _Step, model: nn.Module, sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return the peak of a micro-batch of each size, and that of a step of the first size: one micro-batch, or several."""
    tracker, update = StorageTracker(), 0
    peaks: dict[int, int] = {}
    known: list[int | None] = []
    with tracker:
        tracker.track_module(model)
        optimizer = _prepare(step, model)
        for size in sorted(sizes):  # the smaller one's probes take less, and spare most of the larger one's
            inner, held, known = _run(step, model, tracker, size, known)
            if not peaks:  # what the update takes on top does not depend on the size
                tracker.restart()
                before = tracker.current_bytes
                optimizer.step()
                update = tracker.peak_bytes - before
            peaks[size] = step.extra_bytes + max(inner, held + update)
        whole = peaks[sizes[0]]
        if 0 < step.held_samples <= sizes[0]:  # one micro-batch: there are no gradients before its backward pass
            optimizer.zero_grad()
            inner, held, _ = _run(step, model, tracker, sizes[0], known)
            whole = step.extra_bytes + max(inner, held + update)
    return [peaks[size] for size in sizes], whole


def _run(
    step: _Step, model: nn.Module, tracker: StorageTracker, size: int, known: Sequence[int | None]
) -> tuple[int, int, list[int | None]]:
    """Return the peak of a micro-batch, the bytes left alive with its inputs, and what :func:`inner_peak` returns."""
    inputs = _inputs(step, model, size)
    tracker.restart()
    _micro_batch(step, model, first_samples(inputs, size))
    inner, known = inner_peak(tracker.calls, tracker.peak_bytes, known)
    return inner, tracker.current_bytes, known


def _measure(step: _Step, model: nn.Module, sizes: Sequence[int]) -> list[int]:
    optimizer, peaks, device = _prepare(step, model), [], next(model.parameters()).device
    for size in sizes:
        inputs = _inputs(step, model, size)
        held = step.extra_bytes + held_bytes(model, optimizer, inputs)

        def run(inputs: Any = inputs, size: int = size) -> None:
            _micro_batch(step, model, first_samples(inputs, size))
            optimizer.step()

        run()
        peaks.append(held + peak_growth(run, device))
    return peaks


def _prepare(step: _Step, model: nn.Module) -> Optimizer:
    """Create gradients and optimizer state, as they are from the second micro-batch of the second step on."""
    optimizer = step.optimizer([p for p in model.parameters() if p.requires_grad])
    for parameter in model.parameters():  # only now: an optimizer that makes its state at once clears them
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    return optimizer


def _inputs(step: _Step, model: nn.Module, size: int) -> Any:
    count, device = max(size, step.held_samples), next(model.parameters()).device
    return build_inputs(step.sample_shape, step.input_dtype, count, device, step.dtype, channels_last=step.channels_last)


def _micro_batch(step: _Step, model: nn.Module, inputs: Any) -> None:
    device = next(model.parameters()).device
    context = torch.autocast(device.type, step.autocast) if step.autocast else contextlib.nullcontext()
    with context:
        value = step.loss(call_model(model, inputs))
    value.backward()  # type: ignore[no-untyped-call] # torch's


def _mean_loss(outputs: Any) -> Tensor:
    losses = []
    for item in tree_leaves(outputs):
        if isinstance(item, Tensor) and item.is_floating_point():
            classes = torch.zeros(len(item), dtype=torch.int64, device=item.device)
            losses.append(
                F.cross_entropy(item, classes, reduction="sum") / len(item) if item.ndim == 2 else item.float().mean()
            )
    return torch.stack(losses).sum() if len(losses) > 1 else losses[0]
