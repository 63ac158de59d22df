"""Confusion, calibration and mistakes on the page: in its colors, in words, with a tooltip for each cell and point."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from bigstep.report.charts import Chart, Series, draw_chart
from bigstep.report.house_style import fill

__all__ = ["calibration_chart", "confusion_chart", "mistake_tiles"]

CELL, MOST_NUMBERS = 26, 30
PIXELS = 96  # sides below are drawn pixel by pixel, larger images are sent with at most this many times two
JPEG_QUALITY = 88

TILES = """<div class="tiles">
{%- for image, actual, predicted in tiles %}
<figure><img src="{{ image }}" {% if pixels %}class="pixels" {% endif %}alt="actual {{ actual }}, predicted {{ predicted }}">
<figcaption>actual <b>{{ actual }}</b><br>predicted <b>{{ predicted }}</b></figcaption></figure>
{%- endfor %}
</div>
"""


def confusion_chart(matrix: NDArray[np.int64], names: Sequence[str], short: Sequence[str]) -> Markup:
    """Draw counts ``(classes, classes)``, actual down and predicted across, shaded by their share of the actual class.

    Args:
        matrix: counts.
        names: for the tooltips.
        short: for the axes.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    count, left = len(names), 24 + 7 * max(map(len, short))
    side = CELL * count
    parts = []
    for row, column in np.argwhere(matrix > 0):
        x, y, number, share = left + CELL * column, CELL * row, matrix[row, column], shares[row, column]
        tip = escape(f"actual {names[row]}, predicted {names[column]}: {number} ({share:.1%})")
        opacity = 0.08 + 0.92 * share
        parts.append(f'<rect class="cell" x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill-opacity="{opacity:.2f}">')
        parts.append(f"<title>{tip}</title></rect>")
        if count <= MOST_NUMBERS:
            ink = "on" if share > 0.5 else "off"
            parts.append(f'<text class="{ink}" style="font-size:10px;fill:var(--{"paper" if share > 0.5 else "ink"})" ')
            parts.append(f'x="{x + CELL / 2 - 0.5}" y="{y + CELL / 2 + 3.5}" text-anchor="middle">{number}</text>')
    for place, name in enumerate(short):
        middle = CELL * place + CELL / 2
        parts.append(f'<text x="{left - 6}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>')
        across, down = left + middle + 4, side + 8
        parts.append(f'<text transform="translate({across} {down}) rotate(-90)" text-anchor="end">{escape(name)}</text>')
    width, height = left + side + 2, side + left + 4
    parts.append(f'<text x="{left + side / 2}" y="{height}" text-anchor="middle">predicted</text>')
    parts.append(f'<text transform="translate(11 {side / 2}) rotate(-90)" text-anchor="middle">actual</text>')
    return Markup('<svg viewBox="0 0 {} {}" style="max-width:{}px" role="img" aria-label="confusion matrix">{}</svg>').format(
        width, height + 4, max(320, round(1.25 * width)), Markup("".join(parts))
    )


def calibration_chart(means: Sequence[float], shares: Sequence[float], xlabel: str, ylabel: str) -> Markup:
    """Draw the shares that came true over the probabilities that were predicted."""
    perfect = Series("perfectly calibrated", [0.0, 1.0], [0.0, 1.0], is_dashed=True)
    found = Series("this model", [float(value) for value in means], [float(value) for value in shares])
    return draw_chart(Chart(f"Calibration: {ylabel} in each bin", xlabel, [found, perfect], whole_x=False, from_zero=True))


def mistake_tiles(images: NDArray[np.uint8], captions: Sequence[tuple[str, str]], empty: str) -> Markup:
    """Draw images ``(n, size, size, channels)`` with what they are and what was predicted; ``empty`` instead of no images."""
    if not len(images):
        return fill('<p class="note">{{ text }}</p>', text=empty)
    tiles = [(_data_uri(image), *caption) for image, caption in zip(images, captions, strict=True)]
    return fill(TILES, tiles=tiles, pixels=images.shape[1] < PIXELS)


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    is_small, buffer = pixels.shape[0] < PIXELS, io.BytesIO()
    image.thumbnail((2 * PIXELS, 2 * PIXELS))
    image.save(buffer, **({"format": "PNG"} if is_small else {"format": "JPEG", "quality": JPEG_QUALITY}))
    kind = "png" if is_small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
