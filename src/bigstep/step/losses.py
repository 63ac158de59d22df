"""A loss is (sum, weight): the sums of micro-batches add up, and their total is divided once.

For a batch with per-sample losses l and weights w, torch's ``reduction="mean"`` is sum(w * l) / sum(w). Each class here gives
the numerator of a micro-batch (:meth:`Loss.sum`) and the denominator of the whole effective batch (:meth:`Loss.weight`),
which needs the targets only, so it is known before the first forward pass.
"""

from typing import Any, Protocol, TypeGuard, final, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from bigstep.errors import LossError

__all__ = ["BinaryCrossEntropy", "CausalLM", "CrossEntropy", "Loss", "MeanSquaredError", "is_loss", "sample_weights"]


@runtime_checkable
class Loss(Protocol):
    """What the accumulator needs of a loss whose weight follows from the targets.

    A method ``sample_weights(targets)`` beside these, the share of each sample in the weight, shape ``(n,)``, makes the
    gradient noise scale exact where samples weigh differently.
    """

    def sum(self, outputs: Any, targets: Any) -> Tensor:
        """Sum the weighted losses of a micro-batch: a scalar that carries a gradient."""
        ...

    def weight(self, targets: Any) -> float:
        """Return what ``reduction="mean"`` divides by for these targets (read from the device once)."""
        ...


@final
class CrossEntropy:
    """:func:`torch.nn.functional.cross_entropy`, with its argument names.

    ``targets`` are class indices of shape ``(n, ...)``, weighed by the class weights of the labels that are not ignored, or
    probabilities of shape ``(n, C, ...)``, weighed by their number of samples, as torch does.
    """

    def __init__(self, weight: Tensor | None = None, ignore_index: int = -100, label_smoothing: float = 0.0) -> None:
        """Accept torch's arguments; ``weight`` has shape ``(C,)``."""
        self.class_weights = None if weight is None else weight.detach()
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self._host_weights = None if weight is None else weight.detach().to("cpu", torch.float64)

    def sum(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum over a micro-batch; ``outputs`` are logits of shape ``(n, C, ...)``, or an object with them as ``logits``.

        Raises:
            LossError: outputs or targets are of another kind or shape.
        """
        logits, targets = _widened(_logits(outputs)), _labels(targets)
        if targets.is_floating_point() and targets.shape != logits.shape:
            raise LossError(
                f"targets: expected probabilities of the logits' shape {tuple(logits.shape)}, got {tuple(targets.shape)}; "
                "class indices have to be integers"
            )
        weights = self.class_weights
        return F.cross_entropy(
            logits,
            targets if not targets.is_floating_point() else targets.to(logits.dtype),
            weight=None if weights is None else weights.to(logits.device, logits.dtype),
            ignore_index=self.ignore_index,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def weight(self, targets: Tensor) -> float:
        """Sum the class weights of the valid labels; count the samples of soft targets."""
        targets = _labels(targets)
        if targets.is_floating_point():
            return targets.numel() / targets.shape[1]
        valid = targets[targets != self.ignore_index]
        if self._host_weights is None:
            return float(valid.numel())
        return float(self._host_weights[valid.cpu().long()].sum())

    def sample_weights(self, targets: Tensor) -> Tensor:
        """Return the share of each sample in :meth:`weight`, shape ``(n,)``, float64 on the host."""
        targets = _labels(targets)
        if targets.is_floating_point():
            return _equal_weights(targets, targets.numel() / targets.shape[1])
        labels = targets.cpu().long()  # uint8 would be a mask
        valid = labels != self.ignore_index
        if self._host_weights is None:
            return valid.double() if valid.dim() == 1 else valid.double().reshape(len(labels), -1).sum(dim=1)
        weights = self._host_weights[labels.where(valid, 0) if len(self._host_weights) > 1 else torch.zeros_like(labels)]
        return (weights * valid).reshape(len(labels), -1).sum(dim=1)


@final
class CausalLM:
    """The loss of a causal language model: cross-entropy of each next token, averaged over the tokens of all samples.

    ``targets`` are token ids of shape ``(n, L)``, usually the inputs themselves: the shift by one is made here, and ids of
    ``ignore_index`` (padding) are left out. ``outputs`` are logits of shape ``(n, L, V)``, or an object with ``logits``.
    """

    def __init__(self, ignore_index: int = -100) -> None:
        """Leave tokens of ``ignore_index`` out."""
        self.ignore_index = ignore_index
        self._tokens = CrossEntropy(ignore_index=ignore_index)

    def sum(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum over the tokens of a micro-batch, in float32 or wider.

        Raises:
            LossError: outputs or targets are of another kind or shape.
        """
        logits, targets = _logits(outputs), _token_ids(targets)
        if logits.ndim != 3 or targets.shape != logits.shape[:2]:
            raise LossError(
                f"targets: expected token ids of shape (n, L) for logits of shape (n, L, V), got {tuple(targets.shape)} for "
                f"{tuple(logits.shape)}; give the ids of the inputs, unshifted"
            )
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return self._tokens.sum(wide[:, :-1].transpose(1, 2), targets[:, 1:])

    def weight(self, targets: Tensor) -> float:
        """Count the tokens that are predicted."""
        return self._tokens.weight(_token_ids(targets)[:, 1:])

    def sample_weights(self, targets: Tensor) -> Tensor:
        """Count them for each sample, shape ``(n,)``."""
        return self._tokens.sample_weights(_token_ids(targets)[:, 1:])


@final
class BinaryCrossEntropy:
    """:func:`torch.nn.functional.binary_cross_entropy_with_logits`, with its argument names, for one or many labels.

    ``weight`` and ``pos_weight`` have the shape of one sample's labels (no batch dimension), or one that broadcasts to it.
    """

    def __init__(self, weight: Tensor | None = None, pos_weight: Tensor | None = None) -> None:
        """Accept torch's arguments."""
        self.label_weights = weight
        self.pos_weight = pos_weight

    def sum(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum over a micro-batch; ``outputs`` are logits of the shape of ``targets``, or an object with them as ``logits``.

        Raises:
            LossError: the shapes differ.
        """
        logits, targets = _same_shape(_widened(_logits(outputs)), targets)
        return F.binary_cross_entropy_with_logits(
            logits,
            targets.to(logits.dtype),
            weight=_like(self.label_weights, logits),
            pos_weight=_like(self.pos_weight, logits),
            reduction="sum",
        )

    def weight(self, targets: Tensor) -> float:
        """Count the elements."""
        return float(_tensor(targets).numel())


@final
class MeanSquaredError:
    """:func:`torch.nn.functional.mse_loss`."""

    def sum(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum over a micro-batch; ``outputs`` have the shape of ``targets``, or an object has them as ``logits``.

        Raises:
            LossError: the shapes differ.
        """
        values, targets = _same_shape(_widened(_logits(outputs)), targets)
        return F.mse_loss(values, targets.to(values.dtype), reduction="sum")

    def weight(self, targets: Tensor) -> float:
        """Count the elements."""
        return float(_tensor(targets).numel())


def _widened(outputs: Tensor) -> Tensor:
    """Return outputs in float32 where torch's autocast takes them so: targets and weights would be rounded to 16 bits."""
    is_narrow = outputs.dtype in (torch.float16, torch.bfloat16)
    return outputs.float() if is_narrow and torch.is_autocast_enabled(outputs.device.type) else outputs


def is_loss(loss: Any) -> TypeGuard[Loss]:
    """Return whether a loss has the methods of :class:`Loss`; ``isinstance`` takes ten times as long, and any attribute."""
    return callable(getattr(loss, "sum", None)) and callable(getattr(loss, "weight", None))


def sample_weights(loss: Loss, targets: Any, count: int) -> Tensor:
    """Return the share of each of ``count`` samples in the loss's weight; equal ones if the loss does not say."""
    method = getattr(loss, "sample_weights", None)
    if method is None:
        return torch.full((count,), loss.weight(targets) / count, dtype=torch.float64)
    weights: Tensor = method(targets)
    return weights


def _logits(outputs: Any) -> Tensor:
    logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    return _tensor(logits, "outputs: expected a tensor, or an object with a tensor 'logits'", outputs)


def _tensor(value: Any, rule: str = "targets: expected a tensor", given: Any = None) -> Tensor:
    """Return ``value``, or refuse ``given``, of which it is a part, by the rule."""
    if not isinstance(value, Tensor):
        kind = type(value if given is None else given).__name__
        raise LossError(f"{rule}, got {kind}; give a callable loss (outputs, targets) that returns one loss per sample")
    return value


def _labels(targets: Any) -> Tensor:
    labels = _tensor(targets)
    if labels.is_floating_point() and labels.ndim < 2:
        raise LossError(
            f"targets: expected class indices as integers, or probabilities of shape (n, C, ...), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}; call .long() for class indices"
        )
    return labels


def _token_ids(targets: Any) -> Tensor:
    ids = _tensor(targets)
    if ids.is_floating_point() or ids.ndim != 2:
        raise LossError(
            f"targets: expected token ids of shape (n, L), got {ids.dtype} of shape {tuple(ids.shape)}; "
            "give the ids of the inputs, unshifted"
        )
    return ids


def _same_shape(outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
    if outputs.shape != _tensor(targets).shape:
        raise LossError(
            f"outputs: expected the shape of the targets {tuple(targets.shape)}, got {tuple(outputs.shape)}, which would "
            "broadcast or fail; reshape one of them"
        )
    return outputs, targets


def _equal_weights(targets: Tensor, weight: float) -> Tensor:
    return torch.full((len(targets),), weight / len(targets), dtype=torch.float64)


def _like(value: Tensor | None, outputs: Tensor) -> Tensor | None:
    return None if value is None else value.to(outputs.device, outputs.dtype)
