"""Loss and score over the epochs of a training."""

from collections.abc import Sequence
from pathlib import Path

from bigstep.report.figures import ACCENT, LINE, new_figure, save_figure

__all__ = ["draw_curves"]


def draw_curves(history: Sequence[dict[str, float]], path: Path, score: str = "accuracy") -> None:
    """Draw loss and score over epochs; ``history`` has one row an epoch, as history.csv."""
    figure = new_figure(9, 3.4)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["train_loss"] for row in history], color=ACCENT, label="training (as optimised)")
    left.plot(epochs, [row["val_loss"] for row in history], color=LINE, label="validation")
    left.set(xlabel="epoch", ylabel="loss")
    if all(row[name] >= 0 for row in history for name in ("train_loss", "val_loss")):
        left.set(ylim=(0, None))
    left.legend(frameon=False)
    right.plot(epochs, [row[f"val_{score}"] for row in history], color=LINE)
    right.set(xlabel="epoch", ylabel=f"validation {score}")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, path)
