"""The plan's choice against the best power of two found by hand: throughput ratios of interleaved pairs."""

import statistics
import sys
import time

import torch

from bigstep.config.params import Params, parse_params
from bigstep.planning.measure import MeasuredData, MeasurementRequest, climb_configured
from bigstep.planning.measure_worker import build_measured_training
from bigstep.planning.throughput import candidate_sizes, choose
from bigstep.training.loop import take_step
from bigstep.training.state import TrainingState

PAIRS = 5
CASES = (("small_cnn", 28, 256), ("resnet18", 32, 64))


def main() -> None:
    """Print a line for each model."""
    for name, size, effective in CASES:
        content = {"model": {"name": name}, "train": {"effective_batch_size": effective}}
        params = parse_params(content)
        measured = climb_configured(params, channels=1, size=size, num_classes=10, seconds=30)
        choice = choose(measured.rungs, effective, None)
        assert choice is not None
        state, images, labels = _begin(params, size, effective)
        by_hand = max(candidate_sizes(effective), key=lambda m: _rate(state, params, images, labels, m))
        ratios = []
        for _ in range(PAIRS):
            pair = [_rate(state, params, images, labels, m) for m in (choice.micro_batch_size, by_hand)]
            ratios.append(pair[0] / pair[1])
        sys.stdout.write(
            f"{name}, {effective} images of {size} pixels: plan {choice.micro_batch_size}, by hand {by_hand}, "
            f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})\n"
        )
        sys.stdout.flush()


def _begin(params: Params, size: int, effective: int) -> tuple[TrainingState, torch.Tensor, torch.Tensor]:
    sections = {key: getattr(params, key).model_dump(mode="json") for key in ("model", "train", "hardware", "tracking")}
    state = build_measured_training(MeasurementRequest(sections, MeasuredData(1, size, 10), until=0.0), params.train)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (effective, 1, size, size), dtype=torch.uint8, generator=generator)
    return state, images, torch.randint(0, 10, (effective,), generator=generator)


def _rate(state: TrainingState, params: Params, images: torch.Tensor, labels: torch.Tensor, micro: int) -> float:
    state.accumulator.micro_batch_size = micro
    take_step(state, params.train, images, labels)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 1.5 or count < 2:
        take_step(state, params.train, images, labels)
        count += 1
    return count * len(labels) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
