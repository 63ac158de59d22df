"""What the self-check of the first batch costs, against one step of the samples that it takes.

All are run in turns, in one run, and ratios of medians are printed for several micro-batch sizes: against a step in
micro-batches of that size, and against the mean of steps in the two cuts that the self-check compares, which run the sizes
that it runs. A step is the accumulator's own, over the self-check's samples, without the optimizer.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bigstep import Accumulator, losses
from bigstep.config.model import ModelConfig
from bigstep.models.building import InputShape, build_network
from bigstep.step.batch_structure import BatchStructure
from bigstep.step.grouping import choose_groups
from bigstep.step.self_check import SelfCheck

ROUNDS = 9
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 64)
CASES = (("small_cnn", 28, {}), ("small_cnn", 28, {"dropout": 0.2}), ("resnet18", 64, {}), ("vit_b_16", 32, {"dropout": 0.1}))


def measure(model: nn.Module, inputs: Tensor, labels: Tensor, micro: int) -> tuple[float, float, float]:
    """Return the median seconds of the self-check, of a step, and of a step in the other cut's sizes, taken in turns."""
    groups = choose_groups(range(len(inputs)), micro)
    other = max(part.stop - part.start for part in groups.apart)
    steps = [_step(model, inputs[list(groups.samples)], labels[list(groups.samples)], size) for size in (micro, other)]
    runs = (_self_check(model, inputs, labels, micro), *steps)
    times: tuple[list[float], ...] = ([], [], [])
    for round_number in range(ROUNDS + 1):
        for run, into in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            if round_number:
                into.append(time.perf_counter() - started)
    check, step, apart = (statistics.median(seconds) for seconds in times)
    return check, step, apart


def _self_check(model: nn.Module, inputs: Tensor, labels: Tensor, micro: int) -> Callable[[], None]:
    def run() -> None:
        SelfCheck(model, losses.CrossEntropy(), seed=0).check(BatchStructure(inputs, labels), micro, torch.device("cpu"))

    return run


def _step(model: nn.Module, inputs: Tensor, labels: Tensor, micro: int) -> Callable[[], None]:
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=micro, seed=0, self_check=False)

    def run() -> None:
        accumulator.backward(inputs, labels, step=0)
        model.zero_grad()

    return run


def main() -> None:
    """Print a table in Markdown."""
    torch.manual_seed(0)
    write = sys.stdout.write
    write("| model | one such step | " + " | ".join(f"m = {micro}" for micro in SIZES) + " |\n")
    write("| --- | ---: | " + " | ".join("---:" for _ in SIZES) + " |\n")
    for name, size, options in CASES:
        model = build_network(ModelConfig.model_validate({"name": name, **options}), InputShape(3, size, 10)).train()
        inputs, labels = torch.randn(64, 3, size, size), torch.randint(0, 10, (64,))
        found = [measure(model, inputs, labels, micro) for micro in SIZES]
        title = name + (", dropout" if options else "")
        ratios = " | ".join(f"{check / step:.2f}, {2 * check / (step + apart):.2f}" for check, step, apart in found)
        write(f"| {title} | {found[0][1] * 1000:.0f} to {found[-1][1] * 1000:.0f} ms | {ratios} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
