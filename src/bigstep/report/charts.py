"""Line charts as SVG inside the page: sharp at any width, in the page's colors, with a tooltip for each point and no script."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

from bigstep.report.ticks import Axis, value_text

__all__ = ["Chart", "Series", "draw_chart"]

WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 20, 44
MOST_POINTS = 240  # of a curve; longer ones are averaged in groups
MOST_DOTS = 32


@dataclass(frozen=True)
class Series:
    """A curve: its name, and a value at each position."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    is_dashed: bool = False
    color: str = ""
    """Of more than three curves; by default the page's colors, by their order."""

    def thinned(self) -> "Series":
        """Return means of groups, where there are more points than a chart can show."""
        each = -(-len(self.x) // MOST_POINTS)
        if each <= 1:
            return self
        starts = range(0, len(self.x), each)
        x, y = ([math.fsum(values[i : i + each]) / len(values[i : i + each]) for i in starts] for values in (self.x, self.y))
        return replace(self, x=x, y=y)

    def paint(self, number: int, kind: str) -> Markup:
        """Return the attributes of a curve (kind ``s``) or a point (``f``) of the curve with this number."""
        curve, dash = ("curve ", " dash" if self.is_dashed else "") if kind == "s" else ("", "")
        if not self.color:
            return Markup('class="{}{}{}{}"').format(curve, kind, min(number, 2), dash)
        name = "stroke" if kind == "s" else "fill"
        return Markup('class="{}{}" style="{}:{}"').format(curve.strip(), dash, name, self.color)


@dataclass(frozen=True)
class Chart:
    """What a chart shows."""

    title: str
    xlabel: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    whole_x: bool = True
    """Ticks at whole numbers only."""
    from_zero: bool = False
    mark: tuple[float, str] | None = None
    """A position on the horizontal axis, and what is there."""
    level: tuple[float, str] | None = None
    """A value on the vertical axis, and what it is."""
    band: tuple[float, float] | None = None
    """Values on the vertical axis."""


def draw_chart(chart: Chart) -> Markup:
    """Return a figure with title, curves, ticks and names; empty where there is nothing to draw."""
    curves = [item.thinned() for item in map(_finite, chart.series) if item.x]
    if not curves:
        return Markup()
    x_values = [x for item in curves for x in item.x] + ([chart.mark[0]] if chart.mark else [])
    y_values = [y for item in curves for y in item.y]
    y_values += [chart.level[0]] if chart.level else []
    y_values += [*chart.band] if chart.band else []
    y_values += [0.0] if chart.from_zero else []
    across = Axis.over(x_values, LEFT, WIDTH - RIGHT, log=chart.log_x, whole=chart.whole_x, count=6)
    up = Axis.over(y_values, HEIGHT - BOTTOM, TOP, log=chart.log_y, count=5, padded=True)
    parts = [_grid(across, up, chart), *_marks(across, up, chart)]
    for number, item in enumerate(curves):
        parts += _curve(item, number, across.place, up.place, chart.xlabel)
    label = f"{chart.title} over {chart.xlabel}"
    drawing = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(parts)
    )
    return Markup('<figure><p class="title">{}</p>{}{}</figure>').format(chart.title, drawing, _legend(curves))


def _finite(item: Series) -> Series:
    pairs = [(x, y) for x, y in zip(item.x, item.y, strict=True) if math.isfinite(y)]
    return replace(item, x=[x for x, _ in pairs], y=[y for _, y in pairs])


def _grid(across: Axis, up: Axis, chart: Chart) -> Markup:
    parts = []
    for value in up.ticks:
        y = up.place(value)
        parts.append(f'<path class="axis" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value_text(value)}</text>')
    for value in across.ticks:
        x = across.place(value)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value_text(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(chart.xlabel)}</text>')
    return Markup("".join(parts))


def _marks(across: Axis, up: Axis, chart: Chart) -> list[Markup]:
    parts = []
    if chart.band is not None:
        low, high = up.place(chart.band[0]), up.place(chart.band[1])
        parts.append(f'<rect class="band" x="{LEFT}" y="{high:.1f}" width="{WIDTH - RIGHT - LEFT}" height="{low - high:.1f}"/>')
    if chart.mark is not None:
        x = across.place(chart.mark[0])
        is_right = x > (LEFT + WIDTH) / 2
        parts.append(f'<path class="mark" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        anchor, place = ("end", x - 5) if is_right else ("start", x + 5)
        parts.append(f'<text class="name" x="{place:.1f}" y="{TOP - 7}" text-anchor="{anchor}">{escape(chart.mark[1])}</text>')
    if chart.level is not None:
        y = up.place(chart.level[0])
        parts.append(f'<path class="curve s1 dash" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="name" x="{LEFT + 6}" y="{y - 5:.1f}">{escape(chart.level[1])}</text>')
    return [Markup(part) for part in parts]


def _curve(
    item: Series, number: int, x_of: Callable[[float], float], y_of: Callable[[float], float], xlabel: str
) -> list[Markup]:
    places = [(x_of(x), y_of(y)) for x, y in zip(item.x, item.y, strict=True)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    parts = [Markup('<path {} d="{}"/>').format(item.paint(number, "s"), path)]
    radius, paint = (2.6, item.paint(number, "f")) if len(places) <= MOST_DOTS else (4, Markup('class="hit"'))
    for (x, y), across, value in zip(places, item.x, item.y, strict=True):
        tip = escape(f"{item.name}: {value_text(value)} ({xlabel} {value_text(across)})")
        parts.append(Markup(f'<circle {paint} cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{tip}</title></circle>'))
    return parts


def _key(item: Series, number: int) -> Markup:
    if len(item.x) == 1:
        return Markup('<circle {} cx="11" cy="5" r="2.6"/>').format(item.paint(number, "f"))
    return Markup('<path {} d="M0 5H22"/>').format(item.paint(number, "s"))


def _legend(curves: Sequence[Series]) -> Markup:
    if len(curves) < 2:
        return Markup()
    parts = [
        Markup('<span><svg viewBox="0 0 22 10" class="key">{}</svg> {}</span>').format(_key(item, number), item.name)
        for number, item in enumerate(curves)
    ]
    return Markup("<figcaption>{}</figcaption>").format(Markup("").join(parts))
