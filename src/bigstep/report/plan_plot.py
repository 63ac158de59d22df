"""Speed and memory over the micro-batch size."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bigstep.report.figures import ACCENT, LINE, new_figure, save_figure

if TYPE_CHECKING:
    from bigstep.planning.throughput import PlannedSlicing, ThroughputCurve

__all__ = ["draw_plan"]

OTHERS = ("tab:blue", "tab:green", "tab:purple", "tab:red")


def draw_plan(ladders: "Sequence[ThroughputCurve]", choice: "PlannedSlicing", room_bytes: int | None, path: Path) -> None:
    """Draw samples per second and process growth over the micro-batch size; the budget is a line."""
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    for number, ladder in enumerate(ladders):
        sizes = [rung.micro_batch_size for rung in ladder.rungs]
        style = (
            {"color": ACCENT, "linewidth": 2.0}
            if number == 0
            else {"color": OTHERS[number % len(OTHERS)], "linewidth": 1.0, "linestyle": "--"}
        )
        label = f"{ladder.precision}, {ladder.memory_format}"
        left.plot(sizes, [rung.samples_per_second for rung in ladder.rungs], marker="o", markersize=3, label=label, **style)
    rungs = ladders[0].rungs
    sizes = [rung.micro_batch_size for rung in rungs]
    right.plot(sizes, [rung.resident_growth_bytes / 2**20 for rung in rungs], color=ACCENT, marker="o", markersize=3)
    right.plot(sizes, [rung.predicted_bytes / 2**20 for rung in rungs], color=LINE, linestyle="--")
    right.legend(["process growth", "predicted tensors"], frameon=False)
    if room_bytes is not None:
        right.axhline(room_bytes / 2**20, color="firebrick", linewidth=1)
        right.text(sizes[0], room_bytes / 2**20, "budget", color="firebrick", va="bottom")
    for axes in (left, right):
        axes.axvline(choice.micro_batch_size, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("micro-batch size")
    left.set(ylabel="samples per second", ylim=(0, None))
    left.legend(frameon=False, fontsize="small")
    right.set(ylabel="MiB", yscale="log" if room_bytes is not None else "linear")
    save_figure(figure, path)
