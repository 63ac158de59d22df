import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bigstep import losses

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
