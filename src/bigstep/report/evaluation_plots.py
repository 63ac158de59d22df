"""The pictures of an evaluation on the test part."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bigstep.evaluation.classification import confusion_matrix
from bigstep.report.figures import INK, LINE, new_figure, save_figure

__all__ = [
    "MOST_CONFUSED",
    "draw_calibration",
    "draw_confusion",
    "draw_mistakes",
    "draw_reliability",
    "most_confused",
    "reliability",
    "short_name",
]

MANY_CLASSES, MOST_CONFUSED = 100, 30  # with more classes than the first, the confusion matrix shows as many as the second


def draw_confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix, as shares of the true class; of many classes those that are confused most often."""
    matrix = confusion_matrix(labels, predicted, len(classes))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    chosen = most_confused(matrix)
    if len(chosen) < len(classes):
        title = f"the {len(chosen)} most confused of {len(classes):,} classes"
        matrix, shares = matrix[np.ix_(chosen, chosen)], shares[np.ix_(chosen, chosen)]
        classes = [classes[index] for index in chosen]
    else:
        title = ""
    count = len(classes)
    side = min(16.0, 2.5 + 0.45 * count)
    figure = new_figure(side + 1, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if count <= 30:
        for row, column in np.argwhere(matrix > 0):
            colour = "white" if shares[row, column] > 0.5 else INK
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=7)
        names = [short_name(name) for name in classes]
        axes.set_xticks(range(count), names, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(count), names, fontsize=8, parse_math=False)
    axes.set(xlabel="predicted", ylabel="actual")
    if title:
        axes.set_title(title, fontsize=9)
    save_figure(figure, path)


def most_confused(matrix: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the classes to draw, in order: those with the most wrong answers, given or due."""
    wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
    most = np.argsort(-wrong, kind="stable")[: MOST_CONFUSED if len(matrix) > MANY_CLASSES else None]
    return np.sort(most)


def draw_calibration(confidence: NDArray[np.float32], right: NDArray[np.bool_], bins: int, path: Path) -> None:
    """Draw accuracy over confidence: the largest probability of each image, and whether it is that of the true class."""
    means, shares = reliability(confidence, right, bins)
    draw_reliability(means, shares, "confidence", "accuracy", path)


def reliability(confidence: NDArray[np.float32], right: NDArray[np.bool_], bins: int) -> tuple[list[float], list[float]]:
    """Return the mean confidence and the accuracy of each bin that has images."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    used = [index for index in range(bins) if (which == index).any()]
    means, shares = ([values[which == index].mean() for index in used] for values in (confidence, right))
    return means, shares


def draw_reliability(means: Sequence[float], shares: Sequence[float], xlabel: str, ylabel: str, path: Path) -> None:
    """Draw the shares that came true over the probabilities that were predicted, both from 0 to 1."""
    figure = new_figure(4.2, 4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#9ca3af", linestyle="--", linewidth=1)
    axes.plot(means, shares, color=LINE, marker="o")
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, 1), ylim=(0, 1))
    save_figure(figure, path)


def draw_mistakes(
    images: NDArray[np.uint8], captions: Sequence[str], path: Path, *, empty: str = "no mistakes on the test set"
) -> None:
    """Draw images of shape ``(n, size, size, channels)`` in a grid, each with its caption."""
    columns = max(1, int(np.ceil(np.sqrt(len(images)))))
    rows = max(1, -(-len(images) // columns))
    figure = new_figure(1.7 * columns + 0.6, 2.0 * rows + 0.3)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, caption in zip(grid, images, captions, strict=False):
        axes.imshow(image.squeeze() if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        axes.set_title(caption, fontsize=7, color=INK, parse_math=False)
    if not len(images):
        figure.text(0.5, 0.5, empty, ha="center", va="center")
    save_figure(figure, path)


def short_name(name: str, length: int = 18) -> str:
    """Shorten a name for a plot; characters that cannot be printed become question marks."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in name)
    return printable if len(printable) <= length else printable[: length - 1] + "…"
