"""The model card, card.md: what a model is for, what it learned from and how well, as Markdown with a header in YAML."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from bigstep.config.data import short_source
from bigstep.console import format_score
from bigstep.data.manifest import Manifest
from bigstep.models.model_files import ModelCard
from bigstep.report.card_text import MODEL_CARD
from bigstep.report.evaluation_page import PageTable
from bigstep.tasks.targets import CLASSIFICATION, REGRESSION

__all__ = ["CardStory", "PartResult", "markdown_text", "write_card"]

MOST_NAMES, MOST_ROWS = 20, 30  # of classes, in a sentence and in the table
FEW_SAMPLES = 10  # of a class in the test part: its scores say little
Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class CardStory:
    """What a card says beside the scores."""

    model: ModelCard
    procedure: Mapping[str, object]
    """How the model was trained, by name."""
    parameters: Sequence[tuple[str, str, str]] = ()
    """Those that differ from the defaults: name, value and default."""
    folder: str = "results/train"
    """Of the model, below the project."""


@dataclass(frozen=True)
class PartResult:
    """What was found on the test part."""

    verdict: str
    weakest: str
    """Where it is worst, in a sentence."""
    totals: Mapping[str, float]
    table: PageTable
    """Of classes, labels or numbers; its last column counts samples."""
    calibration: str
    """In words."""
    num_samples: int
    num_repeated: int
    """Of test images that are in another part, too."""


def write_card(story: CardStory, manifest: Manifest, tested: PartResult, path: Path) -> None:
    """Write a card; it depends on data, parameters and weights only, not on clock, run, machine or slicing.

    Args:
        story: of the model.
        manifest: of the data.
        tested: on its test part.
        path: of the card.
    """
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701 # Markdown
    environment.filters |= {"md": markdown_text, "yaml": json.dumps, "row": _row, "score": format_score}
    source, card = short_source(manifest.source), story.model
    text = environment.from_string(MODEL_CARD).render(
        story=story,
        manifest=manifest,
        tested=tested,
        source=source,
        network=f"ensemble of {len(card.members)}" if card.members else short_source(str(card.model["name"])),
        task=card.task,
        pipeline_tag="image-classification" if manifest.is_image and card.task != REGRESSION else None,
        names=_some(manifest.classes, MOST_NAMES),
        parts=manifest.part_sizes,
        table=_shown_rows(tested.table),
        limits=_limits(tested, card.task),
        registered=f"bigstep-{source}",
    )
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def markdown_text(value: object) -> str:
    """Return text that Markdown shows as it is, on one line, also inside of a table."""
    text = re.sub(r"[\x00-\x1f\x7f]", " ", str(value)).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text)


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(markdown_text, cells)) + " |"


def _some(names: Sequence[str], most: int) -> str:
    text = ", ".join(map(markdown_text, names[:most]))
    return f"{text} and {len(names) - most:,} more, which classes.csv lists" if len(names) > most else text


def _shown_rows(table: PageTable) -> Sequence[tuple[str, ...]]:
    """Return all rows, or of many those at the lower end."""
    return table.rows if len(table.rows) <= MOST_ROWS else [table.rows[number] for number in table.worst_first[:MOST_ROWS]]


def _limits(tested: PartResult, task: str) -> list[str]:
    """Return what the scores do not show, as far as it can be counted."""
    found = [markdown_text(tested.weakest)] if tested.weakest else []
    if task == CLASSIFICATION:  # elsewhere a metric of the project's own may have the name
        low, high = _interval(tested.totals["accuracy"], tested.num_samples)
        found.append(f"The 95 % interval of the accuracy, for {tested.num_samples:,} test samples, is {low:.4f} to {high:.4f}.")
    rare = [row[0] for row in tested.table.rows if task != REGRESSION and int(row[-1]) < FEW_SAMPLES]
    if rare:
        few = f"{len(rare):,} of {len(tested.table.rows):,} have fewer than {FEW_SAMPLES} test samples"
        found.append(f"By {tested.table.header[0]}, {few}, so that their scores say little: {_some(rare, MOST_NAMES)}.")
    if tested.num_repeated:
        found.append(f"{tested.num_repeated:,} test images are in another part, too, so that the scores are too good.")
    other = "that belong to no class" if task == CLASSIFICATION else "that are unlike all of them"
    found.append(f"Not tested: samples of another origin, samples {other}, and groups that the table does not distinguish.")
    return found


def _interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, after Wilson (1927)."""
    middle, scale = share + Z**2 / (2 * count), 1 + Z**2 / count
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return (middle - half) / scale, (middle + half) / scale
