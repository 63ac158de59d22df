"""What a loop costs beyond its passes, at fixed m and A: images per second over those of the bare loop, in one process.

The bare loop runs forward, loss and backward for each micro-batch and then the optimizer, and does nothing else. Each
round takes one step of every loop, in random order, so that a machine that slows down for a second slows all of them; the
ratios are those within a round. A run counts if the bare loop against itself is within 2 %.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable

from torch import Tensor

from auto import CASES, Case, images_and_labels, model_and_optimizer, our_step, tutorial_step
from bigstep import Accumulator, losses

SECONDS = 90.0  # of each model
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
    images, labels = images_and_labels(case)
    loops = {
        BARE: _bare(case, images, labels),
        "the bare loop again": _bare(case, images, labels),
        "the bare loop with a clipped gradient": tutorial_step(case, case.micro, "contiguous", images, labels),
        "Accumulator": _accumulator(case, images, labels),
        "training": our_step(case, images, labels),
        "one pass (A = 1)": tutorial_step(case, case.effective, "contiguous", images, labels, clipped=False),
    }
    for step in loops.values():
        step()
        step()
    found: dict[str, list[float]] = {name: [] for name in loops}
    started = time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        for name in random.sample(list(loops), len(loops)):
            found[name].append(_seconds(loops[name]))
    return {name: [bare / one for one, bare in zip(times, found[BARE], strict=True)] for name, times in found.items()}


def _seconds(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _bare(case: Case, images: Tensor, labels: Tensor) -> Callable[[], object]:
    return tutorial_step(case, case.micro, "contiguous", images, labels, clipped=False)


def _accumulator(case: Case, images: Tensor, labels: Tensor) -> Callable[[], object]:
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
