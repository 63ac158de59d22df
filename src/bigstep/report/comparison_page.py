"""A page that shows runs beside each other: curves, parameters and metrics that differ, classes that gained and lost."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment

from bigstep.comparison.differences import RunDifference
from bigstep.comparison.result import RunResult
from bigstep.report.evaluation_plots import short_name
from bigstep.report.figures import INK, new_figure, save_figure

__all__ = ["class_changes", "draw_histories", "write_comparison"]

COLORS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#9333ea", "#475569", "#b91c1c")
SHOWN_CLASSES = 5  # of those that gained, and of those that lost

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{ title }}</title>
<style>
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: 0 0 1.5rem 0 }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #9ca3af66; text-align: right; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 500 } img { max-width: 100%; background: white }
.verdict { font-size: 1.1rem; font-weight: 600 }
</style>
<h1>{{ title }}</h1>
<img src="{{ curves }}" alt="Validation loss and score over the samples seen">
{% for item in differences -%}
<h2>{{ item.title }}</h2>
<p class="verdict">{{ item.verdict }}</p>
{% for text in item.texts %}<p>{{ text }}</p>{% endfor %}
{% for table in item.tables if table.rows -%}
<div class="scroll"><table><caption>{{ table.caption }}</caption>
<tr>{% for cell in table.header %}<th>{{ cell }}</th>{% endfor %}</tr>
{%- for row in table.rows %}<tr><th>{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table></div>
{% endfor %}{% endfor %}
</html>
"""


def write_comparison(differences: Sequence[RunDifference], texts: Sequence[Sequence[str]], path: Path, curves: Path) -> None:
    """Write one page, which needs no other file.

    Args:
        differences: of each run against the first.
        texts: sentences for each, below its verdict.
        path: of the page.
        curves: a picture from :func:`draw_histories`.
    """
    first = differences[0].first.name
    template = Environment(autoescape=True, keep_trailing_newline=True).from_string(PAGE)
    shown = [
        {"title": f"{item.second.name} against {first}", "verdict": item.verdict, "texts": lines, "tables": _tables(item)}
        for item, lines in zip(differences, texts, strict=True)
    ]
    picture = f"data:image/png;base64,{base64.b64encode(curves.read_bytes()).decode('ascii')}"
    title = f"{', '.join(item.second.name for item in differences)} against {first}"
    text = template.render(title=title, curves=picture, differences=shown)
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


def _tables(item: RunDifference) -> list[dict[str, object]]:
    names = ["", item.first.name, item.second.name]
    facts = [(name, item.first.facts.get(name, ""), value) for name, value in item.second.facts.items()]
    classes = [(name, f"{change:+d}") for name, change in class_changes(item)]
    return [
        {"caption": "Parameters that differ", "header": names, "rows": [(name, *pair) for name, pair in item.params.items()]},
        {"caption": "Metrics", "header": names, "rows": item.rows()},
        {"caption": "Classes that gained and lost", "header": ["class", "test samples"], "rows": classes},
        {"caption": "Runs", "header": names, "rows": facts},
    ]
