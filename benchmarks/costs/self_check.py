"""What the self-check of the first batch costs, against one step of the samples that it takes.

Both are run in turns, in one run, and the ratio of medians is printed for several micro-batch sizes. The step is the
accumulator's own, over the self-check's samples in micro-batches of that size, without the optimizer.
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


def measure(model: nn.Module, inputs: Tensor, labels: Tensor, micro: int) -> tuple[float, float]:
    """Return the median seconds of the self-check and of a step, taken in turns."""
    both = (_self_check(model, inputs, labels, micro), _step(model, inputs, labels, micro))
    times: tuple[list[float], list[float]] = ([], [])
    for round_number in range(ROUNDS + 1):
        for run, into in zip(both, times, strict=True):
            started = time.perf_counter()
            run()
            if round_number:
                into.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def _self_check(model: nn.Module, inputs: Tensor, labels: Tensor, micro: int) -> Callable[[], None]:
    def run() -> None:
        SelfCheck(model, losses.CrossEntropy(), seed=0).check(BatchStructure(inputs, labels), micro, torch.device("cpu"))

    return run


def _step(model: nn.Module, inputs: Tensor, labels: Tensor, micro: int) -> Callable[[], None]:
    taken = list(choose_groups(range(len(inputs)), micro).samples)
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=micro, seed=0, self_check=False)

    def run() -> None:
        accumulator.backward(inputs[taken], labels[taken], step=0)
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
        ratios = " | ".join(f"{check / step:.2f}" for check, step in found)
        write(f"| {title} | {found[0][1] * 1000:.0f} to {found[-1][1] * 1000:.0f} ms | {ratios} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
