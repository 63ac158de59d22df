"""Write docs/figures/exactness.png, the picture of the README.

Left: gradient errors of docs/peers.md, which `make peers` measures. Right: predicted peak memory of a step of ResNet-50.
"""

import re
from pathlib import Path

import torch
import torchvision
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from bigstep import predict_memory

DOCS = Path(__file__).resolve().parents[2] / "docs"
CASES = {
    "ragged last window": "ragged last batch",
    "unequal micro-batches": "unequal micro-batches",
    "class weights": "class weights",
    "ignore_index": "ignored labels",
    "causal language model": "ragged tokens",
    "mixup": "mixup",
}
"""How a row of the page starts, and what the figure calls it."""
STYLES = {
    "bigstep": ("o", "#2563eb"),
    "accelerate": ("s", "#ea580c"),
    "Lightning": ("D", "#9333ea"),
    "transformers": ("^", "#16a34a"),
    "tutorial loop": ("v", "#64748b"),
}
EFFECTIVE_BATCH_SIZES = (32, 64, 128, 256, 512, 1024)
MICRO_BATCH_SIZE, IMAGE_SHAPE = 16, (3, 224, 224)
GB = 1e9


def read_errors(page: str) -> dict[str, list[float]]:
    """Return the relative errors of each case of the figure, one for each system in the page's order."""
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")]
    found = {}
    for start, label in CASES.items():
        (row,) = [row for row in rows if row[0].startswith(start)]
        found[label] = [_number(cell) for cell in row[1:]]
    return found


def _number(cell: str) -> float:
    match = re.fullmatch(r"([-0-9.e]+)(%?)", cell)
    if match is None:
        raise ValueError(f"docs/peers.md: expected a relative error, got {cell!r}; run `make peers`")
    return float(match[1]) / (100 if match[2] else 1)


def predicted_peaks(micro_batch_size: int | None) -> list[float]:
    """Return the peak of a step in GB for each effective batch, the images included; None is one pass over the whole batch."""
    model = torchvision.models.resnet50().train()
    return [
        predict_memory(model, IMAGE_SHAPE, micro_batch_size or size, effective_batch_size=size).peak_bytes / GB
        for size in EFFECTIVE_BATCH_SIZES
    ]


def draw_errors(axes: Axes, errors: dict[str, list[float]]) -> None:
    """Draw a row for each case, with a mark for each system."""
    for index, (system, (marker, colour)) in enumerate(STYLES.items()):
        heights = [place + 0.13 * (index - 2) for place in range(len(errors))]
        found = [values[index] for values in errors.values()]
        axes.scatter(found, heights, marker=marker, color=colour, s=34, label=system, zorder=3, linewidths=0)
    axes.axvspan(1e-17, 1e-13, color="#dbeafe", alpha=0.6, linewidth=0)
    axes.text(10**-15, -0.62, "rounding error", ha="center", va="center", color="#1d4ed8", fontsize=8.5)
    axes.set(xscale="log", xlim=(1e-17, 8), ylim=(len(errors) - 0.5, -0.85))
    axes.set_yticks(range(len(errors)), list(errors))
    ticks = {1e-16: "1e-16", 1e-12: "1e-12", 1e-8: "1e-8", 1e-4: "0.01 %", 1e-2: "1 %", 1.0: "100 %"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", length=0)
    axes.set_title("Gradient error against one full-batch pass", loc="left", fontsize=11, fontweight="bold")
    axes.legend(loc="center", bbox_to_anchor=(0.54, 0.5), frameon=False, fontsize=9)


def draw_memory(axes: Axes, whole: list[float], cut: list[float]) -> None:
    """Draw the two curves over the effective batch, and the last value of each."""
    axes.plot(EFFECTIVE_BATCH_SIZES, whole, marker="o", color="#64748b", linewidth=2)
    axes.plot(EFFECTIVE_BATCH_SIZES, cut, marker="o", color="#2563eb", linewidth=2)
    text = f"full batch\n{whole[-1]:.0f} GB"
    axes.annotate(text, (1024, whole[-1]), (-46, 2), textcoords="offset points", ha="right", va="top")
    label = f"bigstep, m = {MICRO_BATCH_SIZE}: {cut[-1]:.1f} GB"
    axes.annotate(label, (1024, cut[-1]), (0, 9), textcoords="offset points", ha="right", color="#2563eb", fontweight="bold")
    axes.set(xscale="log", yscale="log", ylim=(1, 160), xlabel="effective batch size")
    axes.set_xticks(EFFECTIVE_BATCH_SIZES, [str(size) for size in EFFECTIVE_BATCH_SIZES])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks([1, 3, 10, 30, 100])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} GB"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title("Predicted peak memory, ResNet-50, 224 px", loc="left", fontsize=11, fontweight="bold")


def main() -> None:
    """Draw both panels and write the file."""
    torch.set_num_threads(1)
    errors = read_errors((DOCS / "peers.md").read_text(encoding="utf-8"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.5), layout="constrained", width_ratios=(6, 5))
    draw_errors(left, errors)
    draw_memory(right, predicted_peaks(None), predicted_peaks(MICRO_BATCH_SIZE))
    for axes in (left, right):
        axes.grid(color="#e2e8f0", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    path = DOCS / "figures" / "exactness.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    main()
