"""The scores of ``evaluate.metrics``: classes of torchmetrics by name, or code that the project brings."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, final

import torch
from torch import Tensor

from bigstep.config.section import Named, named_items
from bigstep.config.yaml_files import nearest
from bigstep.errors import ConfigError, ModelError
from bigstep.evaluation.predictions import Predictions
from bigstep.tasks.targets import CLASSIFICATION, MULTILABEL
from bigstep.tasks.task import Task
from bigstep.user_code import call_user_code, is_user_code, load_user_code, load_user_function
from bigstep.user_places import place_of, user_code_line

__all__ = ["MoreMetrics"]

WHAT = "a function that returns a number, or a class with update and compute"
KINDS = {CLASSIFICATION: "multiclass", MULTILABEL: "multilabel"}


class _Metric(Protocol):
    def update(self, predictions: Tensor, targets: Tensor) -> None: ...

    def compute(self) -> Any: ...


@final
class MoreMetrics:
    """Scores beside those of the task, computed from the predictions of the test part as they pass."""

    def __init__(self, metrics: Sequence[Named], task: Task, taken: Sequence[str] = ()) -> None:
        """Build each metric.

        Args:
            metrics: names, with arguments.
            task: of the data.
            taken: names of the task's own scores.

        Raises:
            ConfigError: there is no such metric, or it does not accept its arguments.
            ModelError: making one of the project's own raised an exception.
        """
        self._task = task
        self._metrics: dict[str, tuple[str, _Metric]] = {}
        for name, options in (item for named in metrics for item in named_items(named)):
            short = name.rpartition(":")[2]
            if short in self._metrics or short in taken:
                raise ConfigError(f"evaluate.metrics: expected a name that is not taken, got {short} again; rename it")
            self._metrics[short] = name, _build(name, options, task)

    def watch(self, batches: Iterator[Predictions]) -> Iterator[Predictions]:
        """Yield the batches, and add each to every metric."""
        for predictions, targets in batches:
            given, actual = torch.tensor(predictions), torch.tensor(targets)
            if self._task.name == MULTILABEL:
                actual = actual.long()
            elif self._task.name != CLASSIFICATION:
                actual = actual.to(given.dtype)
                if len(self._task.names) == 1:
                    given, actual = given[:, 0], actual[:, 0]
            for name, metric in self._metrics.values():
                with _named(name):
                    metric.update(given.clone(), actual.clone())  # a metric may change what it gets
            yield predictions, targets

    def values(self) -> dict[str, float]:
        """Return each score by the last part of its name.

        Raises:
            ModelError: one is no number.
        """
        return {short: self._value(name, metric) for short, (name, metric) in self._metrics.items()}

    def _value(self, name: str, metric: _Metric) -> float:
        with _named(name):
            found = metric.compute()
            number = torch.as_tensor(found)
        if number.numel() != 1:
            raise ModelError(
                f"evaluate.metrics {name}: expected one number, got {number.numel()}; set its arguments so that it averages"
            )
        return float(number)


@final
class _Collected:
    """A function of all predictions and targets."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._parts: list[tuple[Tensor, Tensor]] = []

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        self._parts.append((predictions, targets))

    def compute(self) -> Any:
        predictions, targets = (torch.cat(part) for part in zip(*self._parts, strict=True))
        return self._function(predictions, targets)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn what a metric raises into one line, with its place where it is the project's own."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        problem = user_code_line(error) or f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}; correct it"
        raise ModelError(f"evaluate.metrics {name}: {problem}") from error


def _build(name: str, options: dict[str, Any], task: Task) -> _Metric:
    count = len(task.names)
    if not is_user_code(name):
        return _of_torchmetrics(name, options, task)
    found = load_user_code(name, "model", "evaluate.metrics", WHAT)
    if isinstance(found, type):
        offered = {"num_classes": count, "num_outputs": count}
        metric: Any = call_user_code(found, name, "evaluate.metrics", offered, options, "evaluate.metrics")
        if not all(callable(getattr(metric, method, None)) for method in ("update", "compute")):
            raise ConfigError(f"evaluate.metrics {name} ({place_of(found)}): expected {WHAT}, got neither; add the methods")
        made: _Metric = metric
        return made
    return _Collected(load_user_function(name, "evaluate.metrics", WHAT, ("predictions", "targets"), {}, options))


def _of_torchmetrics(name: str, options: dict[str, Any], task: Task) -> _Metric:
    try:
        import torchmetrics
    except ImportError:
        raise ConfigError(
            f"evaluate.metrics: expected the package torchmetrics for {name}, got none; install bigstep[metrics]"
        ) from None
    homes = (torchmetrics.classification, torchmetrics.regression)
    known = {key: getattr(home, key) for home in homes for key in home.__all__}
    if name not in known:
        raise ConfigError(
            f"evaluate.metrics: expected a class of torchmetrics.classification or torchmetrics.regression, or your own as "
            f"custom/model/file.py:name, got {name!r}; {_hint(name, known)}"
        )
    count = len(task.names)
    offered: dict[str, Any] = {"num_classes": count, "num_labels": count, "num_outputs": count}
    if task.name in KINDS:
        offered["task"] = KINDS[task.name]
    parameters = _parameters(known[name])
    wanted = {key: value for key, value in offered.items() if key in parameters}
    try:
        metric: _Metric = known[name](**{**wanted, **options})
        return metric
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"evaluate.metrics: {name} does not accept these arguments ({(str(error).splitlines() or [''])[0]}); fix them"
        ) from None


def _parameters(kind: Any) -> set[str]:
    """Return the names of the arguments of a class, also of one that chooses another one for its task."""
    return {key for method in (kind.__init__, kind.__new__) for key in inspect.signature(method).parameters}


def _hint(name: str, known: dict[str, Any]) -> str:
    hint = nearest(name, known)
    return hint if hint.startswith("did") else "see the documentation of torchmetrics"
