"""Speed and memory over the micro-batch size, predicted against measured; in MLflow's copy of a run's page only."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from bigstep.console import format_bytes, format_seconds
from bigstep.planning.slicing_record import SlicingRecord
from bigstep.report.charts import Chart, Series, draw_chart
from bigstep.report.house_style import PageSection, fact_list, fill

__all__ = ["slicing_section"]

SHOWN_ROOM = 64  # times the largest prediction: a budget beyond is written, not drawn
Points = Sequence[tuple[int, float]]


def slicing_section(record: SlicingRecord, metrics: Mapping[str, Points]) -> PageSection:
    """Show what the micro-batch size costs and gains, and where this run is.

    Args:
        record: of the slicings that the training could have used.
        metrics: step and value of each metric of the run, by name.
    """
    measured = max((value for _, value in metrics.get("peak_tensor_bytes", ())), default=None)
    speed = _median([value for _, value in metrics.get("images_per_second", ())])
    charts = Markup("").join(map(draw_chart, (_memory(record, measured), _speed(record, speed))))
    note = "What was predicted or measured of other micro-batch sizes before the training, and what this run took."
    body = fact_list(_facts(record, metrics, measured, speed)) + Markup('<div class="grid">{}</div>').format(charts)
    return PageSection("Slicing", fill("<p>{{ text }}</p>", text=note) + body)


def _facts(
    record: SlicingRecord, metrics: Mapping[str, Points], measured: float | None, speed: float | None
) -> dict[str, object]:
    predicted = dict(record.predicted)[record.micro_batch_size]
    facts: dict[str, object] = {
        "effective batch": f"{record.effective_batch_size:,}",
        "micro-batch size": f"{record.micro_batch_size:,}",
        "accumulation steps": f"{-(-record.effective_batch_size // record.micro_batch_size):,}",
        "memory format": record.memory_format,
        "tensors of a step, predicted": format_bytes(predicted),
    }
    if measured is not None:
        facts["tensors, measured"] = f"{format_bytes(int(measured))} ({measured / predicted - 1:+.1%})"
    facts["room for them in the budget"] = "no limit" if record.room_bytes is None else format_bytes(record.room_bytes)
    if speed is not None:
        facts["samples per second"] = f"{speed:,.0f}"
    for _, seconds in metrics.get("training_seconds", ())[-1:]:
        facts["training time"] = format_seconds(seconds)
    return facts


def _memory(record: SlicingRecord, measured: float | None) -> Chart:
    sizes, values = zip(*record.predicted, strict=True)
    series = [Series("predicted", sizes, [value / 2**20 for value in values])]
    if measured is not None:
        series.append(Series("measured in this run", [record.micro_batch_size], [measured / 2**20]))
    room, largest = record.room_bytes, max(values)
    is_shown = room is not None and 0 < room <= SHOWN_ROOM * largest
    return Chart(
        "Tensors at the peak of a step, MiB",
        "micro-batch size",
        series,
        log_x=True,
        log_y=True,
        mark=(float(record.micro_batch_size), f"used: {record.micro_batch_size}"),
        level=(room / 2**20, "budget") if is_shown and room is not None else None,
    )


def _speed(record: SlicingRecord, speed: float | None) -> Chart:
    series = [] if speed is None else [Series("this run, validation included", [record.micro_batch_size], [speed])]
    for name, points in record.speeds.items():
        if points:
            sizes, values = zip(*points, strict=True)
            series.append(Series(f"measured before it, {name}", sizes, values))
    is_lone = len(series) == 1 and speed is not None
    return Chart(
        "Samples per second",
        "micro-batch size",
        [] if is_lone else series,
        log_x=True,
        from_zero=True,
        mark=(float(record.micro_batch_size), f"used: {record.micro_batch_size}"),
    )


def _median(values: Sequence[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
