"""Parts of a run's page that depend on what was learned only: curves, parameters and data."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from bigstep.config.section import Section
from bigstep.data.manifest import Manifest
from bigstep.report.charts import Chart, Series, draw_chart
from bigstep.report.house_style import PageSection, fill, table

__all__ = ["changed_parameters", "curve_section", "data_section", "parameter_section"]

REST = """<details><summary>{{ count }} {{ "more" if more else "parameters, all" }} as by default</summary>
{{ table }}</details>
"""


def curve_section(history: Sequence[Mapping[str, Any]], kept: int, score: str) -> PageSection:
    """Show loss, score and learning rate over the epochs, with the one whose weights are kept.

    Args:
        history: rows of history.csv.
        kept: number of that epoch, from 1.
        score: name of the task's.
    """
    epochs = [float(row["epoch"]) for row in history]

    def series(name: str, column: str) -> Series:
        return Series(name, epochs, [float(row[column]) for row in history])

    mark = (float(kept), f"kept: epoch {kept}")
    losses = [series("validation", "val_loss"), series("training, as optimized", "train_loss")]
    name = score.replace("_", " ")
    charts = [
        Chart("Loss", "epoch", losses, mark=mark, from_zero=True),
        Chart(f"Validation {name}", "epoch", [series(f"validation {name}", f"val_{score}")], mark=mark),
        Chart("Learning rate at the end of the epoch", "epoch", [series("learning rate", "learning_rate")], from_zero=True),
    ]
    return PageSection("Training", Markup('<div class="grid">{}</div>').format(Markup("").join(map(draw_chart, charts))))


def parameter_section(sections: Sequence[Section]) -> PageSection:
    """Show the parameters that decide the result: those that differ from the defaults, then the others."""
    rows = [row for part in sections for row in _rows(part)]
    changed = changed_parameters(sections)
    others = [row[:2] for row in rows if row not in changed]
    first = table(("parameter", "value", "default"), changed, words=True) if changed else Markup()
    rest = fill(REST, count=len(others), more=bool(changed), table=table((), others, words=True))
    return PageSection("Parameters", first + rest)


def changed_parameters(sections: Sequence[Section]) -> list[tuple[str, str, str]]:
    """Return name, value and default of the parameters that differ from their defaults."""
    return [row for part in sections for row in _rows(part) if row[1] != row[2]]


def _rows(part: Section) -> list[tuple[str, str, str]]:
    values, defaults = part.model_dump(mode="json"), type(part)().model_dump(mode="json")
    return [(f"{part.title}.{name}", _shown(value), _shown(defaults[name])) for name, value in values.items()]


def data_section(manifest: Manifest, num_repeated: int) -> PageSection:
    """Show what the data is: counts, what was skipped and why, and its digest."""
    rows: list[tuple[str, object]] = [("source", manifest.source)]
    rows += [(f"{part} samples", f"{count:,}") for part, count in manifest.part_sizes.items()]
    channels = f"{manifest.channels} channel{'s' if manifest.channels > 1 else ''}"
    sides = f"{manifest.size} x {manifest.size} pixels, {channels}" if manifest.is_image else "no images"
    rows += [("outputs", f"{len(manifest.classes):,}"), ("samples are", sides)]
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in manifest.refused.items())
    rows.append(("skipped files", f"{manifest.num_refused:,}" + (f" ({reasons})" if reasons else "")))
    rows.append(("files that are no images", f"{manifest.num_ignored:,}"))
    if num_repeated:
        rows.append(("test samples that are in another part, too", num_repeated))
    rows.append(("digest", fill("<code>{{ text }}</code>", text=manifest.digest)))
    return PageSection("Data", table((), rows, words=True))


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
