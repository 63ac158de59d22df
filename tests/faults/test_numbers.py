"""Rows 13 to 17, 37 and 40: numbers that are not finite, memory that runs out, a worker that dies."""

import os
import random
import signal
import time
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.model import ModelConfig
from bigstep.config.train import TrainConfig
from bigstep.data.store import Store
from bigstep.errors import DivergedError
from bigstep.models.building import InputShape
from bigstep.models.model_files import build_classifier
from bigstep.training.loop import set_training_mode, take_step, train_epochs
from bigstep.training.snapshot import is_finite
from bigstep.training.state import TrainingState, build_state
from bigstep.training.training_batches import TrainingBatches
from building import ten_classes
from faults.project import Project, kill_group

SIZE, MICRO = 64, 16


def _begin(store: Store, **train: Any) -> tuple[TrainingState, TrainConfig]:
    section = TrainConfig.model_validate({"epochs": 2, "effective_batch_size": SIZE, "augmentation": "none", **train})
    model = ModelConfig(width=4)
    torch.manual_seed(0)
    shape = InputShape(1, 8, 10)
    classifier = build_classifier(model, shape, mean=store.manifest.mean, std=store.manifest.std)
    options: Any = {"num_samples": 400, **ten_classes(section), "model": model}
    state = build_state(classifier, section, BatchSizes(SIZE, MICRO, SIZE // MICRO), **options)
    set_training_mode(state)
    return state, section


class _Spoil:
    """Spoils one row of the outputs of the micro-batch ``at`` of each step in ``steps``."""

    def __init__(self, state: TrainingState, steps: range, at: int, value: float) -> None:
        self.state, self.steps, self.at, self.value = state, steps, at, value
        self.fired, self.step, self.micro = 0, -1, 0
        state.classifier.network.register_forward_hook(self)

    def __call__(self, _module: nn.Module, _inputs: Any, outputs: Tensor) -> Tensor | None:
        if not self.state.classifier.training:
            return None
        self.micro = self.micro + 1 if self.step == self.state.step else 0
        self.step = self.state.step
        if self.step not in self.steps or self.micro != self.at:
            return None
        self.fired += 1
        spoiled = outputs.clone()
        spoiled[0, 0] = outputs[0, 0] * self.value
        return spoiled


def _bits(state: TrainingState) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in state.classifier.parameters()])


def _steps(state: TrainingState, train: TrainConfig, store: Store, count: int) -> list[Any]:
    batches = TrainingBatches(store, train, SIZE, 0).epoch(0)
    return [take_step(state, train, *next(batches)) for _ in range(count)]


@pytest.mark.fault("13, 14", "NaN or infinity in one sample, in the first, a middle or the last micro-batch", rounds=12)
def test_a_step_that_is_not_finite_is_dropped_whole(round_number: int, digits: Store) -> None:
    value = [float("nan"), float("inf"), -float("inf")][round_number % 3]
    found = []
    for at in (0, 1, 3):
        state, train = _begin(digits)
        spoil = _Spoil(state, range(2, 3), at, value)
        records = _steps(state, train, digits, 6)
        assert spoil.fired == 1
        assert [record.applied for record in records] == [True, True, False, True, True, True]
        assert (state.num_dropped, state.num_updates, state.num_bad_in_a_row) == (1, 5, 0)
        assert records[3].learning_rate == records[2].learning_rate  # the schedule did not move
        found.append(_bits(state))
    assert torch.isfinite(found[0]).all()
    assert all(torch.equal(found[0], other) for other in found[1:])
    without, train = _begin(digits)
    batches = list(TrainingBatches(digits, train, SIZE, 0).epoch(0))[:6]
    for number, batch in enumerate(batches):
        if number != 2:
            take_step(without, train, *batch)
    assert torch.equal(_bits(without), found[0]), "the dropped step left a trace"


@pytest.mark.fault("15a", "NaN in every step", rounds=5)
def test_after_too_many_bad_steps_it_stops(round_number: int, digits: Store) -> None:
    state, train = _begin(digits, max_nonfinite_steps=3 + round_number)
    _Spoil(state, range(4, 1000), 1, float("nan"))
    with pytest.raises(DivergedError, match="expected a finite gradient at least every") as caught:
        list(train_epochs(state, train, digits, TrainingBatches(digits, train, SIZE, 0)))
    assert caught.value.exit_code == 3
    assert state.step == 4 + 3 + round_number
    assert is_finite(state)


@pytest.mark.slow
@pytest.mark.fault(15, "a learning rate of 1e9", rounds=3, rare=True)
def test_a_diverged_run_has_its_own_exit_code_and_no_bad_state(round_number: int, project: Project) -> None:
    project.set(
        "train.learning_rate=1.0e+9", "train.max_nonfinite_steps=4", f"train.seed={round_number}", "train.optimizer=sgd"
    )
    project.set("train.clip_norm=null", "model.norm=none", "hardware.checkpoint_interval=0s")
    output = project.bigstep("train", code=3)
    assert "train.max_nonfinite_steps" in output
    assert "Traceback" not in output
    (run,) = project.runs()
    assert run.info.status == "FAILED"
    assert all(abs(value) < 1e300 for _, _, value in project.history(run.info.run_id))
    for folder in project.checkpoints():
        import safetensors.torch

        tensors = safetensors.torch.load_file(folder / "tensors.safetensors")
        assert all(torch.isfinite(tensor).all() for name, tensor in tensors.items() if name.startswith("model."))


@pytest.mark.fault(16, "the outputs of one step a million times too large", rounds=5)
def test_a_spike_moves_no_further_than_a_clipped_step(round_number: int, digits: Store) -> None:
    state, train = _begin(digits, optimizer="sgd", momentum=0.0, learning_rate=0.1, clip_norm=1.0, schedule="constant")
    spoil = _Spoil(state, range(2, 3), round_number % 4, 1e6)
    _steps(state, train, digits, 2)
    before = _bits(state)
    batch = list(TrainingBatches(digits, train, SIZE, 0).epoch(0))[2]
    record = take_step(state, train, *batch)
    assert spoil.fired == 1
    assert record.applied
    assert train.clip_norm is not None
    assert record.gradient_norm > 100 * train.clip_norm
    decay = 0.1 * train.weight_decay * float(before.norm())
    assert float((_bits(state) - before).norm()) <= 0.1 * 1.0 * 1.001 + decay


@pytest.mark.fault(17, "out of memory above a micro-batch size", rounds=5)
def test_the_micro_batch_is_halved_once_and_stays_so(round_number: int, digits: Store) -> None:
    state, train = _begin(digits)
    failures = []

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > 8 and state.classifier.training:
            failures.append(state.step)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    state.classifier.network.register_forward_pre_hook(hook)
    records = _steps(state, train, digits, 5 + round_number % 2)
    assert failures == [0]
    assert all(record.applied and record.micro_batch_size == 8 for record in records)


@pytest.mark.fault(37, "a data set divisible by neither the micro-batch nor the effective batch", rounds=10)
def test_every_split_gives_the_gradient_of_the_whole(round_number: int, digits: Store) -> None:
    draw = random.Random(round_number)
    count, gradients = draw.randint(17, SIZE), []
    for micro in (count, draw.randint(1, count), 7):
        state, train = _begin(digits, precision="float64", clip_norm=None)
        state.accumulator.micro_batch_size = micro
        images, labels = next(TrainingBatches(digits, train, SIZE, 0).epoch(0))
        state.accumulator.backward(images[:count], labels[:count], step=0)
        gradients.append(torch.cat([p.grad.reshape(-1) for p in state.classifier.parameters() if p.grad is not None]))
    for other in gradients[1:]:
        assert float((other - gradients[0]).norm() / gradients[0].norm()) <= 1e-12


@pytest.mark.slow
@pytest.mark.fault(40, "SIGKILL of a process that transforms images", rounds=5, rare=True)
def test_a_dead_worker_ends_the_stage_and_it_goes_on(round_number: int, project: Project) -> None:
    project.set("train.augmentation=[RandomHorizontalFlip]", "hardware.num_workers=1", f"train.seed={round_number}")
    project.set("train.epochs=30", "hardware.checkpoint_interval=0.5s")
    process = project.start("dvc", "repro", "train")
    project.until(process, lambda line: line.startswith("epoch 2/"))
    trainer = next(item for item in psutil.process_iter() if project._is_mine(item) and "train.py" in str(item.cmdline()[1:2]))
    workers = [child for child in trainer.children() if "resource_tracker" not in str(child.cmdline())]
    assert workers
    os.kill(workers[0].pid, signal.SIGKILL)
    started = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - started < 25, "the stage hung"
    assert process.returncode
    assert "DataLoader worker" in output
    assert project.runs()[-1].info.status == "FAILED"
    again = project.start("dvc", "repro", "train")
    project.until(again, lambda line: line.startswith("resuming from the checkpoint"))
    kill_group(again)
    project.bigstep("doctor", "--fix", code=None)
