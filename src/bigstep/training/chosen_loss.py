"""The key ``train.loss`` into a loss: the task's own, one of torch's by name, or one that the project brings."""

from typing import Any, final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigstep.config.section import named_items
from bigstep.config.train import TrainConfig
from bigstep.config.yaml_files import nearest
from bigstep.errors import ConfigError, ModelError
from bigstep.step.losses import BinaryCrossEntropy, CrossEntropy, MeanSquaredError, is_loss
from bigstep.step.precision import PRECISIONS
from bigstep.tasks.regression import Regression, StandardizedCall, StandardizedLoss
from bigstep.tasks.targets import CLASSIFICATION, MULTILABEL, REGRESSION
from bigstep.tasks.task import Task, refuse
from bigstep.user_code import is_user_code, load_user_function
from bigstep.user_places import place_of, user_code_line

__all__ = ["PerSample", "build_loss"]

OF_TORCH = {
    CLASSIFICATION: ("CrossEntropyLoss", "MultiMarginLoss"),
    MULTILABEL: ("BCEWithLogitsLoss", "MultiLabelSoftMarginLoss"),
    REGRESSION: ("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss"),
}
OURS = {"CrossEntropyLoss": CrossEntropy, "BCEWithLogitsLoss": BinaryCrossEntropy, "MSELoss": MeanSquaredError}
WHAT = "a function, or a class whose objects are called, that returns one loss per sample"
REPLACED = ("label_smoothing", "class_weights")  # keys that the arguments of the chosen loss replace


@final
class PerSample(nn.Module):
    """A loss that is called with outputs and targets and returns one loss per sample, optionally with their weights."""

    def __init__(self, name: str, function: Any) -> None:
        """Call ``function``, which is ``name`` in params.yaml."""
        super().__init__()
        self.name = name
        self.function = function

    def forward(self, outputs: Tensor, targets: Tensor) -> Any:
        """Return losses ``(n,)``, or a tuple of losses and weights; of one loss for each number its mean.

        Raises:
            ModelError: it returned something else; the line names the code.
        """
        found = self.function(outputs, targets)
        losses, *weights = found if isinstance(found, tuple) else (found,)
        if not isinstance(losses, Tensor) or losses.ndim < 1 or len(losses) != len(outputs):
            shown = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
            raise ModelError(
                f"train.loss {self.name} ({place_of(self.function)}): expected one loss per "
                f"sample, shape ({len(outputs)},), got {shown}; do not reduce over the batch"
            )
        means = losses.flatten(1).mean(dim=1) if losses.ndim > 1 else losses
        return (means, *weights) if weights else means


def build_loss(train: TrainConfig, task: Task, targets: NDArray[Any] | None, device: torch.device) -> Any:
    """Return the loss to train with: as of :class:`bigstep.step.losses.Loss`, or a callable.

    Args:
        train: the section ``train``.
        task: of the data.
        targets: of the training part, for ``train.class_weights``; None: no weights.
        device: of the model.

    Raises:
        ConfigError: there is no such loss for the task, or it does not take its arguments, outputs and targets.
        ModelError: it does not return one loss per sample.
    """
    if train.loss is None:
        return task.loss(train, targets)
    refuse(task, train, *REPLACED, because="with train.loss, which takes such as an argument")
    (name, options), *others = named_items(train.loss)
    if others:
        raise ConfigError(f"train.loss: expected one loss, got {len(others) + 1}; write one name with its arguments")
    dtype = PRECISIONS[train.precision].parameter_dtype
    loss = _own(name, options, task) if is_user_code(name) else _of_torch(name, options, task, dtype)
    if isinstance(loss, nn.Module):
        loss = loss.to(device)
    if isinstance(task, Regression):
        loss = StandardizedCall(loss, task) if isinstance(loss, nn.Module) else StandardizedLoss(loss, task)
    _try(loss, name, train, task, torch.zeros(2, len(task.names), device=device, dtype=dtype))
    return loss


def _own(name: str, options: dict[str, Any], task: Task) -> PerSample:
    count = len(task.names)
    offered = {"num_classes": count, "num_outputs": count}
    function = load_user_function(name, "train.loss", WHAT, ("outputs", "targets"), offered, options)
    loss = PerSample(name, function)
    if next(loss.parameters(), None) is not None:
        raise ModelError(f"train.loss {name}: expected a loss without parameters, which nothing would train; use buffers")
    return loss


def _of_torch(name: str, options: dict[str, Any], task: Task, dtype: torch.dtype) -> Any:
    known = OF_TORCH[task.name]
    if name not in known:
        raise ConfigError(
            f"train.loss: expected a loss for targets of {task.name}, or your own as custom/model/file.py:name, got {name!r}; "
            f"{nearest(name, known)}"
        )
    try:
        values = {key: _as_weights(value) for key, value in options.items()}
        if name in OURS:
            return OURS[name](**values)
        kind = getattr(nn, name)(**values, reduction="none").to(dtype)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.loss: {name} does not accept these arguments ({error}); fix them") from None
    return PerSample(name, _InOutputsType(kind))


def _as_weights(value: Any) -> Any:
    """Return a list as a tensor, whole numbers in it too; other values as they are."""
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, list | tuple) else value


@final
class _InOutputsType(nn.Module):
    """Calls a loss of torch with targets in the type of the outputs, where they are no class indices."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, targets: Tensor) -> Any:
        return self.loss(outputs, targets if targets.ndim == 1 else targets.to(outputs.dtype))


def _try(loss: Any, name: str, train: TrainConfig, task: Task, outputs: Tensor) -> None:
    """Call the loss with two samples, and where samples are mixed with mixed targets, so that what fails does so at once."""
    count, device = len(task.names), outputs.device
    kinds = [torch.zeros(2, dtype=torch.int64)] if task.name == CLASSIFICATION else []
    if task.name == MULTILABEL:
        kinds.append(torch.zeros(2, count, dtype=torch.uint8))
    if task.name == REGRESSION:
        kinds.append(torch.zeros(2, count, dtype=torch.float64))
    elif train.mixup_alpha is not None or train.cutmix_alpha is not None:
        kinds.append(torch.full((2, count), 1 / count))
    for targets in kinds:
        try:
            loss.sum(outputs, targets.to(device)) if is_loss(loss) else loss(outputs, targets.to(device))
        except ModelError:
            raise
        except Exception as error:
            problem = user_code_line(error) or f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}; correct it"
            raise ConfigError(
                f"train.loss {name}: expected a loss for outputs of shape {tuple(outputs.shape)} and targets of shape "
                f"{tuple(targets.shape)}, got {problem}"
            ) from error
