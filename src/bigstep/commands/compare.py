"""`bigstep compare`: finished runs beside each other, with the answer whether they differ by more than chance."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from bigstep.atomic_files import whole_file
from bigstep.comparison.differences import RunDifference, compare_runs
from bigstep.comparison.result import RunResult
from bigstep.comparison.sources import find_result, other_seeds
from bigstep.console import console
from bigstep.errors import ConfigError, ProjectError
from bigstep.machine_output import Report, no_report
from bigstep.project.dvc import cache_folder
from bigstep.report.comparison_page import class_changes, write_comparison

__all__ = ["compare", "seed_scores"]

MAIN = "test_accuracy"  # the metric whose spread between seeds is shown


def compare(root: Path, names: Sequence[str], report: Report = no_report) -> int:
    """Compare each run with the first: on the terminal, and in ``results/compare/report.html``.

    Args:
        root: of the project.
        names: as for :func:`find_result`.
        report: takes a list with what is known of each comparison.

    Returns:
        0

    Raises:
        UserError: there is no such run.
    """
    if len(names) < 2:
        raise ConfigError(f"RUN: expected at least two runs, got {len(names)}; for example: bigstep compare HEAD~1 workspace")
    cache = cache_folder(root)
    results = [find_result(root, cache, name) for name in names]
    differences = [compare_runs(results[0], other) for other in results[1:]]
    seeds = seed_scores(root, results[0])
    texts = [_texts(item, seeds) for item in differences]
    report([_as_json(item, lines) for item, lines in zip(differences, texts, strict=True)])
    page = root / "results" / "compare" / "report.html"
    with whole_file(page) as beside:
        write_comparison(differences, texts, beside)
    for item, lines in zip(differences, texts, strict=True):
        _print(item, lines)
    console.print(f"page: {page.relative_to(root)}")
    return 0


def seed_scores(root: Path, first: RunResult) -> list[float]:
    """Return the scores of the first run's configuration with other seeds; none, and a line, where MLflow does not answer."""
    try:
        return other_seeds(root, first.params, MAIN)
    except ProjectError as error:
        console.print(f"the spread between seeds is unknown: {error}", markup=False)
        return []


def _texts(item: RunDifference, seeds: Sequence[float]) -> list[str]:
    found = []
    if item.paired is not None:
        paired = item.paired
        found.append(
            f"of {paired.num_samples:,} test samples only {item.first.name} is right on {paired.only_first:,}, "
            f"only {item.second.name} on {paired.only_second:,}"
        )
        if paired.loss is not None:
            loss = paired.loss
            found.append(
                f"test loss {0.0 - loss.mean:+.4f} nats (95 % interval {0.0 - loss.high:+.4f} to {0.0 - loss.low:+.4f})"
            )
    if len(seeds) > 1 and MAIN in item.metrics:
        spread, gap = statistics.stdev(seeds), abs(item.metrics[MAIN][1] - item.metrics[MAIN][0])
        times = f"; this difference is {gap / spread:.1f} times that" if spread else ""
        found.append(
            f"between {len(seeds)} seeds of {item.first.name} the test accuracy spreads by {100 * spread:.2f} points "
            f"(standard deviation){times}"
        )
    return found


def _as_json(item: RunDifference, texts: Sequence[str]) -> dict[str, Any]:
    return {
        "first": item.first.name,
        "second": item.second.name,
        "verdict": item.verdict,
        "texts": list(texts),
        "params": item.params,
        "metrics": item.metrics,
        "paired": None if item.paired is None else asdict(item.paired),
        "facts": {"first": item.first.facts, "second": item.second.facts},
    }


def _print(item: RunDifference, texts: Sequence[str]) -> None:
    console.print(f"{item.second.name} against {item.first.name}", style="bold", markup=False)
    tables = {
        "parameter": [(name, *pair) for name, pair in item.params.items()],
        "metric": item.rows(),
        "run": [(name, item.first.facts.get(name, ""), value) for name, value in item.second.facts.items()],
    }
    for title, rows in tables.items():
        if rows:
            table = Table(title_justify="left")
            for heading in (title, item.first.name, item.second.name):
                table.add_column(heading, justify="left" if heading == title else "right")
            for row in rows:
                table.add_row(*row)
            console.print(table)
    changes = class_changes(item)
    if changes:
        console.print("classes, in test samples: " + ", ".join(f"{name} {change:+d}" for name, change in changes), markup=False)
    for text in (item.verdict, *texts):
        console.print(text, markup=False)
