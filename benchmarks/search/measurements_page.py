"""docs/measurements/search.md: the tables of compare_strategies.py, and how they were measured."""

from pathlib import Path

__all__ = ["PAGE", "TITLES", "render_page", "tables_of"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "measurements" / "search.md"
TITLES = (
    "Without seed noise",
    "With seed noise: one seed per trial",
    "With seed noise: the best trials retrained",
    "Three objectives: error, time, memory",
    "Memory known in advance",
)
HEAD = """# Measurements of the search

Written by `python benchmarks/search/compare_strategies.py --seeds 10` (extra `bench`); [docs/search.md](../search.md) says
what follows from them. {origin}

The trainings are those of HPOBench's tables: 24 tasks (eight data sets, three draws of the other hyperparameters each),
learning rate x batch size 10 x 10, five seeds, with the time of each run. A trial costs the table's time at its micro-batch
size; costs are in median trials. Micro-batches over 64 do not fit: running out of memory costs 5 % of a trial, measuring a
micro-batch size 1 %. A study pays for at most 30 trials and asks for at most 100. A pair whose effective batch is not in
the table is infeasible and costs nothing. Regret is 0 at the best cell and 1 at the median cell. `wasted` is the cost of
running out of memory, of measuring, and of cells that were known. *cut*: the range of micro-batch sizes ends at the largest
that fits; *starts*: the search's own starting points are tried first; *3-D*: learning rate, micro-batch and accumulation
steps are searched. Intervals are 95 % bootstrap intervals over the tasks; p is Wilcoxon's test with Holm's correction.
"""


def render_page(tables: str, origin: str) -> str:
    """Return the page; ``origin`` is a sentence on the code and machine that the figures are of."""
    return f"{HEAD.format(origin=origin)}\n{tables}\n"


def tables_of(page: str) -> str:
    """Return the tables of a page, from the first title on."""
    return page[page.index(f"## {TITLES[0]}") :].rstrip("\n")
