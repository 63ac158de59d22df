"""Write docs/figures/search.png, the plots of docs/search.md, from the tables of docs/measurements/search.md."""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from measurements_page import PAGE, TITLES

FIGURE = PAGE.parents[1] / "figures" / "search.png"
PLANNED, SEARCHED = "#2563eb", "#ea580c"
SHOWN = {
    "planned, default": "planned, default sampler",
    "planned, default, no starts": "planned, no starting points",
    "planned, TPE, starts": "planned, TPE",
    "full, TPE (cut, starts)": "3-D, TPE, limited range, starting points",
    "TPE 3-D, constraint, starts": "3-D, TPE, starting points",
    "TPE 3-D, constraint": "3-D, TPE (baseline)",
    "random 3-D": "3-D, random",
}
"""Strategies of the page, and what the figure calls them."""
PAID = (10, 20, 30)


def read_rows(page: str) -> dict[str, tuple[float, list[float]]]:
    """Return, for each strategy shown, the median cost to 5 % regret and the regret after 10, 20 and 30 paid trials."""
    section = page.partition(f"## {TITLES[0]}\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")]
    rows = {row[0]: row for row in cells if len(row) == 8}
    return {
        name: (float(rows[name][5].split(" / ")[0]), [float(part) for part in rows[name][2].split(" / ")]) for name in SHOWN
    }


def draw_figure(rows: dict[str, tuple[float, list[float]]], path: Path) -> None:
    """Draw cost to 5 % regret, and regret over paid trials."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.6), layout="constrained")
    _draw_costs(left, rows)
    for style, name in zip(("o-", "o--", "o:", "s-", "s--", "s:", "s-."), SHOWN, strict=True):
        right.plot(PAID, rows[name][1], style, color=_color(name), label=SHOWN[name], markersize=4)
    right.set(xlabel="paid trials", ylabel="mean regret", xticks=PAID, ylim=(0, None))
    right.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def _draw_costs(axes: Axes, rows: dict[str, tuple[float, list[float]]]) -> None:
    names = list(reversed(SHOWN))
    bars = axes.barh([SHOWN[name] for name in names], [rows[name][0] for name in names], color=[_color(name) for name in names])
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
    axes.set(xlabel="median cost to 5 % regret (median trials)")


def _color(name: str) -> str:
    return PLANNED if name.startswith("planned") else SEARCHED


if __name__ == "__main__":
    draw_figure(read_rows(PAGE.read_text(encoding="utf-8")), FIGURE)
