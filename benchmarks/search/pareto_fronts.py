"""Fronts of (error, time, memory), and asks that fit, for benchmarks/search/compare_strategies.py."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import optuna
from optuna._hypervolume import compute_hypervolume  # public implementations need one more package
from optuna.samplers import BaseSampler

from bigstep.search.samplers import choose_sampler
from hpobench_tables import ACCUMULATIONS, CAP, NUM_BATCHES, NUM_RATES, STEPS_OF_4, Table, micros_of
from report_tables import interval
from simulated_study import GREATEST, PAID, ask_cell
from strategies import cut, starts, stock_sampler

__all__ = ["ask_table", "front_table"]

COUNTS = (5, 10, 20, 30)
CORNER = np.array([1.1, 1.1, 1.1])


@dataclass(frozen=True)
class Front:
    """A way to search for a front; ``objectives`` that the sampler sees: 1 = the error only."""

    name: str
    planned: bool
    sampler: str
    objectives: int = 3
    starts: int = 0
    share: float = 1.0


FRONTS = (
    Front("planned, TPE, starts", planned=True, sampler="tpe", starts=3),
    Front("planned, TPE, no starts", planned=True, sampler="tpe"),
    Front("planned, GP, starts", planned=True, sampler="gp", starts=3, share=0.5),
    Front("planned, GP, sampler sees the error only", planned=True, sampler="gp", objectives=1, starts=3, share=0.5),
    Front("planned, TPE, sampler sees the error only", planned=True, sampler="tpe", objectives=1, starts=3),
    Front("planned, random", planned=True, sampler="random"),
    Front("full, TPE (cut, starts)", planned=False, sampler="tpe", starts=3),
    Front("full, GP (cut, starts)", planned=False, sampler="gp", starts=3, share=0.25),
    Front("TPE 3-D", planned=False, sampler="stock tpe"),
    Front("NSGA-II 3-D", planned=False, sampler="stock nsga"),
    Front("random 3-D", planned=False, sampler="stock random"),
)


def front_table(pool: ProcessPoolExecutor, tables: list[Table], seeds: int) -> str:
    """Compare how fast the front of (error, time, memory) fills."""
    rows = [
        "| strategy | seeds | share of the front's hypervolume after 5 / 10 / 20 / 30 paid | at 10 (95 %) |",
        "| --- " * 4 + "|",
    ]
    for front in FRONTS:
        count = max(1, round(front.share * seeds))
        jobs = [(front, table, seed) for table in tables for seed in range(count)]
        shares = np.array(list(pool.map(front_shares, *zip(*jobs, strict=True)))).reshape(len(tables), count, len(COUNTS))
        low, high = interval(shares[:, :, 1].mean(axis=1))
        row = " / ".join(f"{value:.2f}" for value in shares.mean(axis=(0, 1)))
        rows.append(f"| {front.name} | {count} | {row} | {low:.2f} to {high:.2f} |")
        print(f"front  {front.name}", flush=True)
    return "\n".join(rows)


def front_shares(front: Front, table: Table, seed: int) -> list[float]:
    """Search once; give the share of the whole hypervolume after 5, 10, 20 and 30 paid trials."""
    whole = compute_hypervolume(np.array(_every(table)), CORNER)
    study, stock = optuna.create_study(directions=["minimize"] * front.objectives), stock_sampler(front.sampler, seed)
    for point in starts()[: front.starts]:
        study.enqueue_trial(point if front.planned else cut(point, table))
    found: list[list[float]] = []
    shares: list[float] = []
    for ask in range(100):
        study.sampler = stock or _ours(front, seed, ask)
        trial = study.ask()
        (rate, effective), micro, excess = ask_cell(trial, table, planned=front.planned, is_cut=True)
        if excess > 0:
            trial.set_constraint("possible", float(excess))
            study.tell(trial, [GREATEST] * front.objectives)
            continue
        point = _point(table, rate, effective, micro)
        study.tell(trial, point[: front.objectives])
        derived = micros_of(effective) if front.planned else [micro]
        found += [_point(table, rate, effective, number) for number in derived]
        shares.append(compute_hypervolume(np.array(found), CORNER) / whole)
        if len(shares) == PAID:
            break
    return [shares[min(count, len(shares)) - 1] for count in COUNTS]


def _point(table: Table, rate: int, effective: int, micro: int) -> list[float]:
    clock = np.log(table.seconds[: CAP + 1])
    spread = max(float(clock.max() - clock.min()), 1e-9)
    return [min(float(table.means[rate, effective]), 1.0), float(clock[micro] - clock.min()) / spread, micro / CAP]


def _every(table: Table) -> list[list[float]]:
    return [
        _point(table, rate, effective, micro)
        for rate in range(NUM_RATES)
        for effective in range(NUM_BATCHES)
        for micro in micros_of(effective)
    ]


def _ours(front: Front, seed: int, ask: int) -> BaseSampler:
    return choose_sampler(
        front.sampler, seed=seed * 1000 + ask, space="planned", num_objectives=front.objectives, study_seed=seed
    )


def ask_table(tables: list[Table], seeds: int) -> str:
    """Count the asks of 100 that fit, by how the sampler knows of the memory, for three caps."""
    kinds = ("range cut to what the prediction allows", "TPE with constraint, after a start that fits", "TPE with constraint")
    caps = {6: "64 (7 of 10 sizes fit)", 3: "16 (4 of 10)", 1: "6 (2 of 10)"}
    rows = [f"| asks of 100 that fit, micro-batches up to | {' | '.join(kinds)} |", "| --- " * 4 + "|"]
    for cap, label in caps.items():
        counts = [[_count_fits(table, seed, cap, kind) for table in tables for seed in range(seeds)] for kind in range(3)]
        shown = [f"{np.mean(values):.0f} (least {min(values)})" for values in counts]
        rows.append(f"| {label} | {' | '.join(shown)} |")
    return "\n".join(rows)


def _count_fits(table: Table, seed: int, cap: int, kind: int) -> int:
    study = optuna.create_study(sampler=stock_sampler("stock tpe", seed))
    if kind == 1:
        study.enqueue_trial({"rate": NUM_RATES // 2, "micro": cap, "steps": 1})
    fits = 0
    for _ in range(100):
        trial = study.ask()
        rate, micro = (
            trial.suggest_int("rate", 0, NUM_RATES - 1),
            trial.suggest_int("micro", 0, cap if kind == 0 else NUM_BATCHES - 1),
        )
        effective = min(micro + STEPS_OF_4 * trial.suggest_int("steps", 0, ACCUMULATIONS - 1), NUM_BATCHES - 1)
        trial.set_constraint("memory", float(micro - cap))
        study.tell(trial, GREATEST if micro > cap else float(table.means[rate, effective]))
        fits += micro <= cap
    return fits
