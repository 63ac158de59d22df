"""`bigstep repro --seeds N`: the same pipeline with N seeds, and the spread of its metrics between them."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from bigstep.atomic_files import read_metrics
from bigstep.config.params import Params
from bigstep.console import console, format_score
from bigstep.machine_output import Report, no_report
from bigstep.project.dvc import Request, run_pipeline
from bigstep.project.paths import StagePaths

__all__ = ["repro_seeds", "run_seeds", "spread_rows"]

COUNTED = ("best_epoch", "epochs", "num_updates", "num_dropped")  # no scores: their spread says nothing about the model


def repro_seeds(
    root: Path, request: Request, count: int, finish: Callable[[StagePaths, Params], int], report: Report = no_report
) -> int:
    """Run the pipeline with ``train.seed`` as configured, and with the ``count - 1`` seeds after it, in private copies.

    Args:
        root: of the project.
        request: what to run.
        count: number of seeds, at least 2.
        finish: called after each run that succeeded.
        report: takes the metrics of each seed, and mean, standard deviation, smallest and largest of each score.

    Returns:
        0, or the exit code of the first run that failed.

    Raises:
        UserError: a parameter or the project is invalid.
    """
    found: list[dict[str, float]] = []
    seeds: list[int] = []

    def note(paths: StagePaths, params: Params) -> None:
        finish(paths, params)
        found.append({**read_metrics(paths.train / "metrics.json"), **read_metrics(paths.evaluate / "metrics.json")})
        seeds.append(params.train.seed)

    code = run_seeds(root, request, count, note)
    if code == 0:
        _print(found, seeds)
        runs = [{"seed": seed, "metrics": metrics} for seed, metrics in zip(seeds, found, strict=True)]
        report({"runs": runs, "spread": spread_rows(found)})
    return code


def run_seeds(root: Path, request: Request, count: int, done: Callable[[StagePaths, Params], object]) -> int:
    """Run the pipeline with each seed, and call ``done`` after each run that succeeded; as :func:`repro_seeds`."""
    first = 0
    for number in range(count):
        seed = () if not number else ((("train", "seed", first + number),),)
        code, paths, params = run_pipeline(root, replace(request, overrides=(*request.overrides, *seed)))
        if code:
            return code
        first = first if number else params.train.seed
        done(paths, params)
    return 0


def spread_rows(found: Sequence[dict[str, float]]) -> dict[str, tuple[float, float, float, float]]:
    """Return mean, sample standard deviation, smallest and largest value of each score, over the runs in which it is finite.

    NaN where too few runs are left.
    """
    return {name: _spread(_finite_values(found, name)) for name in found[0] if name not in COUNTED}


def _finite_values(found: Sequence[dict[str, float]], name: str) -> list[float]:
    return [values[name] for values in found if math.isfinite(values.get(name, math.nan))]


def _spread(values: Sequence[float]) -> tuple[float, float, float, float]:
    if not values:
        return math.nan, math.nan, math.nan, math.nan
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return statistics.fmean(values), deviation, min(values), max(values)


def _print(found: Sequence[dict[str, float]], seeds: Sequence[int]) -> None:
    table = Table(title=f"train.seed {seeds[0]} to {seeds[-1]}: {len(seeds)} runs", title_justify="left")
    for name in ("metric", "mean", "standard deviation", "smallest", "largest"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, row in spread_rows(found).items():
        count = len(_finite_values(found, name))
        shown = name if count == len(found) else f"{name}, {count} of {len(found)} runs"
        table.add_row(shown, *(format_score(value) for value in row))
    console.print(table)
