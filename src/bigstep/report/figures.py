"""What all pictures share."""

from pathlib import Path

from matplotlib.figure import Figure

__all__ = ["ACCENT", "INK", "LINE", "save_figure"]

INK, LINE, ACCENT = "#1f2933", "#2563eb", "#d97706"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG that is the same, byte for byte, for the same picture."""
    figure.savefig(path, dpi=110, format="png", metadata={"Software": None})
