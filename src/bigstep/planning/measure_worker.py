"""Measure speed and memory of steps over micro-batch sizes: a separate process, which may die of a size that is too large."""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.hardware import HardwareConfig
from bigstep.config.model import ModelConfig
from bigstep.config.tracking import TrackingConfig
from bigstep.config.train import TrainConfig
from bigstep.errors import ConfigError, OutOfMemoryError
from bigstep.memory.measurement import peak_memory_bytes, resident_bytes, restart_peak_memory
from bigstep.models.model_files import build_classifier
from bigstep.planning.coarse import measure_coarsely
from bigstep.planning.measure import MeasuredData, MeasurementRequest
from bigstep.planning.throughput import SizeMeasurement, candidate_sizes, measure_until_flat
from bigstep.planning.training_memory import predict_training
from bigstep.runtime.device import choose_device, memory_format, set_threads
from bigstep.runtime.environment import guard_libraries
from bigstep.tasks.registry import task_of
from bigstep.tasks.targets import CLASSIFICATION, MULTILABEL
from bigstep.training.chosen_loss import build_loss
from bigstep.training.compilation import CompiledClassifier
from bigstep.training.compiled_check import compile_training
from bigstep.training.loop import set_training_mode, take_step
from bigstep.training.out_of_memory_guard import MemoryExhaustedError
from bigstep.training.state import TrainingState, build_state
from bigstep.training.transaction import apply_update

__all__ = ["build_measured_training", "made_up_batch", "main", "measured_step", "read_request"]

STEP_SECONDS = 0.4  # of each measured step, by its number of micro-batches
COARSE_SECONDS = 0.1  # the same for ``auto``, whose time is short
MOST = 8  # micro-batches in a measured step of ``auto``
ROUNDS = 7  # of a training that is compiled and one that is not


def main() -> int:
    """Read a request from standard input, and write a line of JSON for each size that is measured."""
    guard_libraries()
    request = read_request(json.load(sys.stdin))
    train: TrainConfig = request.section(TrainConfig)
    set_threads(request.section(HardwareConfig))
    with contextlib.suppress(OutOfMemoryError, MemoryExhaustedError):
        if request.compiled:
            _measure_compiled(request, train)
        elif request.sizes:
            _measure_coarsely(request, train)
        else:
            _climb(request, train)
    return 0


def read_request(content: dict[str, Any]) -> MeasurementRequest:
    """Return a request from what ``asdict`` made of it."""
    return MeasurementRequest(**{**content, "data": MeasuredData(**content["data"])})


def _climb(request: MeasurementRequest, train: TrainConfig) -> None:
    """Measure until larger sizes gain nothing; the first line holds what all sizes share."""
    base = resident_bytes()
    state = build_measured_training(request, train)
    effective = int(train.effective_batch_size or 1)
    images, labels = made_up_batch(request, effective)
    take_step(state, train, images[:2], labels[:2])
    update_seconds = _seconds(lambda: apply_update(state), 3)
    _write({"update_seconds": update_seconds})
    size = min(effective, 32)
    prediction = predict_training(
        state.classifier, train, request.data.shape.tensor_shape, BatchSizes(effective, size, -(-effective // size))
    )

    def measure(size: int) -> SizeMeasurement:
        state.accumulator.micro_batch_size = size
        restart_peak_memory(state.classifier.mean.device)
        first = _seconds(lambda: measured_step(state, train, images[:size], labels[:size], size), 1)
        count = min(max(1, int(STEP_SECONDS / first)) * size, effective)
        elapsed = _seconds(lambda: measured_step(state, train, images[:count], labels[:count], size), 3)
        rate = count / max(elapsed - update_seconds, 1e-9)
        return SizeMeasurement(size, rate, _grown(state, base), prediction.at(size))

    for rung in measure_until_flat(candidate_sizes(effective), measure):
        _write(asdict(rung))
        if time.time() > request.until:
            break


def _measure_coarsely(request: MeasurementRequest, train: TrainConfig) -> None:
    """Measure a few sizes in each memory format; what they need is known from the prediction, and not measured here."""
    effective = int(train.effective_batch_size or 1)
    images, labels = made_up_batch(request, min(effective, max(request.sizes[-1], MOST * request.sizes[0])))
    trainings: dict[str, tuple[TrainingState, float]] = {}

    def measure(memory_format: str, size: int) -> SizeMeasurement:
        if memory_format not in trainings:
            hardware = {**request.sections["hardware"], "memory_format": memory_format}
            state = build_measured_training(replace(request, sections={**request.sections, "hardware": hardware}), train)
            take_step(state, train, images[:2], labels[:2])
            trainings[memory_format] = state, _seconds(lambda: apply_update(state), 3)
        state, update_seconds = trainings[memory_format]
        state.accumulator.micro_batch_size = size
        first = _seconds(lambda: measured_step(state, train, images[:size], labels[:size], size), 1)
        count = min(max(2, min(MOST, int(COARSE_SECONDS / first))) * size, len(labels))
        elapsed = _seconds(
            lambda: measured_step(state, train, images[:count], labels[:count], size), 3 if first < COARSE_SECONDS else 1
        )
        return SizeMeasurement(size, count / max(elapsed - update_seconds, 1e-9), 0, 0)

    for name, rung in measure_coarsely(request.sizes, request.formats, request.num_samples, measure):
        _write({"memory_format": name, "update_seconds": trainings[name][1], "rung": asdict(rung)})


def _measure_compiled(request: MeasurementRequest, train: TrainConfig) -> None:
    """Measure one size compiled and not, in turns, so that another process slows both."""
    (size,), effective = request.sizes, int(train.effective_batch_size or 1)
    images, labels = made_up_batch(request, max(1, min(MOST, effective // size)) * size)
    plain, compiled = (build_measured_training(replace(request, compiled=item), train) for item in (False, True))
    started = time.perf_counter()
    try:
        for state in (plain, compiled):
            state.accumulator.micro_batch_size = size
        compile_training(compiled, train, images, labels)
    except ConfigError as error:
        _write({"refused": str(error)})
        return
    compile_seconds = time.perf_counter() - started
    for state in (plain, compiled):
        measured_step(state, train, images, labels, size)

    def seconds(state: TrainingState) -> float:
        return _seconds(lambda: measured_step(state, train, images, labels, size), 1)

    rounds = [(seconds(plain), seconds(compiled)) for _ in range(ROUNDS)]
    ratio = min(first for first, _ in rounds) / min(second for _, second in rounds)
    _write({"ratio": ratio, "compile_seconds": compile_seconds})


def made_up_batch(request: MeasurementRequest, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images, or zeros in place of other samples, and random targets."""
    generator = torch.Generator().manual_seed(0)
    data = request.data
    shape = (count, data.size, data.size, data.channels)  # as stored
    if data.sample_shape:  # zeros: no number of tokens is known
        images = torch.zeros(count, *data.sample_shape, dtype=getattr(torch, data.sample_dtype))
    else:
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    if data.task == CLASSIFICATION:
        return images, torch.randint(0, data.num_classes, (count,), generator=generator)
    labels = torch.randint(0, 2, (count, data.num_classes), generator=generator)
    return images, labels.byte() if data.task == MULTILABEL else labels.double()


def measured_step(state: TrainingState, train: TrainConfig, images: torch.Tensor, labels: torch.Tensor, size: int) -> None:
    """Attempt a step in micro-batches of ``size``.

    Raises:
        OutOfMemoryError: one of them does not fit.
    """
    take_step(state, train, images, labels)
    if state.accumulator.micro_batch_size != size:
        raise OutOfMemoryError(f"a micro-batch of {size} does not fit")


def _grown(state: TrainingState, base: int) -> int:
    device = state.classifier.mean.device
    return peak_memory_bytes(device) - (0 if device.type == "cuda" else base)


def build_measured_training(request: MeasurementRequest, train: TrainConfig) -> TrainingState:
    """Build a training with new weights, to be measured."""
    hardware: HardwareConfig = request.section(HardwareConfig)
    model: ModelConfig = request.section(ModelConfig)
    data = request.data
    is_float = data.sample_dtype.startswith("float")
    num_means = (data.sample_shape[0] if is_float else 0) if data.sample_shape else data.channels
    classifier = build_classifier(
        model,
        data.shape,
        mean=(0.5,) * num_means,
        std=(0.25,) * num_means,
        memory_format=memory_format(hardware),
        activation_checkpointing=hardware.activation_checkpointing,
    ).to(choose_device(hardware))
    effective = int(train.effective_batch_size or 1)
    count = data.num_classes
    task = task_of(data.task, [str(number) for number in range(count)], (0.0,) * count, (1.0,) * count)
    state = build_state(
        CompiledClassifier(classifier, request.sizes[0]) if request.compiled else classifier,
        train,
        BatchSizes(effective, effective, 1),
        num_samples=10 * effective,
        task=task,
        loss=build_loss(train, task, None, classifier.mean.device),
        model=model,
        noise=request.section(TrackingConfig).noise_scale,
    )
    set_training_mode(state)
    return state


def _seconds(function: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)


def _write(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
