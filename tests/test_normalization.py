import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bigstep import Accumulator, losses
from bigstep.step.batch_norm import DeferredStatistics, find_batch_layers, freeze_statistics
from bigstep.step.recalibration import recalibrate
from oracles import full_batch_gradients, relative_error

MOMENTUM = 0.1
pytestmark = pytest.mark.filterwarnings("ignore:gradients depend on micro_batch_size:bigstep.errors.ExactnessWarning")


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        nn.BatchNorm2d(2, momentum=MOMENTUM),
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    return nn.Sequential(*layers).double()


def _batches(count: int = 20, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    shift = torch.randn(count, 1, 2, 1, 1, generator=generator).double() * 2
    images = torch.randn(count, size, 2, 6, 6, generator=generator).double() + shift
    return list(zip(images, torch.randint(0, 3, (count, size), generator=generator), strict=True))


def _statistics(model: nn.Module, layer: int) -> tuple[Tensor, Tensor]:
    norm = model[layer]  # type: ignore[index]
    return norm.running_mean.clone(), norm.running_var.clone()


def _run(micro: int, mode: str, batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    model = _model()
    statistics = DeferredStatistics(model) if mode == "corrected" else None
    if mode == "frozen":
        freeze_statistics(model)
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=micro, statistics=statistics)
    for inputs, labels in batches:
        accumulator.backward(inputs, labels)
        if statistics is not None:
            statistics.commit()
    return model


@pytest.mark.parametrize("micro", [32, 16, 7])
def test_bug_20_running_statistics_move_as_in_one_pass_over_the_whole_batch(micro: int) -> None:
    batches = _batches()
    whole = _run(64, "plain", batches)
    corrected, plain = _run(micro, "corrected", batches), _run(micro, "plain", batches)
    for found, expected in zip(_statistics(corrected, 0), _statistics(whole, 0), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    for found, expected in zip(_statistics(corrected, 2), _statistics(whole, 2), strict=True):
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)  # its input was normalised by micro-batch
    drift = float((_statistics(plain, 0)[0] - _statistics(whole, 0)[0]).norm())
    assert drift > 0.1, "plain statistics do drift: there is something to correct"
    assert int(corrected[0].num_batches_tracked) == int(whole[0].num_batches_tracked) == 20  # type: ignore[index]


def test_a_cumulative_average_is_one_over_the_steps() -> None:
    batches = _batches(5)
    models = []
    for micro, deferred in ((64, False), (16, True)):
        model = _model()
        model[0].momentum = None  # type: ignore[assignment]
        statistics = DeferredStatistics(model) if deferred else None
        accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=micro, statistics=statistics)
        for inputs, labels in batches:
            accumulator.backward(inputs, labels)
            if statistics is not None:
                statistics.commit()
        models.append(model)
    torch.testing.assert_close(_statistics(models[0], 0), _statistics(models[1], 0))
    assert models[1][0].momentum is None


def test_a_step_that_is_discarded_leaves_no_trace() -> None:
    model = _model()
    statistics = DeferredStatistics(model)
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=16, statistics=statistics)
    before = copy.deepcopy(model.state_dict())
    accumulator.backward(*_batches(1)[0])
    statistics.discard()
    statistics.commit()
    assert all((before[name] == tensor).all() for name, tensor in model.state_dict().items())
    assert model[0].momentum == MOMENTUM


def test_an_activation_that_is_not_finite_does_not_stay_in_the_running_statistics() -> None:
    model = _model()
    statistics = DeferredStatistics(model)
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=16, statistics=statistics, self_check=False)
    before = copy.deepcopy(model.state_dict())
    inputs, labels = _batches(1)[0]
    inputs = inputs.clone()
    inputs.view(-1)[0] = math.inf
    accumulator.backward(inputs, labels)
    statistics.discard()
    assert all((before[name] == tensor).all() for name, tensor in model.state_dict().items())


def test_recomputation_is_not_counted_twice() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = _model()

        def forward(self, inputs: Tensor) -> Tensor:
            return checkpoint(self.body, inputs, use_reentrant=False)  # type: ignore[no-any-return]

    inputs, labels = _batches(1)[0]
    models: list[Any] = [_model(), Checkpointed()]
    for model in models:
        statistics = DeferredStatistics(model)
        Accumulator(model, losses.CrossEntropy(), micro_batch_size=16, statistics=statistics).backward(inputs, labels)
        statistics.commit()
    torch.testing.assert_close(_statistics(models[0], 0), _statistics(models[1].body, 0))
    torch.testing.assert_close(_statistics(models[0], 2), _statistics(models[1].body, 2))


@pytest.mark.parametrize("micro", [32, 7, 1])
def test_frozen_statistics_make_the_gradient_exact(micro: int) -> None:
    model = _model()
    freeze_statistics(model)
    inputs, labels = _batches(1)[0]
    expected, _ = full_batch_gradients(model, F.cross_entropy, inputs, labels)
    before = _statistics(model, 0)
    Accumulator(model, losses.CrossEntropy(), micro_batch_size=micro).backward(inputs, labels)
    assert relative_error(model, expected) <= 1e-12
    torch.testing.assert_close(_statistics(model, 0), before, rtol=0, atol=0)


def test_recalibration_does_not_depend_on_the_cut_in_any_layer() -> None:
    images = torch.cat([inputs for inputs, _ in _batches(4)])
    found = []
    for size in (256, 64, 7):
        model = _model()
        assert recalibrate(model, lambda size=size: images.split(size), model) == 2
        found.append((_statistics(model, 0), _statistics(model, 2)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found[0][0][0], images.mean(dim=(0, 2, 3)))


def test_layers_that_look_across_samples_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True)))
    found = find_batch_layers(model)
    assert [(layer.name, layer.kind) for layer in found] == [("1", "BatchNorm1d"), ("2.0", "InstanceNorm1d")]
    freeze_statistics(model)
    assert [layer.name for layer in find_batch_layers(model)] == ["2.0"]
    assert find_batch_layers(nn.Sequential(nn.GroupNorm(1, 2), nn.LayerNorm(2))) == ()


def test_a_failure_half_way_leaves_statistics_random_state_and_gradients_as_they_were() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    calls = []

    def loss(outputs: Tensor, _targets: Tensor) -> Tensor:
        calls.append(len(outputs))
        if len(calls) == 3:
            raise ZeroDivisionError
        return outputs.square().sum(dim=1)

    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        Accumulator(model, loss, micro_batch_size=4).backward(torch.randn(16, 3, generator=torch.Generator()), torch.zeros(16))
    assert len(calls) == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_that_fails_after_statistics_were_pooled_leaves_none_of_them() -> None:
    layer, inputs = nn.BatchNorm1d(3), torch.randn(8, 3)
    statistics = DeferredStatistics(layer)

    def step() -> None:
        with statistics.hold():
            with statistics.collect():
                layer(inputs)
            statistics.pool(lambda values: values, torch.device("cpu"))  # as of a process that is alone
            raise MemoryError("for the sum of gradients")

    with pytest.raises(MemoryError):
        step()
    statistics.commit()
    assert torch.equal(layer.running_mean, torch.zeros(3))
