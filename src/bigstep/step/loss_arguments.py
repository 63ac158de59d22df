"""The loss as it was given: torch's own modules are taken as ours, or refused where torch would average otherwise."""

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bigstep.errors import LossError
from bigstep.step.losses import BinaryCrossEntropy, CrossEntropy, MeanSquaredError, is_loss

__all__ = ["resolve_loss"]

WEIGHED = (nn.CrossEntropyLoss, nn.NLLLoss)  # torch divides their mean by the weights of the labels that are not ignored
WEIGHED_FUNCTIONS = (F.cross_entropy, F.nll_loss)


def resolve_loss(loss: Any) -> Any:
    """Return the loss to use for ``loss``.

    Raises:
        LossError: it has class weights that a mean over the samples would count wrongly.
        TypeError: it is neither a loss nor callable.
    """
    if is_loss(loss):
        return loss
    if not callable(loss):
        raise TypeError(f"loss: expected a bigstep loss or a callable (outputs, targets), got {loss!r}")
    if getattr(loss, "reduction", None) == "mean":
        return _ours(loss)
    weighed = isinstance(loss, WEIGHED) or (isinstance(loss, partial) and loss.func in WEIGHED_FUNCTIONS)
    return _checked(loss) if weighed else loss


def _ours(loss: Any) -> Any:
    if type(loss) is nn.CrossEntropyLoss:
        return CrossEntropy(loss.weight, loss.ignore_index, loss.label_smoothing)
    if type(loss) is nn.BCEWithLogitsLoss:
        return BinaryCrossEntropy(loss.weight, loss.pos_weight)
    return MeanSquaredError() if type(loss) is nn.MSELoss else loss


def _checked(loss: Any) -> Any:
    """Refuse class weights, and ignored labels when they come: the mean over samples would not be torch's."""
    options = loss.keywords if isinstance(loss, partial) else vars(loss) | dict(loss.named_buffers())
    name = loss.func.__name__ if isinstance(loss, partial) else type(loss).__name__
    if options.get("weight") is not None:
        raise LossError(
            f"loss: expected one without class weights where losses are given per sample, got {name} with weight=; use "
            "bigstep.losses.CrossEntropy(weight=...), which divides by the weights as torch does, or return (losses, weights)"
        )
    ignored = options.get("ignore_index", -100)

    def checked(outputs: Any, targets: Any) -> Any:
        if isinstance(targets, Tensor) and not targets.is_floating_point() and bool((targets == ignored).any()):
            raise LossError(
                f"targets: expected no ignored label where losses are given per sample, got some of {ignored}; use "
                f"bigstep.losses.CrossEntropy(ignore_index={ignored}), which leaves them out of the mean as torch does"
            )
        return loss(outputs, targets)

    return checked
