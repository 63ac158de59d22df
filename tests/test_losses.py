from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigstep import Accumulator, losses
from bigstep.errors import LossError
from oracles import full_batch_gradients, relative_error

CLASSES = 4


def _logits(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _labels(*shape: int) -> Tensor:
    labels = torch.randint(0, CLASSES, shape, generator=torch.Generator().manual_seed(2))
    labels.view(-1)[::5] = -100
    return labels


WEIGHT = torch.tensor([0.2, 1.0, 3.0, 5.0], dtype=torch.float64)


@pytest.mark.parametrize("shape", [(11,), (5, 3, 2)])
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_indices_is_torchs_mean(shape: tuple[int, ...], weight: Tensor | None, smoothing: float) -> None:
    logits, labels = _logits(shape[0], CLASSES, *shape[1:]), _labels(*shape)
    loss = losses.CrossEntropy(weight=weight, label_smoothing=smoothing)
    expected = F.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(loss.sum(logits, labels) / loss.weight(labels), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(11, CLASSES), (5, CLASSES, 3)])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_cross_entropy_of_probabilities_is_torchs_mean(shape: tuple[int, ...], weight: Tensor | None) -> None:
    logits, targets = _logits(*shape), _logits(*shape).softmax(1)
    loss = losses.CrossEntropy(weight=weight, label_smoothing=0.1)
    expected = F.cross_entropy(logits, targets, weight=weight, label_smoothing=0.1)
    torch.testing.assert_close(loss.sum(logits, targets) / loss.weight(targets), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("pos_weight", [None, WEIGHT.flip(0)])
def test_binary_cross_entropy_is_torchs_mean(weight: Tensor | None, pos_weight: Tensor | None) -> None:
    logits, targets = _logits(7, CLASSES), (_logits(7, CLASSES) > 0).double()
    loss = losses.BinaryCrossEntropy(weight=weight, pos_weight=pos_weight)
    expected = F.binary_cross_entropy_with_logits(logits, targets, weight=weight, pos_weight=pos_weight)
    torch.testing.assert_close(loss.sum(logits, targets) / loss.weight(targets), expected, rtol=1e-14, atol=0)


def test_mean_squared_error_is_torchs_mean() -> None:
    outputs, targets = _logits(7, 3), _logits(7, 3) * 2
    loss = losses.MeanSquaredError()
    expected = F.mse_loss(outputs, targets)
    torch.testing.assert_close(loss.sum(outputs, targets) / loss.weight(targets), expected, rtol=1e-14, atol=0)


def test_labels_that_are_all_ignored_weigh_nothing() -> None:
    assert losses.CrossEntropy(weight=WEIGHT).weight(torch.full((5,), -100)) == 0


@dataclass
class _Output:
    """As transformers' ModelOutput: logits beside other fields."""

    logits: Tensor
    hidden: Tensor | None = None


def _tokens(*shape: int) -> Tensor:
    """Token ids, each sequence with another number of valid ones."""
    ids = torch.randint(0, CLASSES, shape, generator=torch.Generator().manual_seed(5))
    return torch.where(torch.arange(shape[1]) < 1 + torch.arange(shape[0])[:, None] % shape[1], ids, -100)


@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_causal_lm_is_torchs_mean_over_the_next_tokens(ignore_index: int) -> None:
    logits, ids = _logits(5, 6, CLASSES), _tokens(5, 6)
    if ignore_index != -100:
        ids = ids.where(ids != -100, ignore_index)
    loss = losses.CausalLM(ignore_index)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=ignore_index)
    torch.testing.assert_close(loss.sum(_Output(logits), ids) / loss.weight(ids), expected, rtol=1e-14, atol=0)
    assert loss.weight(ids) == int((ids[:, 1:] != ignore_index).sum())


def test_causal_lm_sums_in_float32_where_logits_have_16_bits() -> None:
    logits, ids = _logits(5, 6, CLASSES).bfloat16(), _tokens(5, 6)
    found = losses.CausalLM().sum(logits, ids)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, losses.CausalLM().sum(logits.double(), ids).float(), rtol=1e-6, atol=0)


def test_sequences_of_one_token_weigh_nothing() -> None:
    assert losses.CausalLM().weight(torch.ones(3, 1, dtype=torch.long)) == 0


@pytest.mark.parametrize(
    ("loss", "shape", "target"),
    [
        (losses.CrossEntropy(), (5, CLASSES), torch.arange(5) % CLASSES),
        (losses.BinaryCrossEntropy(), (5, 3), torch.rand(5, 3).double()),
        (losses.MeanSquaredError(), (5, 3), torch.rand(5, 3).double()),
        (losses.CausalLM(), (5, 6, CLASSES), _tokens(5, 6)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_logits_of_an_object_are_the_logits(loss: Any, shape: tuple[int, ...], target: Tensor) -> None:
    logits = _logits(*shape)
    assert torch.equal(loss.sum(_Output(logits), target), loss.sum(logits, target))
    with pytest.raises(
        LossError, match="outputs: expected a tensor, or an object with a tensor 'logits', got tuple; give a call"
    ):
        loss.sum((logits,), target)
    with pytest.raises(LossError, match=r"outputs: .* got dict"):
        loss.sum({"logits": logits}, target)
    for targets in ((target, target), target.tolist(), None):
        with pytest.raises(LossError, match=f"targets: expected a tensor, got {type(targets).__name__}; give a callable"):
            loss.sum(logits, targets)
        with pytest.raises(LossError, match=f"targets: expected a tensor, got {type(targets).__name__}; give a callable"):
            loss.weight(targets)


@pytest.mark.parametrize("labels", [torch.ones(5), torch.ones(5).double()])
def test_class_indices_as_floats_are_refused(labels: Tensor) -> None:
    loss = losses.CrossEntropy()
    for call in (partial(loss.sum, _logits(5, CLASSES)), loss.weight, loss.sample_weights):
        with pytest.raises(LossError, match=r"expected class indices as integers.*call \.long\(\) for class indices"):
            call(labels)


def test_probabilities_of_another_shape_than_the_logits_are_refused() -> None:
    with pytest.raises(LossError, match=r"expected probabilities of the logits' shape \(5, 4\), got \(5, 1\)"):
        losses.CrossEntropy().sum(_logits(5, CLASSES), torch.ones(5, 1))


@pytest.mark.parametrize(
    ("logits", "targets"), [((5, 6), (5, 6)), ((5, 6, CLASSES), (5, 5)), ((5, 6, CLASSES), (4, 6)), ((5, 6, CLASSES), (5,))]
)
def test_causal_lm_refuses_other_shapes(logits: tuple[int, ...], targets: tuple[int, ...]) -> None:
    with pytest.raises(LossError, match=r"expected token ids of shape \(n, L\).*unshifted"):
        losses.CausalLM().sum(_logits(*logits), torch.ones(targets, dtype=torch.long))


def test_causal_lm_refuses_targets_without_a_sequence_before_the_first_pass() -> None:
    for call in (losses.CausalLM().weight, losses.CausalLM().sample_weights):
        with pytest.raises(LossError, match=r"expected token ids of shape \(n, L\), got .*unshifted"):
            call(torch.ones(5, dtype=torch.long))
        with pytest.raises(LossError, match=r"expected token ids of shape \(n, L\), got .*unshifted"):
            call(torch.ones(5, 6))


@pytest.mark.parametrize("loss", [losses.BinaryCrossEntropy(), losses.MeanSquaredError()])
@pytest.mark.parametrize(("outputs", "targets"), [((5, 1), (5,)), ((5,), (5, 1)), ((5, 3), (1, 3)), ((5, 3), (5, 2))])
def test_shapes_that_would_broadcast_are_refused(loss: Any, outputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    with pytest.raises(LossError, match="which would broadcast or fail; reshape one of them"):
        loss.sum(_logits(*outputs), _logits(*targets).abs())


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (losses.CrossEntropy(), _labels(11)),
        (losses.CrossEntropy(WEIGHT), _labels(11)),
        (losses.CrossEntropy(WEIGHT), _labels(5, 3, 2)),
        (losses.CrossEntropy(ignore_index=1), _labels(5, 3).where(_labels(5, 3) != -100, 1)),
        (losses.CrossEntropy(WEIGHT), _logits(5, CLASSES).softmax(1)),
        (losses.CausalLM(), _tokens(5, 6)),
        (losses.BinaryCrossEntropy(), torch.ones(5, 3)),
        (losses.MeanSquaredError(), torch.ones(5, 3)),
    ],
)
def test_the_weights_of_samples_are_those_of_each_alone(loss: Any, targets: Tensor) -> None:
    weights = losses.sample_weights(loss, targets, len(targets))
    assert weights.shape == (len(targets),)
    expected = torch.tensor([loss.weight(target[None]) for target in targets], dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=1e-14, atol=0)


def _many_labels() -> Tensor:
    return (_logits(11, CLASSES) > 0).double()


def _linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(6, CLASSES).double()


TORCHS: list[tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = [
    (nn.CrossEntropyLoss, lambda: _labels(11)),
    (lambda: nn.CrossEntropyLoss(WEIGHT), lambda: _labels(11)),
    (lambda: nn.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.2), lambda: _labels(11).where(_labels(11) >= 0, 1)),
    (lambda: nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1), lambda: _logits(11, CLASSES).softmax(1)),
    (nn.BCEWithLogitsLoss, _many_labels),
    (lambda: nn.BCEWithLogitsLoss(WEIGHT, pos_weight=WEIGHT.flip(0)), _many_labels),
    (nn.MSELoss, lambda: _logits(11, CLASSES) * 2),
]


@pytest.mark.parametrize("cut", [4, 1])
@pytest.mark.parametrize(("make", "targets"), TORCHS)
def test_torchs_own_modules_are_taken_as_ours(make: Any, targets: Callable[[], Tensor], cut: int) -> None:
    model, inputs = _linear(), torch.randn(11, 6, dtype=torch.float64)
    expected, value = full_batch_gradients(model, make(), inputs, targets())
    result = Accumulator(model, make(), micro_batch_size=cut).backward(inputs, targets())
    assert relative_error(model, expected) <= 1e-13
    torch.testing.assert_close(result.loss, value, rtol=1e-13, atol=0)


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.NLLLoss(), nn.SmoothL1Loss(), nn.CrossEntropyLoss(reduction="sum")])
def test_other_modules_that_reduce_are_refused_at_the_first_batch(loss: nn.Module) -> None:
    targets = _labels(11).abs() % CLASSES if isinstance(loss, (nn.NLLLoss, nn.CrossEntropyLoss)) else _logits(11, CLASSES)
    with pytest.raises(LossError, match=r"one of its losses per sample.*do not reduce over the batch"):
        Accumulator(_linear(), loss, micro_batch_size=4).backward(torch.randn(11, 6).double(), targets)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(WEIGHT, reduction="none"),
        nn.NLLLoss(WEIGHT, reduction="none"),
        partial(F.cross_entropy, weight=WEIGHT, reduction="none"),
        partial(F.nll_loss, weight=WEIGHT, reduction="none"),
    ],
)
def test_class_weights_of_losses_per_sample_are_refused(loss: Any) -> None:
    with pytest.raises(LossError, match=r"loss: expected one without class weights.*use bigstep\.losses\.CrossEntropy"):
        Accumulator(_linear(), loss, micro_batch_size=4)


@pytest.mark.parametrize("ignored", [-100, 1])
@pytest.mark.parametrize("as_partial", [False, True])
def test_ignored_labels_of_losses_per_sample_are_refused_when_they_come(as_partial: bool, ignored: int) -> None:
    options: dict[str, Any] = {"reduction": "none", "ignore_index": ignored}
    loss = partial(F.cross_entropy, **options) if as_partial else nn.CrossEntropyLoss(**options)
    model, inputs = _linear(), torch.randn(6, 6, dtype=torch.float64)
    labels = torch.tensor([0, 2, 3, 0, 2, 3])
    expected, _ = full_batch_gradients(model, F.cross_entropy, inputs, labels)
    accumulator = Accumulator(model, loss, micro_batch_size=4)
    accumulator.backward(inputs, labels)
    assert relative_error(model, expected) <= 1e-13
    with pytest.raises(LossError, match=rf"targets: expected no ignored label.*CrossEntropy\(ignore_index={ignored}\)"):
        accumulator.backward(inputs, labels.where(labels != 3, ignored))


class _WithSum(nn.CrossEntropyLoss):
    """A callable per sample, with class weights in a buffer called as a method of ours, and a method of the other's name."""

    def sum(self, rows: Tensor) -> Tensor:
        return rows.sum()


def test_a_loss_is_one_of_ours_by_its_methods_not_by_any_attribute() -> None:
    plain, weighed = _WithSum(reduction="none"), _WithSum(WEIGHT, reduction="none")
    assert losses.is_loss(losses.CrossEntropy())
    assert not losses.is_loss(plain)
    assert not losses.is_loss(weighed)
    model, inputs, labels = nn.Linear(3, CLASSES).double(), _logits(11, 3), _labels(11).clamp(min=0)
    expected, _ = full_batch_gradients(model, F.cross_entropy, inputs, labels)
    Accumulator(model, plain, micro_batch_size=4).backward(inputs, labels)
    assert relative_error(model, expected) < 1e-12
    with pytest.raises(LossError, match="class weights"):
        Accumulator(model, weighed, micro_batch_size=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("loss", "mean", "targets"),
    [
        (
            losses.CrossEntropy(torch.tensor([1.003, 0.3333, 2.01])),
            lambda outputs, targets: F.cross_entropy(outputs, targets, torch.tensor([1.003, 0.3333, 2.01])),
            torch.arange(8) % 3,
        ),
        (losses.CrossEntropy(), F.cross_entropy, torch.softmax(torch.arange(24.0).reshape(8, 3).sin(), dim=1)),
        (losses.MeanSquaredError(), F.mse_loss, torch.arange(24.0).reshape(8, 3) * 1e4),
        (
            losses.BinaryCrossEntropy(pos_weight=torch.tensor([1.003, 0.3333, 2.01])),
            lambda outputs, targets: F.binary_cross_entropy_with_logits(
                outputs, targets, pos_weight=torch.tensor([1.003, 0.3333, 2.01])
            ),
            torch.linspace(0, 1, 24).reshape(8, 3),
        ),
    ],
    ids=["class weights", "soft targets", "numbers", "binary"],
)
def test_targets_and_weights_are_not_rounded_to_the_16_bits_of_the_outputs(
    loss: Any, mean: Any, targets: Tensor, dtype: torch.dtype
) -> None:
    """Under autocast torch takes the outputs in float32."""
    outputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", dtype):
        found = loss.sum(outputs, targets)
    assert float(found) / loss.weight(targets) == pytest.approx(float(mean(outputs.float(), targets)))


def test_labels_in_uint8_are_labels_and_no_mask() -> None:
    loss, labels = losses.CrossEntropy(torch.tensor([1.0, 2.0, 4.0])), torch.tensor([0, 1, 2], dtype=torch.uint8)
    assert loss.weight(labels) == 7.0
    assert loss.sample_weights(labels).tolist() == [1.0, 2.0, 4.0]
