import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigstep.config.batch_sizes import resolve_batch
from bigstep.config.hardware import HardwareConfig
from bigstep.config.model import ModelConfig
from bigstep.config.train import TrainConfig
from bigstep.data.ordered_batches import ordered_batches
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.models.building import InputShape
from bigstep.models.model_files import build_classifier
from bigstep.step.losses import CrossEntropy
from bigstep.training.auxiliary_loss import AuxiliaryLoss
from bigstep.training.loop import mean_loss, take_step
from bigstep.training.optimization import build_optimizer, build_schedule
from bigstep.training.records import EpochRecord, StepRecord
from bigstep.training.snapshot import in_device_order
from bigstep.training.state import TrainingState, build_state
from bigstep.training.training_batches import TrainingBatches
from bigstep.training.validation import validate
from building import build_digits_training, first_batch, flat_weights, quick_train, ten_classes, train_all


def _run(store: Store, train: TrainConfig, micro: int | None = 16, **model: Any) -> tuple[TrainingState, list[Any]]:
    state, batch = build_digits_training(store, train, micro, **model)
    return state, list(train_all(state, train, batch, store))


def test_the_loop_yields_every_step_and_every_epoch(digits: Store) -> None:
    _, records = _run(digits, quick_train(effective_batch_size=100))
    steps = [record for record in records if isinstance(record, StepRecord)]
    epochs = [record for record in records if isinstance(record, EpochRecord)]
    assert [record.step for record in steps] == list(range(26))
    assert [record.num_samples for record in steps] == ([100] * 12 + [22]) * 2
    assert [record.epoch for record in epochs] == [0, 1]
    assert epochs[-1].num_updates == 26
    for epoch in epochs:
        mine = [record for record in steps if record.epoch == epoch.epoch]
        mean = sum(float(record.loss) * record.num_samples for record in mine) / sum(record.num_samples for record in mine)
        assert math.isclose(mean, epoch.train_loss, rel_tol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_micro_batch_size_does_not_change_what_is_learned(optimizer: str, digits: Store) -> None:
    train = quick_train(effective_batch_size=100, optimizer=optimizer, precision="float64", learning_rate=0.01, ema_decay=0.9)
    reference, records = _run(digits, train, micro=100)
    for micro in (32, 7):
        other, others = _run(digits, train, micro=micro)
        assert float((flat_weights(other) - flat_weights(reference)).norm() / flat_weights(reference).norm()) <= 1e-9
        for one, two in zip(records, others, strict=True):
            if isinstance(one, StepRecord):
                torch.testing.assert_close(one.loss, two.loss, rtol=1e-9, atol=0)


def test_a_run_is_a_plain_loop_in_torch(digits: Store) -> None:
    """Parity: ten lines of torch over whole batches give the same weights."""
    train = quick_train(
        effective_batch_size=64, precision="float64", optimizer="sgd", schedule="constant", weight_decay=0.0, clip_norm=None
    )
    state, _ = _run(digits, train, micro=16)
    plain, _ = build_digits_training(digits, train)
    optimizer = torch.optim.SGD(plain.classifier.parameters(), lr=train.learning_rate, momentum=0.9)
    for epoch in range(2):
        for images, labels in TrainingBatches(digits, train, 64).epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(plain.classifier(images), labels, label_smoothing=0.05).backward()
            optimizer.step()
    assert float((flat_weights(plain) - flat_weights(state)).norm() / flat_weights(state).norm()) <= 1e-12


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(digits: Store) -> None:
    one, two, other = (flat_weights(_run(digits, quick_train(seed=seed))[0]) for seed in (0, 0, 1))
    assert (one == two).all()
    assert (one != other).any()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "float64"])
def test_every_precision_learns(precision: str, digits: Store) -> None:
    state, records = _run(digits, quick_train(precision=precision, epochs=3, learning_rate=0.01))
    assert records[-1].validation.score > 0.5
    expected = torch.float64 if precision == "float64" else torch.float32
    assert {p.dtype for p in state.classifier.parameters()} == {expected}


SCHEDULES: dict[str, Callable[[int], float]] = {
    "constant": lambda _step: 1.0,
    "cosine": lambda step: (1 + math.cos(math.pi * step / 40)) / 2,
    "linear": lambda step: 1 - step / 40,
    "step": lambda step: 0.1 ** (step // 20),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_move_once_per_update(name: str) -> None:
    train = quick_train(schedule=name, epochs=4, learning_rate=0.5, lr_decay_epochs=2)
    optimizer = build_optimizer(train, nn.Linear(2, 2).parameters())
    schedule = build_schedule(train, optimizer, updates_per_epoch=10)
    for step in range(40):
        assert math.isclose(optimizer.param_groups[0]["lr"], 0.5 * SCHEDULES[name](step), abs_tol=1e-12)
        optimizer.step()
        schedule.step()  # type: ignore[call-arg]


def test_warm_up_rises_to_the_peak_and_the_rest_follows() -> None:
    train = quick_train(schedule="cosine", epochs=4, learning_rate=1.0, warmup_fraction=0.125)
    optimizer = build_optimizer(train, nn.Linear(2, 2).parameters())
    schedule = build_schedule(train, optimizer, updates_per_epoch=10)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()  # type: ignore[call-arg]
    assert rates[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert rates[5] == pytest.approx(1.0)
    assert rates[5:] == pytest.approx([(1 + math.cos(math.pi * step / 35)) / 2 for step in range(35)])


def test_plateau_cuts_after_validations_without_gain(digits: Store) -> None:
    train = quick_train(
        schedule="plateau",
        epochs=6,
        learning_rate=1e-6,  # of which no score changes
        plateau_patience=1,
        effective_batch_size=600,
        monitor="val_accuracy",
    )
    _, records = _run(digits, train)
    rates = [record.learning_rate for record in records if isinstance(record, StepRecord)][::3]
    assert rates == pytest.approx([1e-6] * 3 + [1e-7] * 2 + [1e-8], rel=1e-6, abs=0)


@pytest.mark.parametrize("values", [[-0.8] * 6, [-0.8, -0.79999, -0.8, -0.75, -0.8, -0.7], [2.0] * 6, [2.0] + [math.nan] * 5])
def test_a_score_that_does_not_improve_cuts_the_rate(values: list[float]) -> None:
    optimizer = build_optimizer(quick_train(learning_rate=1.0), nn.Linear(2, 2).parameters())
    schedule = build_schedule(quick_train(schedule="plateau", plateau_patience=2), optimizer, updates_per_epoch=1)
    rates = []
    for value in values:
        schedule.step(value)  # type: ignore[arg-type] # it is the plateau's
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0] * 3 + [0.1] * 3)


def test_steps_of_the_rate_are_counted_from_the_start_of_the_training() -> None:
    train = quick_train(schedule="step", epochs=6, learning_rate=1.0, lr_decay_epochs=2, warmup_fraction=0.05)
    optimizer = build_optimizer(train, nn.Linear(2, 2).parameters())
    schedule = build_schedule(train, optimizer, updates_per_epoch=10)
    rates = []
    for _ in range(60):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()  # type: ignore[call-arg]
    assert rates[3:] == pytest.approx([1.0] * 17 + [0.1] * 20 + [0.01] * 20)


@pytest.mark.parametrize(("bad", "expected"), [([], (2 * 1.0 + 6 * 3.0) / 8), ([(math.nan, 5.0)], 2.5), ([(0.0, 0.0)], 2.5)])
def test_the_loss_of_an_epoch_is_weighted_and_leaves_out_what_is_no_number(
    bad: list[tuple[float, float]], expected: float
) -> None:
    assert mean_loss([(1.0, 2.0), *bad, (3.0, 6.0)]) == expected
    assert math.isnan(mean_loss([(math.nan, 2.0)]))


def test_random_states_of_devices_are_in_the_order_of_their_numbers() -> None:
    names = [f"random.cuda.{number}" for number in (10, 2, 0, 11, 1)]
    assert in_device_order(["random.cpu", *names]) == [f"random.cuda.{number}" for number in (0, 1, 2, 10, 11)]


def test_weight_decay_spares_biases_and_norms() -> None:
    optimizer = build_optimizer(
        quick_train(weight_decay=0.3), nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2)).parameters()
    )
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [(0.3, 1), (0.0, 3)]


def test_the_gradient_of_the_whole_batch_is_clipped(digits: Store) -> None:
    train = quick_train(
        clip_norm=1e-3, optimizer="sgd", momentum=0.0, learning_rate=1.0, weight_decay=0.0, effective_batch_size=64
    )
    state, _ = build_digits_training(digits, train)
    before = flat_weights(state)
    record = take_step(state, train, *first_batch(digits))
    assert record.gradient_norm > 0.1
    assert float((flat_weights(state) - before).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_step_with_a_gradient_that_is_not_finite_leaves_no_trace(digits: Store) -> None:
    train = quick_train(ema_decay=0.9)
    state, _ = build_digits_training(digits, train)
    images, labels = first_batch(digits)
    take_step(state, train, images, labels)
    before, rate = flat_weights(state), state.optimizer.param_groups[0]["lr"]
    moments = {name: value.clone() for name, value in next(iter(state.optimizer.state.values())).items()}
    hook = state.classifier.network.register_forward_hook(lambda _m, _i, logits: logits * float("inf"))
    record = take_step(state, train, images, labels)
    hook.remove()
    assert not record.applied
    assert (flat_weights(state) == before).all()
    assert state.optimizer.param_groups[0]["lr"] == rate
    assert all((value == moments[name]).all() for name, value in next(iter(state.optimizer.state.values())).items())
    assert (state.step, state.num_updates, state.num_dropped) == (2, 1, 1)
    assert all(p.grad is None for p in state.classifier.parameters())


def test_a_scale_that_overflows_backs_off_and_training_goes_on(digits: Store) -> None:
    train = quick_train(precision="float16")
    state, _ = build_digits_training(digits, train)
    assert state.scaler.is_enabled()
    images, labels = first_batch(digits)
    take_step(state, train, images, labels)
    state.scaler.update(1e38)
    assert not take_step(state, train, images, labels).applied
    assert state.scaler.get_scale() == pytest.approx(0.5e38, rel=1e-3)
    state.scaler.update(1024.0)
    assert take_step(state, train, images, labels).applied


def test_the_best_epoch_is_kept_and_early_stopping_ends(digits: Store) -> None:
    train = quick_train(
        epochs=30, learning_rate=1e-12, early_stopping_patience=2, monitor="val_accuracy", effective_batch_size=600
    )
    state, records = _run(digits, train)
    epochs = [record for record in records if isinstance(record, EpochRecord)]
    assert len(epochs) == 3
    assert [record.is_best for record in epochs] == [True, False, False]
    assert state.best is not None
    assert state.best.epoch == 0


def test_the_average_is_moved_once_per_update_and_is_what_is_kept(digits: Store) -> None:
    train = quick_train(ema_decay=0.9, epochs=1, effective_batch_size=600, precision="float64")
    state, batch = build_digits_training(digits, train)
    averages = []
    for record in train_all(state, train, batch, digits):
        if isinstance(record, StepRecord):
            weights = flat_weights(state)
            averages.append(weights if not averages else 0.9 * averages[-1] + 0.1 * weights)
    judged = torch.cat([p.detach().flatten() for p in state.evaluated_model.parameters()])
    torch.testing.assert_close(judged, averages[-1])
    assert state.best is not None
    assert (state.best.weights["head.bias"] == state.evaluated_model.network.state_dict()["head.bias"]).all()
    assert (state.best.weights["head.bias"] != state.classifier.network.state_dict()["head.bias"]).any()


def test_class_weights_weigh_the_loss(digits: Store) -> None:
    train = quick_train(label_smoothing=0.0, precision="float64")
    weights = torch.linspace(0.1, 2.0, 10).double()
    state, _ = build_digits_training(digits, train, weights=weights)
    images, labels = first_batch(digits)
    expected = F.cross_entropy(state.classifier(images), labels, weight=weights)
    torch.testing.assert_close(take_step(state, train, images, labels).loss, expected.detach())


def test_validation_is_a_mean_over_samples_however_they_are_cut(digits: Store) -> None:
    state, _ = build_digits_training(digits, quick_train(precision="float64"))
    images, labels = next(ordered_batches(digits, Split.VALIDATION, 10_000))
    with torch.no_grad():
        logits = state.classifier.eval()(images)
    for size in (1000, 100, 7):
        found = validate(state.classifier, ordered_batches(digits, Split.VALIDATION, size), state.task)
        assert found.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-12)
        assert found.score == float((logits.argmax(1) == labels).double().mean())


def test_auxiliary_heads_add_their_share() -> None:
    logits, aux, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    loss = AuxiliaryLoss(CrossEntropy(), 0.3)
    expected = F.cross_entropy(logits, labels, reduction="sum") + 0.3 * F.cross_entropy(aux, labels, reduction="sum")
    torch.testing.assert_close(loss.sum((logits, aux), labels), expected)
    torch.testing.assert_close(loss.sum(logits, labels), F.cross_entropy(logits, labels, reduction="sum"))
    assert loss.weight(labels) == 5


def test_a_frozen_batch_norm_keeps_its_statistics(digits: Store) -> None:
    train = quick_train(epochs=1, effective_batch_size=600)
    state, batch = build_digits_training(digits, train, None, norm="batch", ghost_batch_size=16, batch_norm_statistics="plain")
    for parameter in state.classifier.network.features.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in state.classifier.network.state_dict().items() if "running" in name}
    list(train_all(state, train, batch, digits))
    after = state.classifier.network.state_dict()
    assert before
    assert all((after[name] == tensor).all() for name, tensor in before.items())


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_measuring_the_noise_scale_changes_no_bit(precision: str, digits: Store) -> None:
    def weights(noise: str) -> Tensor:
        train = quick_train(precision=precision, clip_norm=0.1, epochs=1)
        section = ModelConfig(width=4)
        batch = resolve_batch(train, HardwareConfig(micro_batch_size=16), section)
        torch.manual_seed(0)
        classifier = build_classifier(section, InputShape(1, 8, 10), mean=digits.manifest.mean, std=digits.manifest.std)
        options: Any = {
            "num_samples": len(digits.indices(Split.TRAIN)),
            **ten_classes(train),
            "model": section,
        }
        state = build_state(classifier, train, batch, noise=noise, **options)
        list(train_all(state, train, batch, digits))
        return flat_weights(state)

    assert torch.equal(weights("first"), weights("none"))
