"""The scores of a model that predicts numbers, in the units of the targets."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bigstep.evaluation.predictions import check_finite
from bigstep.tasks.target_kinds import ROUNDING

__all__ = ["NumberAnswers", "NumberScores", "OneNumberScores", "score_numbers"]


@dataclass(frozen=True)
class OneNumberScores:
    """Scores of one number: mean absolute error, root of the mean squared error, coefficient of determination."""

    name: str
    mae: float
    rmse: float
    r2: float
    support: int


@dataclass(frozen=True)
class NumberScores:
    """Scores on one split: means over the numbers; ``loss`` is the mean squared error of standardised numbers."""

    mae: float
    rmse: float
    r2: float
    loss: float
    classes: tuple[OneNumberScores, ...]

    @property
    def title(self) -> str:
        """The most important of them, in words."""
        return f"{self.mae:.4g} test mean absolute error"

    def summary(self) -> dict[str, float]:
        """Return the totals by name."""
        return {"mae": self.mae, "rmse": self.rmse, "r2": self.r2, "loss": self.loss}


@dataclass(frozen=True)
class NumberAnswers:
    """Predictions and targets of all samples, ``(n, numbers)`` in float32 and float64."""

    predicted: NDArray[np.float32]
    actual: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: "list[NumberAnswers]") -> "NumberAnswers":
        """Join the answers of batches, in their order.

        Raises:
            ModelError: a prediction is not a finite number.
        """
        predicted = np.concatenate([part.predicted for part in parts])
        check_finite(predicted)
        return cls(predicted, np.concatenate([part.actual for part in parts]))

    @property
    def errors(self) -> NDArray[np.float64]:
        """Predictions minus targets."""
        return self.predicted.astype(np.float64) - self.actual


def score_numbers(answers: NumberAnswers, names: tuple[str, ...], std: tuple[float, ...]) -> NumberScores:
    """Compute the scores of each number, and their means; ``std`` are the standard deviations that the loss is in."""
    errors, actual = answers.errors, answers.actual
    count = len(errors)
    each = []
    for column, name in enumerate(names):
        squares = math.fsum(errors[:, column] ** 2)
        mean = math.fsum(actual[:, column]) / count
        spread = math.fsum((actual[:, column] - mean) ** 2)
        is_constant = math.sqrt(spread / count) <= ROUNDING * abs(mean)  # the mean of equal numbers may differ from them
        r2 = float(squares == 0) if is_constant else 1 - squares / spread
        each.append(OneNumberScores(name, math.fsum(np.abs(errors[:, column])) / count, math.sqrt(squares / count), r2, count))
    return NumberScores(
        mae=math.fsum(item.mae for item in each) / len(each),
        rmse=math.fsum(item.rmse for item in each) / len(each),
        r2=math.fsum(item.r2 for item in each) / len(each),
        loss=math.fsum((item.rmse / scale) ** 2 for item, scale in zip(each, std, strict=True)) / len(each),
        classes=tuple(each),
    )
