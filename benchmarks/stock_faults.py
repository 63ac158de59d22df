"""The table of docs/reliability.md: what `make faults` counted, and what people use otherwise does under the same fault.

python benchmarks/stock_faults.py RESULTS: reads the rounds, measures plain torch, Lightning, DVC, MLflow and Optuna, each as
it comes, and writes the table.
"""

import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

import stock_search
import stock_tools
import stock_training
from stock_folder import Folder

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- table: written by `make faults` -->", "<!-- end of table -->"
STOCK: dict[str, Callable[[Folder], str]] = {
    "1, 31": stock_training.killed,
    "2": stock_training.half_saved,
    "5": stock_training.stopped,
    "7, 8": stock_training.damaged,
    "10": stock_training.full_disk,
    "13, 14": stock_training.not_finite,
    "15": stock_training.diverged,
    "18": stock_search.infeasible,
    "23": stock_search.torn_journal,
    "24": stock_search.left_lock,
    "25": stock_search.killed_workers,
    "26": stock_search.nothing_there,
    "27": stock_tools.locked,
    "28": stock_tools.no_server,
    "29, 30": stock_search.stands_still,
    "32": stock_tools.rotten,
    "33": stock_tools.torn,
    "34": stock_tools.bomb,
    "35": stock_tools.open_door,
    "40": stock_training.dead_worker,
}


def measure(row: str) -> str:
    """Give what the stock tool does under the fault of a row, in words."""
    with tempfile.TemporaryDirectory() as scratch:
        return STOCK[row](Folder(Path(scratch)))


def count(lines: list[str]) -> dict[str, dict[str, Any]]:
    """Count rounds, passes and notes of each row; a round, even one run again, passes where all that it told of is good."""
    rounds: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in map(json.loads, lines):
        rounds.setdefault((line["row"], line["title"], line["test"]), []).append(line)
    rows: dict[str, dict[str, Any]] = {}
    for (row, title, _), told in rounds.items():
        item = rows.setdefault(row, {"title": title, "rounds": 0, "passes": 0, "notes": Counter()})
        item["rounds"] += 1
        item["passes"] += all(line["passed"] for line in told)
        item["notes"].update(line["note"] for line in told[-1:] if line["note"])
    return rows


def main() -> None:
    """Write the table."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    results = count(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())
    lines = ["| row | fault | rounds | passes | stock tools under the same fault |", "| --- | --- | ---: | ---: | --- |"]
    for row in sorted(results, key=lambda name: int("".join(filter(str.isdigit, name.partition(",")[0])))):
        found = measure(row) if row in STOCK else ""
        item = results[row]
        struck = "; ".join(f"{name} {times}" for name, times in sorted(item["notes"].items()))
        title = f"{item['title']} (struck: {struck})" if struck else item["title"]
        lines.append(f"| {row} | {title} | {item['rounds']} | {item['passes']} | {found} |")
        print(lines[-1], flush=True)
    page = PAGE.read_text(encoding="utf-8")
    head, tail = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    PAGE.write_text("\n".join([head, *lines, tail]), encoding="utf-8")


if __name__ == "__main__":
    main()
