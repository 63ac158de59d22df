"""One study of a table with one strategy: what was asked, trained and spent."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from hpobench_tables import ACCUMULATIONS, CAP, NUM_BATCHES, NUM_RATES, OOM, PROBE, STEPS_OF_4, Table
from strategies import Strategy, cut, sampler_of, starts, stock_sampler

__all__ = ["GREATEST", "PAID", "Course", "ask_cell", "study_table"]

PAID, ASKS = 30, 100
GREATEST = 5.0  # value of an infeasible trial: far over the median cell, near enough to leave a model its scale
Cell = tuple[int, int]


@dataclass(frozen=True)
class Course:
    """A study's paid trials in order, and what was wasted."""

    cells: list[Cell]
    values: np.ndarray
    draws: np.ndarray
    """Which of the table's five seeds gave the value."""
    prices: np.ndarray
    spent: np.ndarray
    """In median trials; with what was spent on infeasible asks and on measuring."""
    wasted: float
    """On running out of memory, on cells that were known, and on measuring."""
    num_feasible: int
    num_asks: int

    def as_plain(self) -> dict[str, Any]:
        """Return it in lists and numbers."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Course":
        """Make it from what ``as_plain`` gave."""
        arrays = {name: np.array(plain[name]) for name in ("values", "draws", "prices", "spent")}
        return cls(**{**plain, **arrays, "cells": [(rate, batch) for rate, batch in plain["cells"]]})


def study_table(strategy: Strategy, table: Table, seed: int, *, noisy: bool) -> Course:
    """Search a table once."""
    study, chance = optuna.create_study(), np.random.default_rng(seed)
    for point in starts()[: strategy.starts]:
        study.enqueue_trial(point if strategy.planned else cut(point, table))
    spent = wasted = PROBE * (CAP + 1) if strategy.planned else 0.0
    known: dict[Cell, float] = {}
    rows: list[tuple[Cell, float, int, float, float]] = []
    fits = asks = 0
    stock = stock_sampler(strategy.sampler, seed)
    while asks < ASKS and len(rows) < PAID:
        study.sampler = stock or sampler_of(strategy, seed, asks)
        trial, asks = study.ask(), asks + 1
        cell, micro, excess = ask_cell(trial, table, planned=strategy.planned, is_cut=strategy.is_cut)
        if not strategy.planned and strategy.infeasible == "constraint":
            trial.set_constraint("fits", float(excess))
        if excess > 0:
            spent, wasted = spent + OOM * (micro > CAP), wasted + OOM * (micro > CAP)
            _refuse(study, trial, strategy.infeasible)
            continue
        fits += 1
        if strategy.is_shared and cell in known:
            study.tell(trial, known[cell])
            continue
        draw = int(chance.integers(5))
        value = float(table.errors[(*cell, draw)] if noisy else table.means[cell])
        study.tell(trial, value)
        price = table.cost(micro)
        spent, wasted = spent + price, wasted + price * (cell in known)
        known[cell] = value
        rows.append((cell, value, draw, price, spent))
    cells, *columns = zip(*rows, strict=True) if rows else ((),) * 5
    return Course(list(cells), *map(np.array, columns), wasted, fits, asks)


def ask_cell(trial: optuna.Trial, table: Table, *, planned: bool, is_cut: bool) -> tuple[Cell, int, int]:
    """Draw a point: the cell, the micro-batch, and by how much it cannot be (0 where it can)."""
    rate = trial.suggest_int("rate", 0, NUM_RATES - 1)
    if planned:
        effective = trial.suggest_int("effective", 0, NUM_BATCHES - 1)
        return (rate, effective), table.planned(effective), 0
    micro = trial.suggest_int("micro", 0, CAP if is_cut else NUM_BATCHES - 1)
    effective = micro + STEPS_OF_4 * trial.suggest_int("steps", 0, ACCUMULATIONS - 1)
    return (rate, effective), micro, max(0, micro - CAP, effective - NUM_BATCHES + 1)


def _refuse(study: optuna.Study, trial: optuna.Trial, infeasible: str) -> None:
    if infeasible == "fail":
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, GREATEST)
