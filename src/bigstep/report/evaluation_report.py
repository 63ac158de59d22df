"""What the report of an evaluation is made of, whichever the task."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from bigstep.atomic_files import whole_file
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.report.class_charts import mistake_tiles
from bigstep.report.evaluation_page import PageTable
from bigstep.report.evaluation_plots import draw_mistakes, short_name

__all__ = ["EvaluationReport", "EvaluationScores", "draw_worst", "shortest", "totals_of"]


class EvaluationScores(Protocol):
    """Scores on the test part."""

    @property
    def title(self) -> str:
        """The most important of them, in words."""
        ...

    @property
    def classes(self) -> tuple[Any, ...]:
        """Those of each class, label or number: records whose first field is its name."""
        ...

    def summary(self) -> dict[str, float]:
        """Return the totals by name."""
        ...


class EvaluationReport(Protocol):
    """Collects what a model predicts, and reports on it."""

    @property
    def columns(self) -> list[str]:
        """Columns of predictions.csv, after those that name the sample."""
        ...

    @property
    def score_names(self) -> list[str]:
        """Names of the totals."""
        ...

    def add(self, predictions: NDArray[np.float32], targets: NDArray[Any]) -> Iterator[list[object]]:
        """Keep the predictions ``(n, outputs)`` of a batch, and yield the cells of each sample.

        Raises:
            ModelError: a prediction is not a finite number.
        """
        ...

    def scores(self) -> EvaluationScores:
        """Return the scores on all samples."""
        ...

    def table(self, scores: Any) -> PageTable:
        """Return the page's table of classes, labels or numbers."""
        ...

    def calibration(self, scores: Any) -> str:
        """Return in words how far the predictions can be taken literally."""
        ...

    def draw(self, store: Store, folder: Path) -> dict[str, str]:
        """Draw confusion.png, calibration.png and mistakes.png; return HTML for the page, or their names, by their captions."""
        ...


def totals_of(scores: type) -> list[str]:
    """Return the names of the totals of a class of scores."""
    return [item.name for item in fields(scores) if item.name != "classes"]


def draw_worst(
    store: Store,
    rows: NDArray[np.int64],
    captions: list[tuple[str, str]],
    folder: Path,
    empty: str = "no mistakes on the test set",
) -> Markup:
    """Draw mistakes.png: the test images of these rows; of samples that are no images it only says so.

    Returns:
        The same for the page; ``captions`` are what an image is, and what was predicted.
    """
    if not store.manifest.is_image:
        rows, captions, empty = rows[:0], [], "samples that are no images"
    images = np.asarray(store.images[store.indices(Split.TEST)[rows]]) if len(rows) else np.zeros((0, 1, 1, 1), np.uint8)
    lines = [f"is {short_name(actual)},\npredicted {short_name(predicted, 24)}" for actual, predicted in captions]
    with whole_file(folder / "mistakes.png") as beside:
        draw_mistakes(images, lines, beside, empty=empty)
    return mistake_tiles(images, [(short_name(actual, 60), short_name(predicted, 60)) for actual, predicted in captions], empty)


def shortest(value: np.float32) -> str:
    """Return the shortest digits that read back as the same number."""
    return np.format_float_positional(value, unique=True, trim="0")
