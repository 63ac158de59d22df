"""What `hardware.compile` gains: compiled and usual steps on one thread, in interleaved rounds of one run.

Seconds are those of the processor, which say more than the clock where others work beside: on one thread both are the same.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from auto import Case, images_and_labels
from bigstep.config.params import parse_params
from bigstep.planning.measure import MeasuredData, MeasurementRequest, plain_sections
from bigstep.planning.measure_worker import build_measured_training
from bigstep.runtime.environment import keep_compiled_code
from bigstep.training.compiled_check import compile_training
from bigstep.training.loop import take_step

CASES = (Case("small_cnn", 1, 28, 32, 2), Case("resnet18", 3, 64, 32, 1), Case("mobilenet_v3_small", 3, 128, 16, 2))
ROUNDS = 5


def main() -> None:
    """Print a row of Markdown for each case; arguments are names of models, without any all of them."""
    print("| model | slicing | compiled, images/s | usual, images/s | ratio (range) | compiling, s | from the cache, s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        keep_compiled_code(Path(folder))
        for case in CASES:
            if not sys.argv[1:] or case.name in sys.argv[1:]:
                print(compare(case), flush=True)


def compare(case: Case) -> str:
    """Return the row of one case."""
    params = parse_params({"model": {"name": case.name}, "train": {"effective_batch_size": case.effective}})
    images, labels = images_and_labels(case)
    sections = plain_sections(params, {"hardware": {"memory_format": "contiguous"}})
    request = MeasurementRequest(sections, MeasuredData(case.channels, case.size, 10), until=0.0, sizes=(case.micro,))
    steps, compiling = [], []
    for compiled in (True, True, False):  # the second finds the code of the first
        state = build_measured_training(replace(request, compiled=compiled), params.train)
        state.accumulator.micro_batch_size = case.micro
        if compiled:
            started = time.perf_counter()
            compile_training(state, params.train, images, labels)
            compiling.append(time.perf_counter() - started)
        steps.append(lambda state=state: take_step(state, params.train, images, labels))
    for step in steps[1:]:
        step()
    rates = [(rate(steps[1], case.effective), rate(steps[2], case.effective)) for _ in range(ROUNDS)]
    ratios = sorted(first / second for first, second in rates)
    first, second = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    slicing = f"{case.size} px, {case.micro} x {case.steps}"
    return f"| {case.name} | {slicing} | {first:,.0f} | {second:,.0f} | {ratio} | {compiling[0]:.0f} | {compiling[1]:.1f} |"


def rate(step: Callable[[], object], count: int) -> float:
    """Return images per second of the processor, over steps that take a second together, and of two at least."""
    started, done = time.process_time(), 0
    while time.process_time() - started < 1.0 or done < 2 * count:
        step()
        done += count
    return done / (time.process_time() - started)


if __name__ == "__main__":
    main()
