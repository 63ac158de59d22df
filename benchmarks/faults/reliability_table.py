"""The table of docs/reliability.md: what `make faults` counted, and how other tools behave under the same fault.

python benchmarks/faults/reliability_table.py RESULTS: reads the rounds, measures plain torch, Lightning, torchrun, DVC, MLflow
and Optuna, each with its defaults, and writes the table.
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

import dvc_mlflow_faults
import optuna_faults
import torch_lightning_faults
import torchrun_faults
from sandbox import Folder

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- table: written by `make faults` -->", "<!-- end of table -->"
STOCK: dict[str, Callable[[Folder], str]] = {
    "1, 31": torch_lightning_faults.killed,
    "2": torch_lightning_faults.half_saved,
    "5": torch_lightning_faults.stopped,
    "7, 8": torch_lightning_faults.damaged,
    "10": torch_lightning_faults.full_disk,
    "13, 14": torch_lightning_faults.not_finite,
    "15": torch_lightning_faults.diverged,
    "18": optuna_faults.infeasible,
    "23": optuna_faults.torn_journal,
    "24": optuna_faults.left_lock,
    "25": optuna_faults.killed_workers,
    "26": optuna_faults.nothing_there,
    "27": dvc_mlflow_faults.locked,
    "28": dvc_mlflow_faults.no_server,
    "29, 30": optuna_faults.paused,
    "32": dvc_mlflow_faults.rotten,
    "33": dvc_mlflow_faults.torn,
    "34": dvc_mlflow_faults.bomb,
    "35": dvc_mlflow_faults.open_door,
    "40": torch_lightning_faults.dead_worker,
    "50": torchrun_faults.memory,
    "51": torchrun_faults.killed,
    "52": torchrun_faults.stopped,
}


def measure(row: str) -> str:
    """Return what the stock tool does under the fault of a row, in words."""
    with tempfile.TemporaryDirectory() as scratch:
        return STOCK[row](Folder(Path(scratch)))


def count(lines: list[str]) -> dict[str, dict[str, Any]]:
    """Count rounds, passes and notes of each row; a round, also one that ran twice, passes if all its lines do.

    A list of notes is that of several rounds, which pass together.
    """
    rounds: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in map(json.loads, lines):
        rounds.setdefault((line["row"], line["title"], line["test"]), []).append(line)
    rows: dict[str, dict[str, Any]] = {}
    for (row, title, _), reports in rounds.items():
        item = rows.setdefault(row, {"title": title, "rounds": 0, "passes": 0, "notes": Counter()})
        note, passed = reports[-1]["note"], all(line["passed"] for line in reports)
        notes = note if isinstance(note, list) else [note]
        item["rounds"] += len(notes) if passed else max(len(notes), 1)
        item["passes"] += len(notes) * passed
        item["notes"].update(filter(None, notes))
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
        hits = "; ".join(f"{name} {times}" for name, times in sorted(item["notes"].items()))
        title = f"{item['title']} (hit: {hits})" if hits else item["title"]
        lines.append(f"| {row} | {title} | {item['rounds']} | {item['passes']} | {found} |")
        print(lines[-1], flush=True)
    page = PAGE.read_text(encoding="utf-8")
    head, tail = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    PAGE.write_text("\n".join([head, *lines, tail]), encoding="utf-8")


if __name__ == "__main__":
    main()
