"""One style for every page: quiet, one accent color, light and dark; whole on a narrow screen, on paper, without scripts."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment
from markupsafe import Markup

__all__ = ["PageSection", "fact_list", "fill", "section", "table", "write_html"]

CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2933; --quiet: #5f6b7a; --line: #e4e7eb; --soft: #f5f7fa;
  --accent: #2f5fd0; --accent-soft: #2f5fd01f }
@media (prefers-color-scheme: dark) { :root { --paper: #14181f; --ink: #e3e7ec; --quiet: #9aa5b4; --line: #2c3440;
  --soft: #1c222c; --accent: #84a9ff; --accent-soft: #84a9ff2b } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
.kicker { margin: 0; color: var(--quiet); font-size: .8rem; letter-spacing: .04em }
h1 { margin: .2rem 0 .8rem; font-size: 1.7rem; line-height: 1.25; font-weight: 650; letter-spacing: -.01em }
h2 { margin: 3rem 0 .9rem; font-size: 1.15rem; font-weight: 650 }
h3 { margin: 1.6rem 0 .5rem; font-size: .95rem; font-weight: 600 }
p { margin: .4rem 0 .9rem; max-width: 46rem } .note, caption, figcaption { color: var(--quiet); font-size: .85rem }
.verdict { font-size: 1.08rem; padding-left: .9rem; border-left: 3px solid var(--accent) }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem 1.5rem; margin: 1.4rem 0 }
.facts div { border-top: 1px solid var(--line); padding-top: .45rem }
.facts dt { color: var(--quiet); font-size: .8rem } .facts dd { margin: 0; font-variant-numeric: tabular-nums }
.facts.large dd { font-size: 1.3rem; font-weight: 600 }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1.6rem 2rem }
figure { margin: 0; min-width: 0; break-inside: avoid } figure > svg, figure > img { display: block; width: 100%; height: auto }
figure > svg { max-width: 34rem }
figure > img { background: #fff; border-radius: 6px; max-width: 44rem }
.square { max-width: 32rem } .title { margin: 0 0 .3rem; font-size: .9rem; font-weight: 600; color: var(--ink) }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: 0 0 1rem; font-size: .9rem }
caption { text-align: left; padding-bottom: .3rem } .wide { width: 100% }
th, td { padding: .3rem 1.1rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 500 } tr:first-child > th:not(:first-child) { text-align: right }
table:not(.words) td, .head th { white-space: nowrap } table.words th, table.keys th { overflow-wrap: break-word }
table.words td { text-align: left } table.words tr:first-child > th { text-align: left }
.head { color: var(--quiet); font-size: .8rem } code { font-size: .85em }
details { margin: .6rem 0 } summary { cursor: pointer; color: var(--accent) }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: 1.1rem 1rem }
.tiles img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #000; border-radius: 4px; max-width: 10rem }
.tiles .pixels { image-rendering: pixelated } .tiles figcaption { margin-top: .3rem; line-height: 1.35 }
.tiles b { color: var(--ink); font-weight: 600 }
svg text { font: 12px system-ui, sans-serif; fill: var(--quiet) } svg .name { fill: var(--ink) }
figcaption > span { display: inline-block; margin-right: 1rem } .key { width: 22px; height: 10px; display: inline-block }
svg .axis { stroke: var(--line); fill: none }
svg .hit { fill: transparent; stroke: none } svg .hit:hover { fill: var(--accent) }
svg .s0 { stroke: var(--accent) } svg .s1 { stroke: var(--ink) } svg .s2 { stroke: var(--quiet) }
svg .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round } svg .dash { stroke-dasharray: 5 4 }
svg .f0 { fill: var(--accent); stroke: none } svg .f1 { fill: var(--ink); stroke: none }
svg .f2 { fill: var(--quiet); stroke: none }
svg .band { fill: var(--accent-soft) } svg .mark { stroke: var(--quiet); stroke-dasharray: 2 3; fill: none }
svg .cell { fill: var(--accent) } svg .on { fill: var(--paper) } svg .off { fill: var(--ink) }
@media print { :root { --paper: #fff; --ink: #1f2933; --quiet: #5f6b7a; --line: #d5dae0; --soft: #fff; --accent: #2f5fd0;
  --accent-soft: #2f5fd01f } body { font-size: 10.5pt } main { max-width: none; padding: 0 } h2 { break-after: avoid }
  .scroll { overflow: visible } tr, .facts, .tiles figure { break-inside: avoid } caption, .title, h2 + p { break-after: avoid }
  details .scroll { columns: 2; column-gap: 2rem } summary { list-style: none }
  details::details-content { content-visibility: visible; block-size: auto } }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ css }}</style></head>
<body><main>
<p class="kicker">{{ kicker }}</p>
<h1>{{ title }}</h1>
{{ body }}
</main></body></html>
"""
SECTION = """<section>
<h2>{{ title }}</h2>
{{ body }}
</section>
"""
FACTS = """<dl class="facts{{ ' large' if large }}">
{%- for name, value in facts.items() %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>{% endfor -%}
</dl>
"""
TABLE = """<div class="scroll"><table{% if kind %} class="{{ kind }}"{% endif %}>
{%- if caption %}<caption>{{ caption }}</caption>{% endif -%}
{%- if header %}<tr class="head">{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>{% endif -%}
{%- for row in rows %}
<tr><th>{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table></div>
"""


@dataclass(frozen=True)
class PageSection:
    """A part of a page: its heading, and HTML below it."""

    title: str
    body: Markup


def fill(template: str, **values: object) -> Markup:
    """Fill a jinja2 template; values that are no :class:`Markup` are escaped."""
    return Markup(Environment(autoescape=True, keep_trailing_newline=True).from_string(template).render(**values))


def section(part: PageSection) -> Markup:
    """Return a section with its heading."""
    return fill(SECTION, title=part.title, body=part.body)


def fact_list(facts: dict[str, object], *, large: bool = False) -> Markup:
    """Return names with values side by side."""
    return fill(FACTS, facts=facts, large=large)


def table(
    header: Sequence[object], rows: Sequence[Sequence[object]], *, caption: str = "", words: bool = False, keys: bool = False
) -> Markup:
    """Return a table whose first column has the names of the rows.

    Args:
        header: of the columns.
        rows: each starts with its name.
        caption: above the table.
        words: cells are text, not numbers.
        keys: names are keys, of which none is so long that it must be broken; a narrow screen scrolls.
    """
    return fill(TABLE, header=header, rows=rows, caption=caption, kind="words" if words else "keys" if keys else "")


def write_html(kicker: str, title: str, body: Markup) -> str:
    """Return a whole page, which needs no other file."""
    return str(fill(PAGE, kicker=kicker, title=title, css=Markup(CSS), body=body))
