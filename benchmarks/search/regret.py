"""What a study comes to: the regret of the best so far over what was spent, with and without the finish."""

from dataclasses import dataclass

import numpy as np

from hpobench_tables import Table
from simulated_study import PAID, Course

__all__ = ["NUM_SEARCHED", "Result", "result_of", "result_with_finish"]

TOP, NEW_SEEDS = 3, 3
NUM_SEARCHED = PAID - (TOP + 1) * NEW_SEEDS
"""Paid trials before the finish, where all are 30."""


@dataclass(frozen=True)
class Result:
    """One study: what was spent and the regret of the best so far, after each paid trial."""

    cost: np.ndarray
    regret: np.ndarray
    wasted: float

    def at_paid(self, count: int) -> float:
        """Return the regret after so many paid trials; 1, the median cell's, before any."""
        return float(self.regret[min(count, len(self.regret)) - 1]) if len(self.regret) else 1.0

    def at_cost(self, cost: float) -> float:
        """Return the regret when so much was spent."""
        inside = self.regret[self.cost <= cost]
        return float(inside[-1]) if len(inside) else 1.0

    def reach(self, limit: float) -> tuple[float, float]:
        """Return the cost and the paid trials at which the regret first was within ``limit``; infinite where never."""
        inside = np.flatnonzero(self.regret <= limit)
        return (float(self.cost[inside[0]]), float(inside[0] + 1)) if len(inside) else (np.inf, np.inf)


def result_of(course: Course, table: Table) -> Result:
    """Return the regret of the cell whose value was lowest so far; with the noise of seeds that is not the best cell so far."""
    lowest = [int(np.argmin(course.values[: count + 1])) for count in range(len(course.values))]
    regret = np.array([table.means[course.cells[index]] for index in lowest])
    return Result(course.spent, regret, course.wasted)


def result_with_finish(course: Course, table: Table, seed: int) -> Result:
    """The same where the best three of 18 trials, and the first, are trained again with three new seeds each."""
    chance = np.random.default_rng([seed, 1])
    early = result_of(course, table)
    ranked = list(dict.fromkeys(course.cells[index] for index in np.argsort(course.values[:NUM_SEARCHED], kind="stable")))
    chosen = list(dict.fromkeys([*ranked[:TOP], course.cells[0]]))
    means, costs = [], list(early.cost[:NUM_SEARCHED])
    for cell in chosen:
        index = course.cells.index(cell)
        others = [draw for draw in chance.permutation(5) if draw != course.draws[index]]
        means.append(float(table.errors[(*cell, others[:NEW_SEEDS])].mean()))
        costs += list(costs[-1] + course.prices[index] * np.arange(1, NEW_SEEDS + 1))
    regret = [
        *early.regret[:NUM_SEARCHED],
        *[early.regret[NUM_SEARCHED - 1]] * (len(costs) - NUM_SEARCHED - 1),
        table.means[chosen[int(np.argmin(means))]],
    ]
    return Result(np.array(costs), np.array(regret, dtype=float), course.wasted)
