"""What MLflow's copy of a run's page has beside DVC's: gradient norm, noise scale, speed and memory over the steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from bigstep.report.charts import Chart, Series, draw_chart
from bigstep.report.evaluation_page import THIS_RUN
from bigstep.report.house_style import PageSection, fill, section

__all__ = ["machine_section", "write_copy"]

FACTOR = 3.0  # of the noise scale, up and down: effective batches within it are near the best trade of steps for samples
Points = Sequence[tuple[int, float]]


def machine_section(metrics: Mapping[str, Points], tags: Mapping[str, str], effective_batch_size: int) -> PageSection:
    """Show what depends on slicing, machine and clock, over the steps.

    Args:
        metrics: step and value of each metric of the run, by name.
        tags: of the run.
        effective_batch_size: B.
    """
    charts = [
        _chart("Gradient norm before clipping", "step", metrics.get("gradient_norm", ()), log_y=True),
        _noise(metrics.get("noise_scale", ()), effective_batch_size),
        _chart("Samples per second", "step", metrics.get("images_per_second", ()), from_zero=True),
        _chart("Peak memory of the process, MiB", "step", _mebibytes(metrics.get("peak_memory_bytes", ())), from_zero=True),
    ]
    advice = fill("<p>{{ text }}</p>", text=tags["bigstep.advice"]) if "bigstep.advice" in tags else Markup()
    drawn = Markup('<div class="grid">{}</div>').format(Markup("").join(map(draw_chart, charts)))
    return PageSection("This run and machine", advice + drawn)


def write_copy(page: Path, parts: Sequence[PageSection], copy: Path) -> None:
    """Write a copy of a page with more sections."""
    text = page.read_text(encoding="utf-8")
    copy.write_text(text.replace(THIS_RUN, str(Markup("\n").join(map(section, parts)))), encoding="utf-8")


def _chart(name: str, xlabel: str, points: Points, *, log_y: bool = False, from_zero: bool = False) -> Chart:
    series = Series(name, [float(step) for step, _ in points], [value for _, value in points])
    return Chart(name, xlabel, [series], log_y=log_y, from_zero=from_zero)


def _noise(points: Points, effective_batch_size: int) -> Chart:
    positive = [(step, value) for step, value in points if value > 0]
    series = Series("noise scale", [float(step) for step, _ in positive], [value for _, value in positive])
    last = positive[-1][1] if positive else 1.0
    return Chart(
        "Noise scale, samples; shaded: its last value times 1/3 to 3",
        "step",
        [series],
        log_y=True,
        level=(float(effective_batch_size), f"effective batch {effective_batch_size}"),
        band=(last / FACTOR, last * FACTOR),
    )


def _mebibytes(points: Points) -> Points:
    return [(step, value / 2**20) for step, value in points]
