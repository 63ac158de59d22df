"""The page of an evaluation. Names from the data are escaped; no time or path is written."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from bigstep.report.figures import INK

__all__ = ["MANY_CLASSES", "PageTable", "write_page"]

MANY_CLASSES = 100  # with more, the page shows some only
WORST = 50

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
<h2>By {{ header[0] }}{{ left_out }}</h2>
<table><tr>{% for name in header %}<th>{{ name }}</th>{% endfor %}</tr>
{%- for row in rows -%}
<tr><th>{{ row[0] }}</th>
{%- for cell in row[1:] %}<td>{{ cell }}</td>{% endfor -%}
</tr>
{%- endfor -%}
</table>
<h2>Pictures</h2>
{% for caption, picture in pictures.items() -%}
<figure><img src="{{ picture }}" alt="{{ caption }}"><figcaption>{{ caption }}</figcaption></figure>
{%- endfor %}
</html>
"""


@dataclass(frozen=True)
class PageTable:
    """A row for each class, label or number; of more than :data:`MANY_CLASSES` the page shows the first of ``worst_first``."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    worst_first: Sequence[int]
    """Numbers of rows."""
    worst: str
    """What the first of them are, in words."""


def write_page(
    title: str, totals: dict[str, float], facts: dict[str, object], table: PageTable, pictures: dict[str, str], path: Path
) -> None:
    """Write one HTML page: totals, facts, a table, and embedded pictures (caption -> file in the same folder)."""
    template = Environment(autoescape=True, keep_trailing_newline=True).from_string(PAGE)
    is_cut = len(table.rows) > MANY_CLASSES
    text = template.render(
        title=title,
        ink=INK,
        totals=totals,
        facts=facts,
        header=table.header,
        left_out=f": the {WORST} {table.worst} of {len(table.rows):,}, all in classes.csv" if is_cut else "",
        rows=[table.rows[number] for number in table.worst_first[:WORST]] if is_cut else table.rows,
        pictures={caption: _embedded(path.parent / file) for caption, file in pictures.items()},
    )
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _embedded(picture: Path) -> str:
    """Return a picture as a data URI: MLflow's artifact view loads a page without the files beside it."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"
