"""Colors and file format of all plots."""

from pathlib import Path

from matplotlib.figure import Figure

__all__ = ["ACCENT", "INK", "LINE", "save_figure"]

INK, LINE, ACCENT = "#1f2933", "#2563eb", "#d97706"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; the same figure produces the same bytes."""
    figure.savefig(path, dpi=110, format="png", metadata={"Software": None})
