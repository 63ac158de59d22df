"""The report on a classifier: confusion matrix, calibration, and the worst mistakes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bigstep.atomic_files import whole_file
from bigstep.config.evaluate import EvaluateConfig
from bigstep.data.store import Store
from bigstep.evaluation.classification import Answers, Scores, confusion_matrix, score
from bigstep.report.class_charts import calibration_chart, confusion_chart
from bigstep.report.evaluation_page import PageTable
from bigstep.report.evaluation_plots import (
    MOST_CONFUSED,
    draw_calibration,
    draw_confusion,
    most_confused,
    reliability,
    short_name,
)
from bigstep.report.evaluation_report import draw_worst, shortest, totals_of
from bigstep.tasks.task import Task

__all__ = ["ClassificationReport", "class_table"]

MANY_CLASSES = 100  # with more, predictions.csv holds the likeliest classes instead of a column for each
LIKELIEST = ["p_actual", *(f"{column}{rank}" for rank in range(1, 6) for column in ("class", "p"))]


@final
class ClassificationReport:
    """See :class:`bigstep.report.evaluation_report.EvaluationReport`."""

    def __init__(self, task: Task, evaluate: EvaluateConfig) -> None:
        """Collect nothing yet."""
        self._classes, self._evaluate = task.names, evaluate
        self._parts: list[Answers] = []

    @property
    def columns(self) -> list[str]:
        """Actual and predicted class, and probabilities."""
        classes = self._classes
        return ["actual", "predicted", *([f"p:{name}" for name in classes] if len(classes) <= MANY_CLASSES else LIKELIEST)]

    @property
    def score_names(self) -> list[str]:
        """Names of the totals."""
        return totals_of(Scores)

    def add(self, predictions: NDArray[np.float32], targets: NDArray[Any]) -> Iterator[list[object]]:
        """Keep a few numbers a sample."""
        part = Answers.of(predictions, targets)
        self._parts.append(part)
        for row, probabilities in enumerate(predictions):
            actual, predicted = self._classes[targets[row]], self._classes[part.predicted[row]]
            yield [actual, predicted, *self._cells(probabilities, part.p_actual[row])]

    def _cells(self, probabilities: NDArray[np.float32], p_actual: np.float32) -> Iterator[str]:
        """Return every class's probability; of many classes the true one's, and the likeliest with theirs."""
        if len(self._classes) <= MANY_CLASSES:
            yield from map(shortest, probabilities)
            return
        yield shortest(p_actual)
        for label in np.argsort(-probabilities, kind="stable")[: (len(LIKELIEST) - 1) // 2]:
            yield self._classes[label]
            yield shortest(probabilities[label])

    def scores(self) -> Scores:
        """Return accuracy, F1, loss and calibration error."""
        self._answers = Answers.joined(self._parts)
        return score(self._answers, self._classes, calibration_bins=self._evaluate.calibration_bins)

    def table(self, scores: Scores) -> PageTable:
        """Return precision, recall and F1 of each class."""
        return class_table(scores)

    def calibration(self, scores: Scores) -> str:
        """Return the calibration error, and which way the confidence is wrong on average."""
        confidence = float(self._answers.confidence.mean())
        side = "more confident than right" if confidence > scores.accuracy else "less confident than right"
        return (
            f"The expected calibration error over {self._evaluate.calibration_bins} bins is {scores.calibration_error:.4f}. "
            f"The mean confidence is {confidence:.4f}, the accuracy {scores.accuracy:.4f}: on average the model is {side}."
        )

    def draw(self, store: Store, folder: Path) -> dict[str, str]:
        """Draw confusion matrix, calibration and the worst mistakes."""
        answers, classes, evaluate = self._answers, self._classes, self._evaluate
        labels, predicted = answers.labels, answers.predicted
        wrong = np.flatnonzero(labels != predicted)
        worst = wrong[np.argsort(answers.p_actual[wrong], kind="stable")][: evaluate.num_mistakes]
        captions = [(classes[labels[row]], f"{classes[predicted[row]]} ({answers.p_predicted[row]:.0%})") for row in worst]
        with whole_file(folder / "confusion.png") as beside:
            draw_confusion(labels, predicted, classes, beside)
        with whole_file(folder / "calibration.png") as beside:
            draw_calibration(answers.p_predicted, labels == predicted, evaluate.calibration_bins, beside)
        means, shares = reliability(answers.p_predicted, labels == predicted, evaluate.calibration_bins)
        return {
            **self._confusion(),
            "Calibration": calibration_chart(means, shares, "confidence", "accuracy"),
            "Worst mistakes": draw_worst(store, worst, captions, folder),
        }

    def _confusion(self) -> dict[str, str]:
        classes = self._classes
        matrix = confusion_matrix(self._answers.labels, self._answers.predicted, len(classes))
        chosen = most_confused(matrix)
        if len(chosen) > MOST_CONFUSED:
            return {"Confusion matrix": "confusion.png"}
        names = [classes[index] for index in chosen]
        title = "Confusion matrix"
        if len(chosen) < len(classes):
            title += f": the {len(chosen)} most confused of {len(classes):,} classes"
        return {title: confusion_chart(matrix[np.ix_(chosen, chosen)], names, list(map(short_name, names)))}


def class_table(scores: Scores) -> PageTable:
    """Return precision, recall and F1 of each class."""
    rows = [
        (item.name, f"{item.precision:.3f}", f"{item.recall:.3f}", f"{item.f1:.3f}", f"{item.support}")
        for item in scores.classes
    ]
    worst = sorted(range(len(rows)), key=lambda row: scores.classes[row].f1)
    return PageTable(("class", "precision", "recall", "F1", "samples"), rows, worst, "lowest F1")
