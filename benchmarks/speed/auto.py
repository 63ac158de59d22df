"""What `auto` chooses, against the tutorial's loop: images per second of both, in interleaved rounds of one run.

Each loop has a process of its own, so that the tutorial's has what a script has: a training of bigstep keeps its heap.
bigstep's images have the channels of a pixel side by side, as its store has; the tutorial's are planes, as ToTensor makes them.
"""

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from bigstep.config.params import Params, parse_params
from bigstep.models.building import InputShape
from bigstep.models.classifier import Classifier
from bigstep.models.model_files import build_classifier
from bigstep.planning.coarse import coarse_sizes
from bigstep.planning.measure import MeasuredData, MeasurementRequest, measure_formats
from bigstep.planning.measure_worker import build_measured_training
from bigstep.planning.throughput import choose_curve
from bigstep.runtime.device import MEMORY_FORMATS, choose_device
from bigstep.training.loop import take_step
from bigstep.training.optimization import build_optimizer
from own_process import OwnProcess

ROUNDS = 5
ROUND_SECONDS = 1.0
NUM_SAMPLES = 100_000  # of the training whose time bounds the measuring


@dataclass(frozen=True)
class Case:
    """A model, its images, and the slicing that a tutorial would take."""

    name: str
    channels: int
    size: int
    micro: int
    steps: int

    @property
    def effective(self) -> int:
        """Samples of an optimizer step."""
        return self.micro * self.steps

    @property
    def params(self) -> Params:
        """The parameters of the training."""
        return parse_params({"model": {"name": self.name}, "train": {"effective_batch_size": self.effective}})


CASES = (Case("small_cnn", 1, 28, 16, 4), Case("resnet18", 3, 64, 8, 4), Case("mobilenet_v3_small", 3, 128, 8, 4))


def main() -> None:
    """Print a line for each case; arguments are names of models to measure, without any all of them."""
    for case in CASES:
        if not sys.argv[1:] or case.name in sys.argv[1:]:
            sys.stdout.write(f"{_compare(case)}\n")
            sys.stdout.flush()


def _compare(case: Case) -> str:
    params = case.params
    started = time.perf_counter()
    sizes = coarse_sizes(case.effective)
    curves = measure_formats(params, MeasuredData(case.channels, case.size, 10), sizes, NUM_SAMPLES)
    found = choose_curve(curves, case.effective, None)
    assert found is not None
    seconds, (curve, choice) = time.perf_counter() - started, found
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        best = pool.submit(best_tutorial, case).result()
    loops = (
        OwnProcess(partial(our_step, is_stored=True), case, choice.micro_batch_size, curve.memory_format),
        OwnProcess(tutorial_step, case, case.micro, "contiguous"),
        OwnProcess(tutorial_step, case, *best),
    )
    counts = [max(2, round(ROUND_SECONDS / (loop.seconds(3) / 3))) for loop in loops]
    rounds = [
        [count * case.effective / loop.seconds(count) for loop, count in zip(loops, counts, strict=True)] for _ in range(ROUNDS)
    ]
    for loop in loops:
        loop.close()
    speeds = [statistics.median(column) for column in zip(*rounds, strict=True)]
    return (
        f"{case.name}, {case.size} px: auto {choice.micro_batch_size} x {choice.accumulation_steps}, {curve.memory_format} "
        f"(chosen in {seconds:.1f} s) {speeds[0]:,.0f} images/s, tutorial {case.micro} x {case.steps} {speeds[1]:,.0f}; "
        f"ratio {_spread([one / other for one, other, _ in rounds])}; tutorial at its best, {best[0]} x "
        f"{case.effective // best[0]}, {best[1]}: {speeds[2]:,.0f}; ratio {_spread([one / other for one, _, other in rounds])}"
    )


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def best_tutorial(case: Case) -> tuple[int, str]:
    """Return the micro-batch size and the memory format in which the tutorial's loop is fastest, by trying them all."""
    sizes = [size for size in range(4, case.effective + 1) if case.effective % size == 0]
    found = {}
    for memory_format in MEMORY_FORMATS:
        for size in sizes:
            step = tutorial_step(case, size, memory_format)
            step()
            found[size, memory_format] = rate(step, case)
    return max(found, key=lambda key: found[key])


def images_and_labels(case: Case) -> tuple[Tensor, Tensor]:
    """Return an effective batch of random images and labels."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.effective, case.channels, case.size, case.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (case.effective,), generator=generator)


def as_stored(images: Tensor) -> Tensor:
    """Return the images as a store has them; of one channel both layouts are the same bytes, and torch goes by the strides."""
    _, channels, height, width = images.shape
    stored = images.permute(0, 2, 3, 1).contiguous().flatten()
    return stored.as_strided(images.shape, (height * width * channels, 1, width * channels, channels))


def our_step(case: Case, micro: int, memory_format: str, *, is_stored: bool = False) -> Callable[[], object]:
    """Return a step of a training; ``is_stored``: whose images lie as in a store."""
    images, labels = images_and_labels(case)
    images = as_stored(images) if is_stored else images
    state = build_measured_training(_request(case.params, case, memory_format), case.params.train)
    state.accumulator.micro_batch_size = micro
    return lambda: take_step(state, case.params.train, images, labels)


def _request(params: Params, case: Case, memory_format: str) -> MeasurementRequest:
    sections = {key: getattr(params, key).model_dump(mode="json") for key in ("model", "train", "hardware", "tracking")}
    sections["hardware"]["memory_format"] = memory_format
    return MeasurementRequest(sections, MeasuredData(case.channels, case.size, 10), until=0.0)


def model_and_optimizer(case: Case, memory_format: str = "contiguous") -> tuple[Classifier, Optimizer]:
    """Return a new model, with its normalisation of stored images, and the optimizer of the training."""
    shape, middle = InputShape(case.channels, case.size, 10), (0.5,) * case.channels
    layout = MEMORY_FORMATS[memory_format]
    model = build_classifier(case.params.model, shape, mean=middle, std=middle, memory_format=layout)
    model.to(choose_device(case.params.hardware)).train()
    return model, build_optimizer(case.params.train, model.parameters())


def tutorial_step(case: Case, micro: int, memory_format: str, *, clipped: bool = True) -> Callable[[], object]:
    """Return a step of the usual loop, made right: the sum of the micro-batch's losses over the size of the whole batch."""
    params, (images, labels) = case.params, images_and_labels(case)
    model, optimizer = model_and_optimizer(case, memory_format)

    def step() -> None:
        for part, targets in zip(images.split(micro), labels.split(micro), strict=True):
            loss = F.cross_entropy(model(part), targets, label_smoothing=params.train.label_smoothing, reduction="sum")
            (loss / case.effective).backward()
        if clipped:
            clip_grad_norm_(model.parameters(), params.train.clip_norm or 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def rate(step: Callable[[], object], case: Case, seconds: float = ROUND_SECONDS) -> float:
    """Return images per second of steps that take ``seconds``, and of two at least."""
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or count < 2:
        step()
        count += 1
    return count * case.effective / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
