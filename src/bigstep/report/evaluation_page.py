"""The page of an evaluation and its plots. Names from the data are escaped; no time or path is written."""

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment
from numpy.typing import NDArray

from bigstep.evaluation import Scores, confusion_matrix
from bigstep.report.figures import INK, LINE, new_figure, save_figure

__all__ = ["draw_calibration", "draw_confusion", "draw_mistakes", "short_name", "write_page"]

MANY_CLASSES = 100  # with more, the page and the confusion matrix show some only
LOWEST, MOST_CONFUSED = 50, 30

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: {{ ink }}; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 0 2rem 1.5rem 0; display: inline-table; vertical-align: top }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #e5e7eb; text-align: right; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 500 } img { max-width: 100% } figure { margin: 0 0 2rem }
figcaption { color: #6b7280 }
</style>
<h1>{{ title }}</h1>
<table><caption>Test set</caption>
{%- for name, value in totals.items() -%}
<tr><th>{{ name }}</th><td>{{ "%.4f" | format(value) }}</td></tr>
{%- endfor -%}
</table><table><caption>Model</caption>
{%- for name, value in facts.items() -%}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{%- endfor -%}
</table>
<h2>By class{{ left_out }}</h2>
<table><tr><th>class</th><th>precision</th><th>recall</th><th>F1</th><th>images</th></tr>
{%- for item in classes -%}
<tr><th>{{ item.name }}</th>
{%- for score in (item.precision, item.recall, item.f1) %}<td>{{ "%.3f" | format(score) }}</td>{% endfor -%}
<td>{{ item.support }}</td></tr>
{%- endfor -%}
</table>
<h2>Pictures</h2>
{% for caption, picture in pictures.items() -%}
<figure><img src="{{ picture }}" alt="{{ caption }}"><figcaption>{{ caption }}</figcaption></figure>
{%- endfor %}
</html>
"""


def draw_confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix, as shares of the true class; of many classes those that are confused most often."""
    matrix = confusion_matrix(labels, predicted, len(classes))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    chosen = _most_confused(matrix)
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


def _most_confused(matrix: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the classes to draw, in order: those with the most wrong answers, given or due."""
    wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
    most = np.argsort(-wrong, kind="stable")[: MOST_CONFUSED if len(matrix) > MANY_CLASSES else None]
    return np.sort(most)


def draw_calibration(confidence: NDArray[np.float32], right: NDArray[np.bool_], bins: int, path: Path) -> None:
    """Draw accuracy over confidence: the largest probability of each image, and whether it is that of the true class."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    used = [index for index in range(bins) if (which == index).any()]
    figure = new_figure(4.2, 4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#9ca3af", linestyle="--", linewidth=1)
    axes.plot(
        [confidence[which == index].mean() for index in used],
        [right[which == index].mean() for index in used],
        color=LINE,
        marker="o",
    )
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
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


def write_page(title: str, scores: Scores, facts: dict[str, object], pictures: dict[str, str], path: Path) -> None:
    """Write one HTML page: totals, facts, scores per class, and embedded pictures (caption -> file in the same folder)."""
    template = Environment(autoescape=True, keep_trailing_newline=True).from_string(PAGE)
    shown = sorted(scores.classes, key=lambda item: item.f1)[: None if len(scores.classes) <= MANY_CLASSES else LOWEST]
    is_cut = len(shown) < len(scores.classes)
    text = template.render(
        title=title,
        ink=INK,
        totals=scores.summary(),
        facts=facts,
        left_out=f": the {LOWEST} lowest F1 of {len(scores.classes):,}, all in classes.csv" if is_cut else "",
        classes=shown if is_cut else scores.classes,
        pictures={caption: _embedded(path.parent / file) for caption, file in pictures.items()},
    )
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _embedded(picture: Path) -> str:
    """Return a picture as a data URI: MLflow's artifact view loads a page without the files beside it."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"


def short_name(name: str, length: int = 18) -> str:
    """Shorten a name for a plot; characters that cannot be printed become question marks."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in name)
    return printable if len(printable) <= length else printable[: length - 1] + "…"
