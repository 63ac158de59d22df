"""A whole training on a device: the same in every cut, and resumed to the bit.

It needs what the pipeline reads its parameters with; without that conftest.py leaves this file out.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.model import ModelConfig
from bigstep.config.train import TrainConfig
from bigstep.models.building import InputShape
from bigstep.models.model_files import build_classifier
from bigstep.step.losses import CrossEntropy
from bigstep.tasks.classification import Classification
from bigstep.training.loop import set_training_mode, take_step
from bigstep.training.snapshot import Snapshot, restore_snapshot, take_snapshot
from bigstep.training.state import TrainingState, build_state

Record = Callable[[str, object], None]
EFFECTIVE = 24


def _state(micro: int, device: torch.device, **train: Any) -> tuple[TrainingState, TrainConfig]:
    section = TrainConfig.model_validate({"effective_batch_size": EFFECTIVE, "precision": "float64", "ema_decay": 0.9, **train})
    model = ModelConfig(width=4, dropout=0.3)
    torch.manual_seed(0)
    classifier = build_classifier(model, InputShape(3, 8, 5), mean=(0.5,) * 3, std=(0.25,) * 3).to(device)
    sizes = BatchSizes(EFFECTIVE, micro, -(-EFFECTIVE // micro))
    task, loss = Classification(tuple("abcde")), CrossEntropy(label_smoothing=section.label_smoothing)
    options = {"num_samples": 10 * EFFECTIVE, "task": task, "loss": loss, "model": model, "noise": "first"}
    state = build_state(classifier, section, sizes, **options)
    set_training_mode(state)
    return state, section


def _run(state: TrainingState, section: TrainConfig, steps: range) -> list[float]:
    found = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randint(0, 256, (EFFECTIVE, 8, 8, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
        labels = torch.randint(0, 5, (EFFECTIVE,), generator=generator)
        found.append(float(take_step(state, section, images, labels, measure_memory=step == 0).loss))
    return found


def _weights(state: TrainingState) -> Tensor:
    return torch.cat([parameter.detach().flatten().cpu() for parameter in state.classifier.parameters()])


def test_a_training_does_not_depend_on_the_cut(device: torch.device, record_property: Record) -> None:
    found = []
    for micro in (EFFECTIVE, 7, 5):
        state, section = _state(micro, device, mixup_alpha=0.4)
        losses = _run(state, section, range(20))
        assert state.peak_bytes
        found.append((_weights(state), losses))
        state.guard.close()
    error = max(float((weights - found[0][0]).norm() / found[0][0].norm()) for weights, _ in found[1:])
    record_property("largest difference of weights after 20 steps", f"{error:.1e}")
    assert error <= 1e-9
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-9)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_training_is_resumed_to_the_bit(precision: str, device: torch.device) -> None:
    torch.use_deterministic_algorithms(device.type == "cuda", warn_only=True)
    try:
        whole, section = _state(7, device, precision=precision)
        _run(whole, section, range(5))
        kept = take_snapshot(whole, micro_batch_size=7)
        kept = Snapshot(kept.step, {name: tensor.clone() for name, tensor in kept.tensors.items()}, kept.values)
        _run(whole, section, range(5, 9))
        resumed, _ = _state(7, device, precision=precision)
        restore_snapshot(resumed, kept, micro_batch_size=7)
        _run(resumed, section, range(5, 9))
        assert torch.equal(_weights(whole), _weights(resumed))
    finally:
        torch.use_deterministic_algorithms(False)
