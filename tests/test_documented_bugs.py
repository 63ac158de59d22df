"""Known bugs of other libraries: each test would fail with its bug. That of running statistics is in test_normalization.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigstep import Accumulator, losses
from bigstep.data.mixing import mix_batch
from bigstep.data.ordered_batches import ordered_batches
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.memory.measurement import peak_growth
from bigstep.training.loop import take_step
from bigstep.training.records import EpochRecord, StepRecord
from bigstep.training.validation import validate
from building import build_digits_training, first_batch, flat_weights, quick_train, train_all
from conftest import random_images
from oracles import full_batch_gradients, relative_error

CLASSES = 4
WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 5.0]).double()
SOFT = torch.rand(24, CLASSES, generator=torch.Generator().manual_seed(0)).double().softmax(1)
LABELS = torch.randint(0, CLASSES, (24,), generator=torch.Generator().manual_seed(1))
IGNORING = torch.where(torch.rand(24, generator=torch.Generator().manual_seed(5)) < 0.4, -100, LABELS)


def _model(outputs: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, outputs)).double()


def _inputs(count: int = 24) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(2)).double()


def _distill(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.kl_div((outputs / 2).log_softmax(1), targets, reduction="none").sum(1)


Mean = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, tuple[Any, Mean, Tensor]] = {
    "cross entropy": (losses.CrossEntropy(), F.cross_entropy, LABELS),
    "smoothed": (losses.CrossEntropy(label_smoothing=0.1), lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1), LABELS),
    "soft targets": (losses.CrossEntropy(), F.cross_entropy, SOFT),
    "weighted": (losses.CrossEntropy(WEIGHTS), lambda o, t: F.cross_entropy(o, t, weight=WEIGHTS), LABELS),
    "ignoring": (losses.CrossEntropy(), F.cross_entropy, IGNORING),
    "multi-label": (losses.BinaryCrossEntropy(), F.binary_cross_entropy_with_logits, (SOFT > 0.25).double()),
    "regression": (losses.MeanSquaredError(), F.mse_loss, SOFT),
    "distillation": (_distill, lambda o, t: _distill(o, t).mean(), SOFT),
}


def _error(loss: Any, mean: Mean, targets: Tensor, micro: int) -> float:
    model, inputs = _model(), _inputs(len(targets))
    expected, value = full_batch_gradients(model, mean, inputs, targets)
    result = Accumulator(model, loss, micro_batch_size=micro).backward(inputs, targets)
    torch.testing.assert_close(result.loss, value, rtol=1e-12, atol=0)
    return relative_error(model, expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 24])
@pytest.mark.parametrize("name", LOSSES)
def test_bug_1_every_kind_of_loss_is_divided_once_for_any_number_of_steps(name: str, steps: int) -> None:
    loss, mean, targets = LOSSES[name]
    assert _error(loss, mean, targets, 24 // steps) <= 1e-12


@pytest.mark.parametrize("soft", [False, True])
def test_bug_2_label_smoothing_is_not_multiplied_by_the_steps(soft: bool) -> None:
    loss = losses.CrossEntropy(label_smoothing=0.3)
    assert _error(loss, lambda o, t: F.cross_entropy(o, t, label_smoothing=0.3), SOFT if soft else LABELS, 3) <= 1e-12


@pytest.mark.parametrize("left", [1, 2, 3])
def test_bug_3_the_ragged_last_batch_is_divided_by_what_it_holds(left: int, digits: Store) -> None:
    """1,222 images in effective batches of 4 micro-batches: the last holds fewer, and its gradient is its own mean."""
    size = next(size for size in range(32, 1222) if -(-(1222 % size) // 8) == left and size % 8 == 0)
    train = quick_train(effective_batch_size=size, epochs=1, precision="float64", augmentation="none", label_smoothing=0.0)
    state, batch = build_digits_training(digits, train, 8)
    steps = [record for record in train_all(state, train, batch, digits) if isinstance(record, StepRecord)]
    assert steps[-1].num_samples == 1222 % size
    assert _error(losses.CrossEntropy(), F.cross_entropy, LABELS[: 20 + left], 8) <= 1e-12


@pytest.mark.parametrize(("total", "micro"), [(7, 4), (13, 5), (24, 23), (24, 5)])
def test_bug_4_a_smaller_micro_batch_counts_by_its_samples(total: int, micro: int) -> None:
    assert _error(losses.CrossEntropy(), F.cross_entropy, LABELS[:total], micro) <= 1e-12


def test_bug_5_average_decay_and_clipping_happen_once_a_step(digits: Store) -> None:
    train = quick_train(ema_decay=0.5, clip_norm=0.01, weight_decay=0.5, optimizer="sgd", precision="float64", epochs=1)
    results = []
    for micro in (64, 8):
        state, _ = build_digits_training(digits, train, micro)
        take_step(state, train, *first_batch(digits))
        take_step(state, train, *first_batch(digits))
        averaged = torch.cat([p.detach().flatten() for p in state.evaluated_model.parameters()])
        results.append((averaged, flat_weights(state)))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-14)


def test_bug_13_the_logged_loss_is_the_weighted_mean_over_the_batch_the_last_one_too(digits: Store) -> None:
    train = quick_train(effective_batch_size=100, epochs=1, precision="float64", augmentation="none", learning_rate=1e-30)
    state, batch = build_digits_training(digits, train, 16)
    records = list(train_all(state, train, batch, digits))
    images, labels = next(ordered_batches(digits, Split.TRAIN, 2000))
    with torch.no_grad():
        expected = F.cross_entropy(state.classifier(images), labels, label_smoothing=0.05)
    assert isinstance(records[-1], EpochRecord)
    assert records[-1].train_loss == pytest.approx(float(expected), rel=1e-9)
    assert [record.step for record in records[:-1]] == list(range(13))


def test_bug_14_nothing_is_left_over_for_the_next_epoch(digits: Store) -> None:
    train = quick_train(effective_batch_size=100, epochs=2)
    state, batch = build_digits_training(digits, train, 16)
    for record in train_all(state, train, batch, digits):
        assert all(p.grad is None for p in state.classifier.parameters())
        if isinstance(record, EpochRecord):
            assert record.num_updates == 13 * (record.epoch + 1)
            assert state.step == 13 * (record.epoch + 1)


def test_bug_15_unscaled_once_then_clipped_and_the_scale_is_constant_within_a_step(digits: Store) -> None:
    train = quick_train(precision="float16", clip_norm=0.01, optimizer="sgd", momentum=0.0, learning_rate=1.0, weight_decay=0.0)
    state, _ = build_digits_training(digits, train, 16)
    scaler = state.scaler
    assert scaler is not None
    scales: list[float] = []
    state.classifier.register_forward_hook(lambda *_: scales.append(scaler.get_scale()))
    before = flat_weights(state)
    record = take_step(state, train, *first_batch(digits))
    assert record.applied
    assert record.gradient_norm < 100, "the norm is that of unscaled gradients"
    assert float((flat_weights(state) - before).norm()) == pytest.approx(0.01, rel=0.01)
    assert len(scales) >= 4
    assert len(set(scales)) == 1


@pytest.mark.parametrize("micro", [64, 8, 5])
def test_bug_16_the_schedule_moves_once_an_update_for_any_number_of_steps(micro: int, digits: Store) -> None:
    train = quick_train(
        schedule="step", lr_decay_epochs=1, lr_decay_factor=0.5, epochs=3, effective_batch_size=64, learning_rate=0.01
    )
    state, batch = build_digits_training(digits, train, micro)
    rates = [record.learning_rate for record in train_all(state, train, batch, digits) if isinstance(record, StepRecord)]
    assert rates == pytest.approx([0.01] * 20 + [0.005] * 20 + [0.0025] * 20)


def test_bug_18_validation_and_zero_grad_do_not_wipe_a_gradient_on_its_way(digits: Store) -> None:
    state, _ = build_digits_training(digits, quick_train(), 16)
    state.accumulator.backward(*first_batch(digits))
    before = [p.grad.clone() for p in state.classifier.parameters()]
    validate(state.classifier, ordered_batches(digits, Split.VALIDATION, 50), state.task)
    assert all((p.grad == g).all() for p, g in zip(state.classifier.parameters(), before, strict=True))
    assert state.classifier.training


@pytest.mark.parametrize("name", ["weighted", "ignoring"])
def test_bug_19_class_weights_and_ignored_labels_weigh_across_the_whole_batch(name: str) -> None:
    loss, mean, targets = LOSSES[name]
    assert _error(loss, mean, targets, 6) <= 1e-12
    model, inputs = _model(), _inputs()
    expected, _ = full_batch_gradients(model, mean, inputs, targets)
    for part in torch.arange(24).split(6):  # the mean of means that others take
        (mean(model(inputs[part]), targets[part]) / 4).backward()
    assert relative_error(model, expected) > 0.01


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha", "both"])
def test_bug_21_mixing_is_drawn_for_the_whole_batch_before_it_is_cut(kind: str, digits: Store) -> None:
    options = {"mixup_alpha": 0.4, "cutmix_alpha": 1.0} if kind == "both" else {kind: 0.4}
    train = quick_train(precision="float64", epochs=1, effective_batch_size=100, **options)
    flat = []
    for micro in (100, 16, 7):
        state, batch = build_digits_training(digits, train, micro)
        list(train_all(state, train, batch, digits))
        flat.append(flat_weights(state))
    for other in flat[1:]:
        assert float((other - flat[0]).norm() / flat[0].norm()) <= 1e-9


def test_mixing_keeps_the_share_of_each_class() -> None:
    images = torch.from_numpy(random_images(10, 16, 3)).permute(0, 3, 1, 2)
    labels = torch.arange(10)
    seen = set()
    for step in range(40):
        mixed, targets = mix_batch(images, labels, 10, mixup_alpha=1.0, cutmix_alpha=1.0, seed=0, step=step)
        torch.testing.assert_close(targets.sum(1), torch.ones(10))
        share = float(targets[0, 0])
        seen.add(mixed.dtype)
        if mixed.dtype == torch.float32:
            torch.testing.assert_close(mixed, images * share + images.roll(1, 0) * (1 - share))
        else:
            kept = (mixed == images).all(dim=1).float().mean(dim=(1, 2))
            assert abs(float(kept[0]) - share) < 0.02
            assert ((mixed == images) | (mixed == images.roll(1, 0))).all()
    assert seen == {torch.float32, torch.uint8}
    assert mix_batch(images, labels, 10, mixup_alpha=None, cutmix_alpha=None, seed=0, step=0) == (images, labels)


@pytest.mark.parametrize("steps", [4, 64, 256])
def test_bug_23_parameters_in_bfloat16_add_up_in_float32_and_are_cast_once(steps: int) -> None:
    torch.manual_seed(0)
    narrow = nn.Linear(32, 8).bfloat16()
    inputs, labels = torch.randn(256, 32).bfloat16(), torch.randint(0, 8, (256,))
    wanted = [torch.zeros_like(p, dtype=torch.float64) for p in narrow.parameters()]
    for part in torch.arange(256).split(256 // steps):
        loss = F.cross_entropy(narrow(inputs[part]), labels[part], reduction="sum") / 256
        wanted = [
            total + g.double() for total, g in zip(wanted, torch.autograd.grad(loss, list(narrow.parameters())), strict=True)
        ]
    Accumulator(narrow, losses.CrossEntropy(), micro_batch_size=256 // steps).backward(inputs, labels)
    for parameter, total in zip(narrow.parameters(), wanted, strict=True):
        assert parameter.grad.dtype == torch.bfloat16
        torch.testing.assert_close(
            parameter.grad, total.bfloat16(), rtol=2**-8, atol=0
        )  # one cast, half a unit in the last place


def test_bug_25_sixty_four_micro_batches_need_no_more_memory_than_two() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.GroupNorm(8, 32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(4608, 10)
    )
    peaks = []
    for steps in (2, 64):
        inputs, labels = torch.randn(8 * steps, 3, 16, 16), torch.randint(0, 10, (8 * steps,))
        accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=8, seed=0, noise="first")
        accumulator.backward(inputs, labels)
        model.zero_grad()
        peaks.append(peak_growth(lambda a=accumulator, i=inputs, t=labels: a.backward(i, t)))
        model.zero_grad()
    assert peaks[0] > 1_000_000
    assert peaks[1] <= 1.01 * peaks[0], peaks


def test_bug_26_a_step_ends_where_the_caller_ends_it_not_the_loader() -> None:
    """The caller loops over micro-batches in loops of its own; one call is one step whatever loader is at its end."""
    model, inputs = _model(), _inputs()
    expected, _ = full_batch_gradients(model, F.cross_entropy, inputs, LABELS)
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=4)
    outer = zip(inputs.split(12), LABELS.split(12), strict=True)
    inner = ((x, t) for xs, ts in outer for x, t in zip(xs.split(5), ts.split(5), strict=True))
    result = accumulator.backward_stream(inner, weight=24)
    assert result.micro_batch_sizes == (5, 5, 2, 5, 5, 2)
    assert relative_error(model, expected) <= 1e-12
    model.zero_grad()
    for part in torch.arange(24).split(24):
        accumulator.backward(inputs[part], LABELS[part])
    assert relative_error(model, expected) <= 1e-12
