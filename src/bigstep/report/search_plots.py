"""Plots of a search: the loss over learning rate and effective batch, and the Pareto front."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigstep.report.figures import ACCENT, INK, LINE, new_figure, save_figure

__all__ = ["draw_front", "draw_landscape"]

Rows = Sequence[Mapping[str, Any]]
MARKERS = {"trained": ("o", 60), "pruned": ("v", 36), "infeasible": ("x", 36)}


def draw_landscape(rows: Rows, objective: str, path: Path) -> None:
    """Draw each trial at its learning rate and effective batch size, colored by its value.

    Pruned trials are triangles, with the last value that they reported; infeasible ones are crosses.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    values = [row["value"] for row in rows if row["value"] is not None] or [0.0]
    colors = {"cmap": "viridis_r", "vmin": min(values), "vmax": max(values), "edgecolors": INK, "linewidths": 0.5}
    points = axes.scatter([], [], c=[], **colors)
    for kind, (marker, size) in MARKERS.items():
        chosen = [row for row in rows if row["kind"] == kind]
        where = [row["learning_rate"] for row in chosen], [row["effective_batch_size"] for row in chosen]
        style: dict[str, Any] = {"c": INK} if kind == "infeasible" else {"c": [row["value"] for row in chosen], **colors}
        if chosen:
            axes.scatter(*where, marker=marker, s=size, label=kind, **style)
    if any(row["kind"] != "trained" for row in rows):
        axes.legend(frameon=False, fontsize="small")
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    axes.set(xlabel="learning rate", ylabel="effective batch size")
    figure.colorbar(points, label=objective)
    save_figure(figure, path)


def draw_front(rows: Rows, front: Sequence[int], objective: str, path: Path) -> None:
    """Draw each trial's value over its training time; the trials of the Pareto front are connected."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    rows = [row for row in rows if row["kind"] == "trained"]
    axes.scatter([row["seconds"] for row in rows], [row["value"] for row in rows], c=LINE, s=30)
    best = sorted((row["seconds"], row["value"]) for row in rows if row["number"] in front)
    axes.plot([seconds for seconds, _ in best], [value for _, value in best], color=ACCENT, marker="o", drawstyle="steps-post")
    axes.set(xlabel="training time (s)", ylabel=objective)
    save_figure(figure, path)
