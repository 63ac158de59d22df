"""A page that shows runs beside each other: curves, parameters and metrics that differ, classes that gained and lost."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from bigstep.comparison.differences import RunDifference
from bigstep.comparison.result import RunResult
from bigstep.report.charts import Chart, Series, draw_chart
from bigstep.report.evaluation_plots import short_name
from bigstep.report.house_style import fill, table, write_html

__all__ = ["class_changes", "draw_histories", "write_comparison"]

COLORS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#c026d3", "#475569", "#b91c1c")
MOST_PLAIN = 3  # curves that differ enough in the page's own colors
MOST_LETTERS = 60  # of a name in the legend: names of runs differ at their end
SHOWN_CLASSES = 5  # of those that gained, and of those that lost

BODY = """<div class="grid">{{ curves }}</div>
{% for item in differences -%}
<section>
<h2>{{ item.title }}</h2>
<p class="verdict">{{ item.verdict }}</p>
{% for text in item.texts %}<p>{{ text }}</p>{% endfor %}
{% for shown in item.tables %}{{ shown }}{% endfor %}
</section>
{% endfor %}"""


def write_comparison(differences: Sequence[RunDifference], texts: Sequence[Sequence[str]], path: Path) -> None:
    """Write one page, which needs no other file.

    Args:
        differences: of each run against the first.
        texts: sentences for each, below its verdict.
        path: of the page.
    """
    results = [differences[0].first, *(item.second for item in differences)]
    first = results[0].name
    shown = [
        {"title": f"{item.second.name} against {first}", "verdict": item.verdict, "texts": lines, "tables": _tables(item)}
        for item, lines in zip(differences, texts, strict=True)
    ]
    others = differences[0].second.name if len(differences) == 1 else f"{len(differences)} runs"
    title = f"{others} against {first}"
    text = write_html("Comparison of runs", title, fill(BODY, curves=draw_histories(results), differences=shown))
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def class_changes(item: RunDifference) -> list[tuple[str, int]]:
    """Return the classes that gained and lost most: by how many samples the second run is right more often."""
    if item.paired is None:
        return []
    ranked = sorted(item.paired.classes.items(), key=lambda pair: (-pair[1], pair[0]))
    gained = [pair for pair in ranked if pair[1] > 0][:SHOWN_CLASSES]
    return gained + [pair for pair in ranked if pair[1] < 0][-SHOWN_CLASSES:]


def draw_histories(results: Sequence[RunResult]) -> Markup:
    """Draw validation loss and score over the samples seen, so that batch sizes share an axis."""
    columns = dict.fromkeys(name for result in results for name in (result.history[0] if result.history else ()))
    charts = [
        Chart(name.replace("val_", "Validation ").replace("_", " "), "samples seen", _series(results, name))
        for name in columns
        if name.startswith("val_")
    ]
    return Markup("").join(map(draw_chart, charts))


def _series(results: Sequence[RunResult], column: str) -> list[Series]:
    """Return the curve of each run that has this column; up to three in the page's own colors."""
    found = []
    for number, result in enumerate(results):
        if result.history and column in result.history[0]:
            batch = float(result.params.get("train.effective_batch_size", "1"))
            samples, values = ([row["num_updates"] * batch for row in result.history], [row[column] for row in result.history])
            color = COLORS[number % len(COLORS)] if len(results) > MOST_PLAIN else ""
            found.append(Series(short_name(result.name, MOST_LETTERS), samples, values, color=color))
    return found


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
    return [table(header, rows, caption=caption, keys=rows is not classes) for caption, header, rows in shown if rows]
