"""Plots of a search: the loss over learning rate and effective batch, and the Pareto front."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigstep.report.figures import ACCENT, INK, LINE, new_figure, save_figure

__all__ = ["draw_front", "draw_landscape"]

Rows = Sequence[Mapping[str, Any]]


def draw_landscape(rows: Rows, objective: str, path: Path) -> None:
    """Draw each trial at its learning rate and effective batch size, colored by its value; infeasible ones are crosses."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    able = [row for row in rows if row["feasible"]]
    points = axes.scatter(
        [row["learning_rate"] for row in able],
        [row["effective_batch_size"] for row in able],
        c=[row["value"] for row in able],
        cmap="viridis_r",
        s=60,
        edgecolors=INK,
        linewidths=0.5,
    )
    unable = [row for row in rows if not row["feasible"]]
    axes.scatter([row["learning_rate"] for row in unable], [row["effective_batch_size"] for row in unable], marker="x", c=INK)
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    axes.set(xlabel="learning rate", ylabel="effective batch size")
    figure.colorbar(points, label=objective)
    save_figure(figure, path)


def draw_front(rows: Rows, front: Sequence[int], objective: str, path: Path) -> None:
    """Draw each trial's value over its training time; the trials of the Pareto front are connected."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    axes.scatter([row["seconds"] for row in rows], [row["value"] for row in rows], c=LINE, s=30)
    best = sorted((row["seconds"], row["value"]) for row in rows if row["number"] in front)
    axes.plot([seconds for seconds, _ in best], [value for _, value in best], color=ACCENT, marker="o", drawstyle="steps-post")
    axes.set(xlabel="training time (s)", ylabel=objective)
    save_figure(figure, path)
