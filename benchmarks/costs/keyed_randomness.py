"""What keying random calls and measuring the noise scale cost.

Ratios of medians of interleaved steps, in one run; on a busy machine they are good to a few percent only. So for the noise
scale's default the time inside its norms is also given as a share of the step.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bigstep import Accumulator, losses
from bigstep.config.model import ModelConfig
from bigstep.models.building import InputShape, build_network
from bigstep.step import micro_batch_loop as attempt

ROUNDS = 15


def measure(
    model: nn.Module, inputs: Tensor, labels: Tensor, micro: int, variants: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """Return the median seconds of a step (gradient, SGD with momentum) of each variant, taken in turns."""
    steps = {name: _step(model, inputs, labels, micro, options) for name, options in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(ROUNDS + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if round_number >= 2:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def _step(model: nn.Module, inputs: Tensor, labels: Tensor, micro: int, options: dict[str, Any]) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=micro, **options)

    def step() -> None:
        accumulator.backward(inputs, labels)
        optimizer.step()
        optimizer.zero_grad()

    return step


def share_of_norms(model: nn.Module, inputs: Tensor, labels: Tensor, micro: int) -> float:
    """Return the share of a step's time that is spent in the norms of ``noise="first"``."""
    spent = [0.0]
    measured = attempt.squared_norm

    def timed(tensors: list[Tensor]) -> Tensor:
        started = time.perf_counter()
        try:
            return measured(tensors)
        finally:
            spent[0] += time.perf_counter() - started

    step = _step(model, inputs, labels, micro, {"noise": "first"})
    step()
    attempt.squared_norm = timed
    try:
        started = time.perf_counter()
        for _ in range(ROUNDS):
            step()
        return spent[0] / (time.perf_counter() - started)
    finally:
        attempt.squared_norm = measured


def main() -> None:
    """Print a table in Markdown."""
    torch.manual_seed(0)
    variants = {"native": {}, "keyed": {"seed": 0}, "noise first": {"noise": "first"}, "noise every": {"noise": "every"}}
    sys.stdout.write("| model | B = A x m | native step | keyed | noise, first | in its norms | noise, every |\n")
    sys.stdout.write("| --- | --- | ---: | ---: | ---: | ---: | ---: |\n")
    cases = [
        ("small_cnn", 28, 64, {}),
        ("small_cnn", 28, 16, {}),
        ("small_cnn", 28, 16, {"dropout": 0.2}),
        ("resnet18", 64, 16, {}),
        ("vit_b_16", 32, 16, {"dropout": 0.1}),
    ]
    for name, size, micro, options in cases:
        section = ModelConfig.model_validate({"name": name, **options})
        shape = InputShape(3, size, 10)
        model = build_network(section, shape).train()
        batch = 4 * micro
        inputs, labels = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
        found = measure(model, inputs, labels, micro, variants)
        base = found["native"]
        title = name + (", dropout" if options else "")
        keyed, first, every = (f"{found[key] / base - 1:+.1%}" for key in ("keyed", "noise first", "noise every"))
        norms = f"{share_of_norms(model, inputs, labels, micro):.2%}"
        sys.stdout.write(
            f"| {title} | {batch} = 4 x {micro} | {base * 1000:.0f} ms | {keyed} | {first} | {norms} | {every} |\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
