"""How answers are judged in each task: what members are chosen by, and the score that is compared."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, final

import numpy as np
from numpy.typing import NDArray

from bigstep.comparison.paired import Interval, paired_interval, paired_score_interval
from bigstep.ensembles.combining import fit_label_temperature, fit_temperature, label_nats, nats
from bigstep.evaluation.classification import Answers, score
from bigstep.evaluation.multilabel import LabelAnswers, score_labels
from bigstep.evaluation.regression import NumberAnswers, score_numbers
from bigstep.report.evaluation_report import EvaluationScores
from bigstep.tasks.regression import Regression
from bigstep.tasks.targets import MULTILABEL
from bigstep.tasks.task import Task

__all__ = ["Gain", "Measure", "Part", "measure_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """One model's answers to a part of the data: what the task predicts ``(n, outputs)``, and the targets as stored."""

    predictions: Floats
    targets: NDArray[Any]


@dataclass(frozen=True)
class Gain:
    """How a gain is written."""

    factor: float = 1
    unit: str = ""
    digits: str = "+.3f"

    def text(self, interval: Interval) -> str:
        """Return it with its interval."""
        mean, low, high = (format(self.factor * value, self.digits) for value in (interval.mean, interval.low, interval.high))
        return f"{mean}{self.unit} (95 % interval {low} to {high})"


class Measure(Protocol):
    """How the answers of one task are judged."""

    @property
    def title(self) -> str:
        """The score in words."""
        ...

    @property
    def name(self) -> str:
        """The score's name among those of the test part."""
        ...

    @property
    def gains(self) -> tuple["Gain", "Gain"]:
        """How gains in score and in loss are written."""
        ...

    def losses(self, part: Part) -> Floats:
        """Return the loss of each sample, ``(n,)``."""
        ...

    def chosen_by(self, part: Part) -> float:
        """Return the metric by which the champion is chosen, too; the lower wins."""
        ...

    def score(self, part: Part) -> float:
        """Return the score."""
        ...

    def gain(self, part: Part, other: Part) -> Interval:
        """Return by how much ``part`` has the better score than ``other``, over the same samples."""
        ...

    def temperature(self, part: Part) -> float:
        """Return what calibrates the answers; 1 where nothing does."""
        ...

    def scores(self, part: Part, *, num_bins: int) -> EvaluationScores:
        """Return all scores of the test part."""
        ...


@dataclass(frozen=True)
class ProbabilityMeasure(ABC):
    """What judges probabilities: the mean loss chooses."""

    task: Task

    @abstractmethod
    def losses(self, part: Part) -> Floats:
        """Return nats."""

    def chosen_by(self, part: Part) -> float:
        """Return the mean loss."""
        return float(self.losses(part).mean())


@final
@dataclass(frozen=True)
class ClassMeasure(ProbabilityMeasure):
    """Accuracy, and the negative log-likelihood of the true class; predictions are probabilities whose sum is 1."""

    title: ClassVar[str] = "accuracy"
    name: ClassVar[str] = "accuracy"
    gains: ClassVar[tuple[Gain, Gain]] = (Gain(100, " points"), Gain(unit=" nats"))

    def losses(self, part: Part) -> Floats:
        """Return nats."""
        return nats(part.predictions, part.targets)

    def score(self, part: Part) -> float:
        """Return the share of the samples that are right."""
        return float(_is_right(part).mean())

    def gain(self, part: Part, other: Part) -> Interval:
        """Return the gain in accuracy."""
        return paired_interval(_is_right(part) - _is_right(other))

    def temperature(self, part: Part) -> float:
        """Fit it to the probabilities."""
        return fit_temperature(part.predictions, part.targets)

    def scores(self, part: Part, *, num_bins: int) -> EvaluationScores:
        """Return those of a single model."""
        return score(Answers.of(part.predictions.astype(np.float32), part.targets), self.task.names, calibration_bins=num_bins)


@final
@dataclass(frozen=True)
class LabelMeasure(ProbabilityMeasure):
    """F1 averaged over the labels, and binary cross-entropy."""

    title: ClassVar[str] = "macro F1"
    name: ClassVar[str] = "macro_f1"
    gains: ClassVar[tuple[Gain, Gain]] = (Gain(digits="+.4f"), Gain(unit=" nats"))

    def losses(self, part: Part) -> Floats:
        """Return nats, averaged over the labels."""
        return label_nats(part.predictions, part.targets)

    def score(self, part: Part) -> float:
        """Return F1 averaged over the labels."""
        return float(_macro_f1(_hits(part).mean(axis=0, keepdims=True))[0])

    def gain(self, part: Part, other: Part) -> Interval:
        """Return the gain in F1, which is computed again for each resampling."""
        return paired_score_interval(_hits(part), _hits(other), _macro_f1)

    def temperature(self, part: Part) -> float:
        """Fit one to the probabilities of all labels."""
        return fit_label_temperature(part.predictions, part.targets)

    def scores(self, part: Part, *, num_bins: int) -> EvaluationScores:
        """Return those of a single model."""
        answers = LabelAnswers.joined([LabelAnswers(part.predictions.astype(np.float32), part.targets)])
        return score_labels(answers, self.task.names, num_bins=num_bins)


@final
@dataclass(frozen=True)
class NumberMeasure:
    """The mean absolute error, and the squared error of standardised numbers; a gain is a lower error."""

    task: Regression
    title: ClassVar[str] = "mean absolute error"
    name: ClassVar[str] = "mae"
    gains: ClassVar[tuple[Gain, Gain]] = (Gain(digits="+.4g"), Gain(digits="+.4f"))

    def losses(self, part: Part) -> Floats:
        """Return squares of errors in standard deviations, averaged over the numbers."""
        squares: Floats = np.square((part.predictions - part.targets) / np.asarray(self.task.std)).mean(axis=1)
        return squares

    def chosen_by(self, part: Part) -> float:
        """Return the mean absolute error."""
        return self.score(part)

    def score(self, part: Part) -> float:
        """Return the mean absolute error."""
        return float(_errors(part).mean())

    def gain(self, part: Part, other: Part) -> Interval:
        """Return by how much the error is lower."""
        return paired_interval(_errors(other) - _errors(part))

    def temperature(self, part: Part) -> float:
        """Return 1: numbers have no probabilities."""
        del part
        return 1.0

    def scores(self, part: Part, *, num_bins: int) -> EvaluationScores:
        """Return those of a single model."""
        del num_bins
        answers = NumberAnswers.joined([NumberAnswers(part.predictions.astype(np.float32), part.targets)])
        return score_numbers(answers, self.task.names, self.task.std)


def _is_right(part: Part) -> Floats:
    right: Floats = (part.predictions.argmax(axis=1) == part.targets).astype(np.float64)
    return right


def _errors(part: Part) -> Floats:
    found: Floats = np.abs(part.predictions - part.targets).mean(axis=1)
    return found


def _hits(part: Part) -> Floats:
    """Return, for each label, whether it is given rightly, and how many of answer and target have it, ``(n, 2 labels)``."""
    given, has = part.predictions > 0.5, part.targets == 1
    return np.concatenate([given & has, given.astype(np.int8) + has.astype(np.int8)], axis=1, dtype=np.float64)


def _macro_f1(means: Floats) -> Floats:
    """Return the mean of the labels' F1 of each set of samples; that of a label without answers is 0."""
    hits, both = np.split(means, 2, axis=1)
    f1: Floats = np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
    found: Floats = f1.mean(axis=1)
    return found


def measure_of(task: Task) -> Measure:
    """Return how answers to a task are judged."""
    if isinstance(task, Regression):
        return NumberMeasure(task)
    return LabelMeasure(task) if task.name == MULTILABEL else ClassMeasure(task)
