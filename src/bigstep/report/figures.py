"""Colors and file format of all plots; matplotlib is imported when the first is drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

from bigstep.runtime.import_lock import import_lock

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ACCENT", "INK", "LINE", "new_figure", "save_figure"]

INK, LINE, ACCENT = "#1f2933", "#2563eb", "#d97706"


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size, in inches."""
    with import_lock:
        from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG; the same figure produces the same bytes."""
    figure.savefig(path, dpi=110, format="png", metadata={"Software": None})
