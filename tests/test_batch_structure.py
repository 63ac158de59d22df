"""Lists of tensors in a batch: one item a sample, or tensors of all samples."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigstep import Accumulator, losses
from bigstep.step.batch_structure import BatchStructure


class Scenes(nn.Module):
    """Takes a list of images of different sizes, as torchvision's detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.head(torch.stack([self.convolution(image).mean((1, 2)) for image in images]))


class Sum(nn.Module):
    """Takes several inputs, as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.head(sum(inputs))


def _images(count: int) -> list[Tensor]:
    return [torch.randn(3, 8 + index, 8) for index in range(count)]


def _reference(model: nn.Module, inputs: list[Tensor], labels: Tensor) -> list[Tensor]:
    outputs = model(inputs) if isinstance(model, Scenes) else model(*inputs)
    return list(torch.autograd.grad(F.cross_entropy(outputs, labels), list(model.parameters())))


@pytest.mark.parametrize("kind", ["samples", "inputs"])
def test_a_last_batch_of_three_is_read_as_the_batches_before(kind: str) -> None:
    model = Scenes() if kind == "samples" else Sum()
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=2)
    for count in (5, 3):
        inputs = _images(count) if kind == "samples" else [torch.randn(count, 4) for _ in range(3)]
        labels = torch.randint(0, 2, (count,))
        model.zero_grad()
        accumulator.backward(inputs, labels)
        for parameter, expected in zip(model.parameters(), _reference(model, inputs, labels), strict=True):
            torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize("seen", [set(), {True, False}])
def test_three_images_without_batches_before_are_refused(seen: set[bool]) -> None:
    with pytest.raises(ValueError, match="got one that could be both, 3 tensors of 3 rows; use a tuple"):
        BatchStructure(_images(3), torch.zeros(3), list_kinds=seen)


@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 1], ["a", "b", "a", "b", "c"]], ids=["numbers", "text"])
def test_images_in_a_list_are_as_many_as_the_plain_labels_in_another(labels: list[object]) -> None:
    batch = BatchStructure(_images(5), labels)
    assert batch.num_samples == 5
    images, found = batch.take(slice(1, 3))
    assert [image.shape for image in images] == [(3, 9, 8), (3, 10, 8)]
    assert found == labels[1:3]


def test_a_list_that_all_samples_share_does_not_count_samples() -> None:
    batch = BatchStructure({"images": _images(5), "names": ["cat", "dog"]}, ["a"] * 5, shared=["names"])
    assert batch.num_samples == 5
    assert batch.take(slice(0, 2))[0]["names"] == ["cat", "dog"]


def test_a_batch_is_read_in_one_way_whatever_later_batches_show() -> None:
    kinds = {True}
    first = BatchStructure(_images(3), torch.zeros(3), list_kinds=kinds)
    kinds.add(False)
    assert [image.shape for image in first.take(slice(0, 2))[0]] == [(3, 8, 8), (3, 9, 8)]


def test_a_batch_that_the_model_does_not_take_teaches_nothing() -> None:
    accumulator = Accumulator(Scenes(), losses.CrossEntropy(), micro_batch_size=2)
    labels = torch.randint(0, 2, (3,))
    with pytest.raises(TypeError):
        accumulator.backward([torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8)], labels)
    accumulator.backward(_images(5), torch.randint(0, 2, (5,)))
    accumulator.backward(_images(3), labels)


def test_two_images_with_three_boxes_each_are_two_samples_where_lists_are_known_to_hold_samples() -> None:
    boxes = [{"boxes": torch.zeros(3, 4)} for _ in range(2)]
    assert BatchStructure(_images(2), boxes, list_kinds={True}).num_samples == 2


def test_lists_of_numbers_as_tensors_are_counted_by_their_length() -> None:
    batch = BatchStructure([torch.tensor(1.0), torch.tensor(2.0)], [torch.tensor(0), torch.tensor(1)])
    assert batch.take(slice(1, 2)) == ([torch.tensor(2.0)], [torch.tensor(1)])


@pytest.mark.parametrize("extra", [[], None])
def test_empty_lists_do_not_count_samples(extra: list[object] | None) -> None:
    batch = BatchStructure({"images": [torch.randn(5, 3), torch.randn(5, 2)], "notes": extra}, [torch.zeros(5)])
    assert batch.num_samples == 5


def test_plain_lists_of_another_length_than_lists_of_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one item per sample \(5\), got 2 items"):
        BatchStructure([torch.randn(5, 3), torch.randn(5, 2)], {"y": [torch.zeros(5)], "names": ["u", "v"]})
