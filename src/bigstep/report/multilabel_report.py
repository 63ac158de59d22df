"""The report on a model with several labels a sample: errors by label, calibration, and the worst samples."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bigstep.atomic_files import whole_file
from bigstep.config.evaluate import EvaluateConfig
from bigstep.data.store import Store
from bigstep.evaluation.multilabel import LabelAnswers, LabelScores, calibration_bins, score_labels
from bigstep.report.class_charts import calibration_chart
from bigstep.report.evaluation_page import PageTable
from bigstep.report.evaluation_plots import draw_reliability, short_name
from bigstep.report.evaluation_report import draw_worst, shortest, totals_of
from bigstep.report.figures import ACCENT, LINE, new_figure, save_figure
from bigstep.tasks.targets import LabelTargets
from bigstep.tasks.task import Task

__all__ = ["MultiLabelReport"]

MOST_SHOWN = 40  # labels in a picture: those with the most errors


@final
class MultiLabelReport:
    """See :class:`bigstep.report.evaluation_report.EvaluationReport`."""

    def __init__(self, task: Task, evaluate: EvaluateConfig) -> None:
        """Collect nothing yet."""
        self._targets, self._evaluate = LabelTargets(task.names), evaluate
        self._parts: list[LabelAnswers] = []

    @property
    def columns(self) -> list[str]:
        """Actual and predicted labels, and the probability of each."""
        return ["actual", "predicted", *(f"p:{name}" for name in self._targets.names)]

    @property
    def score_names(self) -> list[str]:
        """Names of the totals."""
        return totals_of(LabelScores)

    def add(self, predictions: NDArray[np.float32], targets: NDArray[Any]) -> Iterator[list[object]]:
        """Keep all probabilities."""
        part = LabelAnswers.joined([LabelAnswers(predictions, targets)])
        self._parts.append(part)
        describe = self._targets.describe
        for row, probabilities in enumerate(predictions):
            given = part.predicted[row].astype(np.uint8)
            yield [describe(targets[row]), describe(given), *map(shortest, probabilities)]

    def scores(self) -> LabelScores:
        """Return F1, exact match, loss and calibration error."""
        self._answers = LabelAnswers.joined(self._parts)
        return score_labels(self._answers, self._targets.names, num_bins=self._evaluate.calibration_bins)

    def table(self, scores: LabelScores) -> PageTable:
        """Return precision, recall and F1 of each label."""
        rows = [
            (item.name, f"{item.precision:.3f}", f"{item.recall:.3f}", f"{item.f1:.3f}", f"{item.support}")
            for item in scores.classes
        ]
        worst = sorted(range(len(rows)), key=lambda row: scores.classes[row].f1)
        return PageTable(("label", "precision", "recall", "F1", "samples"), rows, worst, "lowest F1")

    def calibration(self, scores: LabelScores) -> str:
        """Return the calibration error, and which way the probabilities are wrong on average."""
        mean, share = float(self._answers.probabilities.mean(dtype=np.float64)), float((self._answers.actual == 1).mean())
        return (
            f"The expected calibration error of all labels over {self._evaluate.calibration_bins} bins is "
            f"{scores.calibration_error:.4f}. The mean probability is {mean:.4f}, the frequency {share:.4f}."
        )

    def draw(self, store: Store, folder: Path) -> dict[str, str]:
        """Draw errors by label, calibration, and the samples with the highest loss among those with an error."""
        answers, names = self._answers, self._targets.names
        with whole_file(folder / "confusion.png") as beside:
            _draw_errors(answers, names, beside)
        bins = calibration_bins(answers, self._evaluate.calibration_bins)
        with whole_file(folder / "calibration.png") as beside:
            draw_reliability([mean for _, mean, _ in bins], [share for _, _, share in bins], "probability", "frequency", beside)
        wrong = np.flatnonzero((answers.predicted != (answers.actual == 1)).any(axis=1))
        worst = wrong[np.argsort(-answers.nats[wrong], kind="stable")][: self._evaluate.num_mistakes]
        describe = self._targets.describe
        captions = [
            (describe(answers.actual[row]) or "no label", describe(answers.predicted[row].astype(np.uint8)) or "no label")
            for row in worst
        ]
        means, shares = [float(mean) for _, mean, _ in bins], [float(share) for _, _, share in bins]
        return {
            "Missing and wrong labels": "confusion.png",
            "Calibration, of all labels": calibration_chart(means, shares, "probability", "frequency"),
            "Worst mistakes": draw_worst(store, worst, captions, folder),
        }


def _draw_errors(answers: LabelAnswers, names: tuple[str, ...], path: Path) -> None:
    """Draw how many samples lack each label or have it wrongly."""
    predicted, actual = answers.predicted, answers.actual == 1
    missing, wrong = (actual & ~predicted).sum(axis=0), (predicted & ~actual).sum(axis=0)
    chosen = np.sort(np.argsort(-(missing + wrong), kind="stable")[:MOST_SHOWN])
    figure = new_figure(6.4, 1.2 + 0.25 * len(chosen))
    axes = figure.subplots()
    places = np.arange(len(chosen))
    axes.barh(places - 0.2, missing[chosen], 0.4, color=ACCENT, label="missing")
    axes.barh(places + 0.2, wrong[chosen], 0.4, color=LINE, label="wrong")
    axes.set_yticks(places, [short_name(names[number]) for number in chosen], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel="samples")
    axes.legend(frameon=False, fontsize="small")
    save_figure(figure, path)
