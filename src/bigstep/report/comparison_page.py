"""A page that shows runs beside each other: curves, parameters and metrics that differ, classes that gained and lost."""

import base64
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from bigstep.comparison.differences import RunDifference
from bigstep.comparison.result import RunResult
from bigstep.report.evaluation_plots import short_name
from bigstep.report.figures import INK, new_figure, save_figure
from bigstep.report.house_style import fill, table, write_html

__all__ = ["class_changes", "draw_histories", "write_comparison"]

COLORS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#9333ea", "#475569", "#b91c1c")
SHOWN_CLASSES = 5  # of those that gained, and of those that lost

BODY = """<figure><img src="{{ curves }}" alt="Validation loss and score over the samples seen"></figure>
{% for item in differences -%}
<section>
<h2>{{ item.title }}</h2>
<p class="verdict">{{ item.verdict }}</p>
{% for text in item.texts %}<p>{{ text }}</p>{% endfor %}
{% for shown in item.tables %}{{ shown }}{% endfor %}
</section>
{% endfor %}"""


def write_comparison(differences: Sequence[RunDifference], texts: Sequence[Sequence[str]], path: Path, curves: Path) -> None:
    """Write one page, which needs no other file.

    Args:
        differences: of each run against the first.
        texts: sentences for each, below its verdict.
        path: of the page.
        curves: a picture from :func:`draw_histories`.
    """
    first = differences[0].first.name
    shown = [
        {"title": f"{item.second.name} against {first}", "verdict": item.verdict, "texts": lines, "tables": _tables(item)}
        for item, lines in zip(differences, texts, strict=True)
    ]
    picture = f"data:image/png;base64,{base64.b64encode(curves.read_bytes()).decode('ascii')}"
    others = differences[0].second.name if len(differences) == 1 else f"{len(differences)} runs"
    title = f"{others} against {first}"
    text = write_html("Comparison of runs", title, fill(BODY, curves=picture, differences=shown))
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def class_changes(item: RunDifference) -> list[tuple[str, int]]:
    """Return the classes that gained and lost most: by how many samples the second run is right more often."""
    if item.paired is None:
        return []
    ranked = sorted(item.paired.classes.items(), key=lambda pair: (-pair[1], pair[0]))
    gained = [pair for pair in ranked if pair[1] > 0][:SHOWN_CLASSES]
    return gained + [pair for pair in ranked if pair[1] < 0][-SHOWN_CLASSES:]


def draw_histories(results: Sequence[RunResult], path: Path) -> None:
    """Draw validation loss and score over the samples seen, so that batch sizes share an axis."""
    figure = new_figure(9, 3.6)
    axes = figure.subplots(1, 2)
    for result, color in zip(results, _colors(len(results)), strict=True):
        for plot, name in zip(axes, _curves(result), strict=False):
            batch = float(result.params.get("train.effective_batch_size", "1"))
            samples = [row["num_updates"] * batch for row in result.history]
            plot.plot(samples, [row[name] for row in result.history], color=color, label=short_name(result.name, 30))
            plot.set(xlabel="samples seen", ylabel=name)
    if axes[0].has_data():
        axes[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    save_figure(figure, path)


def _curves(result: RunResult) -> list[str]:
    names = list(result.history[0]) if result.history else []
    return [name for name in names if name.startswith("val_")]


def _colors(count: int) -> list[str]:
    return [COLORS[number % len(COLORS)] for number in range(count)]


def _tables(item: RunDifference) -> list[Markup]:
    names = ["", item.first.name, item.second.name]
    facts = [(name, item.first.facts.get(name, ""), value) for name, value in item.second.facts.items()]
    classes = [(name, f"{change:+d}") for name, change in class_changes(item)]
    shown: list[tuple[str, Sequence[str], Sequence[Sequence[object]]]] = [
        ("Parameters that differ", names, [(name, *pair) for name, pair in item.params.items()]),
        ("Metrics", names, item.rows()),
        ("Classes that gained and lost", ["class", "test samples"], classes),
        ("Runs", names, facts),
    ]
    return [table(header, rows, caption=caption) for caption, header, rows in shown if rows]
