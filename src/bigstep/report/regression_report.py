"""The report on a model that predicts numbers: predictions over targets, residuals, and the largest errors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bigstep.atomic_files import whole_file
from bigstep.config.evaluate import EvaluateConfig
from bigstep.data.store import Store
from bigstep.evaluation.regression import NumberAnswers, NumberScores, score_numbers
from bigstep.report.evaluation_page import PageTable
from bigstep.report.evaluation_plots import short_name
from bigstep.report.evaluation_report import draw_worst, shortest, totals_of
from bigstep.report.figures import LINE, new_figure, save_figure
from bigstep.tasks.regression import Regression

__all__ = ["RegressionReport"]

MOST_SHOWN = 9  # numbers in a picture
MOST_POINTS = 5000


@final
class RegressionReport:
    """See :class:`bigstep.report.evaluation_report.EvaluationReport`."""

    def __init__(self, task: Regression, evaluate: EvaluateConfig) -> None:
        """Collect nothing yet."""
        self._task, self._evaluate = task, evaluate
        self._parts: list[NumberAnswers] = []

    @property
    def columns(self) -> list[str]:
        """Actual and predicted numbers; of several each with its name."""
        names = self._task.names
        suffixes = [""] if len(names) == 1 else [f":{name}" for name in names]
        return [f"{what}{suffix}" for suffix in suffixes for what in ("actual", "predicted")]

    @property
    def score_names(self) -> list[str]:
        """Names of the totals."""
        return totals_of(NumberScores)

    def add(self, predictions: NDArray[np.float32], targets: NDArray[Any]) -> Iterator[list[object]]:
        """Keep all numbers."""
        self._parts.append(NumberAnswers.joined([NumberAnswers(predictions, targets)]))
        for given, actual in zip(predictions, targets, strict=True):
            yield [cell for pair in zip(map(repr, actual.tolist()), map(shortest, given), strict=True) for cell in pair]

    def scores(self) -> NumberScores:
        """Return absolute and squared errors, and the share of the variance that is explained."""
        self._answers = NumberAnswers.joined(self._parts)
        return score_numbers(self._answers, self._task.names, self._task.std)

    def table(self, scores: NumberScores) -> PageTable:
        """Return the errors of each number."""
        rows = [
            (item.name, f"{item.mae:.4g}", f"{item.rmse:.4g}", f"{item.r2:.3f}", f"{item.support}") for item in scores.classes
        ]
        worst = sorted(range(len(rows)), key=lambda row: scores.classes[row].r2)
        return PageTable(("target", "MAE", "RMSE", "R2", "samples"), rows, worst, "lowest R2")

    def calibration(self, scores: NumberScores) -> str:
        """Return the mean error of each number: there are no probabilities."""
        means = self._answers.errors.mean(axis=0)[:MOST_SHOWN]
        shown = ", ".join(f"{mean:+.3g} ({item.name})" for mean, item in zip(means, scores.classes, strict=False))
        return f"There are no probabilities to calibrate. The mean of predicted - actual is {shown}."

    def draw(self, store: Store, folder: Path) -> dict[str, str]:
        """Draw predictions over targets, residuals over predictions, and the samples with the largest errors."""
        answers = self._answers
        with whole_file(folder / "confusion.png") as beside:
            _draw_points(answers.actual, answers.predicted, self._task.names, ("actual", "predicted"), beside)
        with whole_file(folder / "calibration.png") as beside:
            _draw_points(answers.predicted, answers.errors, self._task.names, ("predicted", "predicted - actual"), beside)
        sizes = np.abs(answers.errors / np.asarray(self._task.std)).max(axis=1)
        worst = np.argsort(-sizes, kind="stable")[: self._evaluate.num_mistakes]
        captions = [(_text(answers.actual[row]), _text(answers.predicted[row])) for row in worst]
        return {
            "Predicted over actual numbers": "confusion.png",
            "Residuals": "calibration.png",
            "Largest errors": draw_worst(store, worst, captions, folder),
        }


def _text(numbers: NDArray[Any]) -> str:
    return short_name(" ".join(f"{number:.4g}" for number in numbers), 24)


def _draw_points(x: NDArray[Any], y: NDArray[Any], names: tuple[str, ...], labels: tuple[str, str], path: Path) -> None:
    """Draw a panel for each of the first numbers; the line is where a perfect model's points are."""
    count = min(len(names), MOST_SHOWN)
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    figure = new_figure(3.6 * columns, 3.4 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.axis("off")
    every = max(1, -(-len(x) // MOST_POINTS))
    for column, axes in enumerate(grid[:count]):
        across, up = x[::every, column], y[::every, column]
        axes.plot(across, up, color=LINE, marker="o", markersize=2, linestyle="none", alpha=0.6)
        ends = [float(across.min()), float(across.max())]
        axes.plot(ends, ends if labels[1] == "predicted" else [0, 0], color="#9ca3af", linestyle="--", linewidth=1)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.set_title(short_name(names[column]), fontsize=9, parse_math=False)
    save_figure(figure, path)
