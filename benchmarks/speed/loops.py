"""What a loop costs beyond its passes, at fixed m and A: images per second over those of the bare loop.

The bare loop runs forward, loss and backward for each micro-batch and then the optimizer, and does nothing else. Each loop
has a process of its own, and each round takes one step of every loop, in random order, so that a machine that slows down for a
second slows all of them; the ratios are those within a round. Where a process's memory lies makes it a few percent faster or
slower for as long as it lives, so all are started several times. A run counts if the bare loop against itself is within 2 %.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable

from auto import CASES, Case, images_and_labels, model_and_optimizer, our_step, tutorial_step
from bigstep import Accumulator, losses
from bigstep.runtime.heap import keep_heap
from own_process import OwnProcess

STARTS = 4
SECONDS = 20.0  # of each start
BARE = "the bare loop"


def main() -> None:
    """Print a row of Markdown for each model and loop; arguments are names of models to measure, without any all of them."""
    print("| model | loop | of the bare loop (quartiles) |\n| --- | --- | ---: |")
    for case in CASES:
        if not sys.argv[1:] or case.name in sys.argv[1:]:
            for name, ratios in _compare(case).items():
                low, middle, high = statistics.quantiles(ratios, n=4)
                title = f"{case.name}, {case.size} px, {case.micro} x {case.steps}"
                print(f"| {title} | {name} | {middle:.3f} ({low:.3f} to {high:.3f}) |")
            sys.stdout.flush()


def _compare(case: Case) -> dict[str, list[float]]:
    ratios: dict[str, list[float]] = {}
    for _ in range(STARTS):
        for name, found in _one_start(case).items():
            ratios.setdefault(name, []).extend(found)
    return ratios


def _one_start(case: Case) -> dict[str, list[float]]:
    loops = {
        BARE: OwnProcess(bare, case),
        "the bare loop again": OwnProcess(bare, case),
        "the bare loop in a heap that is kept": OwnProcess(bare_in_kept_heap, case),
        "Accumulator": OwnProcess(accumulating, case),
        "training": OwnProcess(our_step, case, case.micro, "contiguous"),
        "one pass (A = 1)": OwnProcess(bare, case, case.effective),
    }
    for loop in loops.values():
        loop.seconds(3)
    found: dict[str, list[float]] = {name: [] for name in loops}
    started = time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        for name in random.sample(list(loops), len(loops)):
            found[name].append(loops[name].seconds())
    for loop in loops.values():
        loop.close()
    return {name: [one / other for other, one in zip(times, found[BARE], strict=True)] for name, times in found.items()}


def bare(case: Case, micro: int | None = None) -> Callable[[], object]:
    """Return a step of the bare loop."""
    return tutorial_step(case, case.micro if micro is None else micro, "contiguous", clipped=False)


def bare_in_kept_heap(case: Case) -> Callable[[], object]:
    """Return the same, in a process that keeps its heap as a training of bigstep does."""
    keep_heap()
    return bare(case)


def accumulating(case: Case) -> Callable[[], object]:
    """Return a step of the Accumulator in a loop like the bare one."""
    images, labels = images_and_labels(case)
    model, optimizer = model_and_optimizer(case)
    loss = losses.CrossEntropy(label_smoothing=case.params.train.label_smoothing)
    accumulator = Accumulator(model, loss, micro_batch_size=case.micro)

    def step() -> None:
        accumulator.backward(images, labels)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
