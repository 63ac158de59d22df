"""The strategies that benchmarks/search/compare_strategies.py compares: spaces, samplers and start points."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from bigstep.search.initial_points import start_points
from bigstep.search.samplers import choose_sampler
from bigstep.search.space import EFFECTIVE, RATE
from hpobench_tables import BATCHES, NUM_BATCHES, NUM_RATES, RATES, STEPS_OF_4, Table

__all__ = ["BASELINE", "OURS", "STRATEGIES", "UNAIDED", "Strategy", "cut", "sampler_of", "starts", "stock_sampler"]

CENTRE = {"rate": (NUM_RATES - 1) // 2, "effective": NUM_BATCHES // 2}
BASELINE, OURS, UNAIDED = "TPE 3-D, constraint", "planned, default", "planned, default, no starts"


@dataclass(frozen=True)
class Strategy:
    """A way to search."""

    name: str
    planned: bool
    sampler: str
    """A name of ``choose_sampler``; or ``stock tpe|gp|random``: Optuna's with its defaults, one for the whole study."""
    starts: int = 0
    """Points that are tried first: 1 = the centre, 3 = also one on either side."""
    infeasible: str = "constraint"
    """How the study learns that a trial is infeasible: ``constraint``, or ``fail``."""
    is_cut: bool = False
    """Whether the range excludes micro-batches that are known not to fit."""
    is_shared: bool = False
    """Whether a known cell costs nothing in any slicing."""
    share: float = 1.0
    """Fraction of the seeds that are run."""
    is_exact_only: bool = False
    """Whether it is not run with seed noise."""


STRATEGIES = (
    Strategy(OURS, planned=True, sampler="auto", starts=3),
    Strategy("planned, default, centre only", planned=True, sampler="auto", starts=1, share=0.1, is_exact_only=True),
    Strategy(UNAIDED, planned=True, sampler="auto", share=0.2),
    Strategy("planned, Optuna's stock GP, starts", planned=True, sampler="stock gp", starts=3, share=0.1, is_exact_only=True),
    Strategy("planned, CMA-ES, starts", planned=True, sampler="cmaes", starts=3),
    Strategy("planned, TPE, starts", planned=True, sampler="tpe", starts=3),
    Strategy("planned, TPE, no starts", planned=True, sampler="tpe"),
    Strategy("planned, QMC", planned=True, sampler="qmc"),
    Strategy("planned, random", planned=True, sampler="random"),
    Strategy("full, TPE (cut, starts)", planned=False, sampler="tpe", starts=3, is_cut=True),
    Strategy("full, GP (cut, starts)", planned=False, sampler="gp", starts=3, is_cut=True, share=0.1, is_exact_only=True),
    Strategy("TPE 3-D, constraint, starts", planned=False, sampler="stock tpe", starts=3),
    Strategy(BASELINE, planned=False, sampler="stock tpe"),
    Strategy("TPE 3-D, constraint, known cells free", planned=False, sampler="stock tpe", is_shared=True),
    Strategy("GP 3-D, constraint", planned=False, sampler="stock gp", share=0.1),
    Strategy("random 3-D", planned=False, sampler="stock random"),
    Strategy("TPE 3-D, out of memory is FAIL", planned=False, sampler="stock tpe", infeasible="fail"),
)


def starts() -> list[dict[str, int]]:
    """Return the table's centre, as the current parameters, and the search's own starting points around it."""
    dimensions = {RATE: FloatDistribution(min(RATES), max(RATES), log=True), EFFECTIVE: IntDistribution(4, 256, log=True)}
    current = {RATE: float(np.sqrt(min(RATES) * max(RATES))), EFFECTIVE: 32}
    return [CENTRE, *(_nearest(point) for point in start_points(current, dimensions))]


def cut(point: Mapping[str, int], table: Table) -> dict[str, int]:
    """Return a start point of two dimensions in three, in the fastest slicing."""
    micro = table.planned(point["effective"])
    return {"rate": point["rate"], "micro": micro, "steps": (point["effective"] - micro) // STEPS_OF_4}


def _nearest(point: Mapping[str, float]) -> dict[str, int]:
    rate, batch = np.log(point[RATE]), np.log(point[EFFECTIVE])
    return {
        "rate": int(np.abs(np.log(RATES) - rate).argmin()),
        "effective": int(np.abs(np.log(BATCHES) - batch).argmin()),
    }


def sampler_of(strategy: Strategy, seed: int, asks: int) -> BaseSampler:
    """Make the sampler for one ask of a study."""
    space = "planned" if strategy.planned else "full"
    return choose_sampler(strategy.sampler, seed=seed * 1000 + asks, space=space, num_objectives=1, study_seed=seed)


def stock_sampler(name: str, seed: int) -> BaseSampler | None:
    """Make Optuna's sampler as it comes, for a whole study; None where ours is asked for."""
    makers = {"stock tpe": TPESampler, "stock gp": GPSampler, "stock random": RandomSampler, "stock nsga": NSGAIISampler}
    return makers[name](seed=seed) if name in makers else None
