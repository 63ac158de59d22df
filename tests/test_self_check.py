"""What the self-check costs, and the groups of samples that it compares."""

from itertools import accumulate

import pytest
import torch
from torch import Tensor, nn

from bigstep import Accumulator, losses
from bigstep.errors import ExactnessWarning
from bigstep.step.batch_structure import BatchStructure
from bigstep.step.grouping import MAX_SAMPLES, Groups, choose_groups
from bigstep.step.self_check import SelfCheck

N = 64
CPU = torch.device("cpu")
PROBES = {0.0: [2], 0.3: [2, 3]}  # samples of the forward passes that look for random calls, by the share of dropout


class Noting(nn.Module):
    """Notes the size of every pass, in a list that is not its own, so that nothing puts it back."""

    def __init__(self, sizes: list[int], share: float) -> None:
        super().__init__()
        self.inner, self.note = nn.Sequential(nn.Linear(6, 8), nn.Dropout(share), nn.Linear(8, 4)), sizes.append

    def forward(self, inputs: Tensor) -> Tensor:
        self.note(len(inputs))
        return self.inner(inputs)


def sizes_of_passes(micro_batch_size: int, share: float) -> list[int]:
    torch.manual_seed(0)
    sizes: list[int] = []
    model = Noting(sizes, share)
    batch = BatchStructure(torch.randn(N, 6), torch.randint(0, 4, (N,)))
    SelfCheck(model, losses.CrossEntropy(), seed=0).check(batch, micro_batch_size, CPU)
    return sizes


@pytest.mark.parametrize("share", PROBES)
def test_it_passes_each_sample_three_times_at_most_for_every_micro_batch_size(share: float) -> None:
    """The probe of random calls is counted, though it goes forward only."""
    for micro_batch_size in range(1, N + 1):
        sizes = sizes_of_passes(micro_batch_size, share)
        groups = choose_groups(range(N), micro_batch_size)
        probe = sizes[: len(PROBES[share])]
        assert probe == PROBES[share]
        assert sizes[len(probe) :] == [part.stop - part.start for part in (*groups.together, *groups.apart)]
        assert sum(sizes) <= 3 * len(groups.samples) == 3 * MAX_SAMPLES
        assert max(sizes[len(probe) :]) <= max(micro_batch_size, 2)


def test_a_loss_whose_gradient_is_zero_costs_no_more() -> None:
    def nothing(outputs: Tensor, _targets: Tensor) -> Tensor:
        return outputs.sum(dim=1) * 0

    sizes: list[int] = []
    check, inputs = SelfCheck(Noting(sizes, 0.3), nothing, seed=0), torch.randn(N, 6)
    spent = []
    for _ in range(5):
        check.check(BatchStructure(inputs, torch.zeros(N).long()), 8, CPU)
        spent.append(sum(sizes))
        sizes.clear()
    assert spent == [21, 21, 21, 0, 0]  # it tries again on the next two batches


@pytest.mark.parametrize("num_samples", range(2, 20))
def test_the_second_cut_differs_from_the_first_in_what_shows(num_samples: int) -> None:
    for size in range(1, 10):
        groups = choose_groups(range(num_samples), size)
        first, second = ([part.stop - part.start for part in cut] for cut in (groups.together, groups.apart))
        assert sum(first) == sum(second) == len(groups.samples)
        assert min(first) > 1
        assert len(second) > len(first)  # what moves once a pass
        assert max(second) <= 3
        edges = set(accumulate(first[:-1])) & set(accumulate(second[:-1]))
        assert len(edges) <= (1 if len(first) > 2 or num_samples < MAX_SAMPLES else 0)
        if size > 3 and num_samples > 5:
            assert 1 not in second  # models that take no single sample


@pytest.mark.parametrize("size", range(1, 10))
def test_one_sample_comes_twice_in_a_pass_of_one_cut_and_never_in_the_other(size: int) -> None:
    groups = choose_groups(range(0, 40, 2), size)
    assert len(set(groups.samples)) == MAX_SAMPLES - 1
    assert set(groups.samples) <= set(range(0, 40, 2))
    together, apart = ([sorted(groups.samples[part]) for part in cut] for cut in (groups.together, groups.apart))
    twice = [[samples for samples in cut if len(set(samples)) < len(samples)] for cut in (together, apart)]
    assert sorted(map(len, twice)) == [0, 1]


def test_two_samples_are_compared_as_they_are() -> None:
    assert choose_groups([3, 5], 1) == Groups((3, 5), (slice(0, 2),), (slice(0, 1), slice(1, 2)))


class Masked(nn.Module):
    """Makes its mask of minus infinity in the first forward pass, and has a number that is not known yet."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 4)
        self.register_buffer("mask", None)
        self.register_buffer("unknown", torch.tensor(float("nan")))

    def forward(self, inputs: Tensor) -> Tensor:
        self.mask = torch.full((4, 4), -torch.inf).triu(1)
        self.unknown.mul_(1.0)
        return self.inner(inputs)


def test_a_buffer_that_holds_infinity_or_nan_and_stays_so_is_no_coupling() -> None:
    batch = BatchStructure(torch.randn(N, 6), torch.randint(0, 4, (N,)))
    SelfCheck(Masked(), losses.CrossEntropy(), seed=0).check(batch, 8, CPU)


def test_a_model_that_runs_under_autocast_only_is_not_checked_and_trained() -> None:
    model, inputs = nn.Linear(6, 4), torch.randn(N, 6).bfloat16()
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=8, autocast=torch.bfloat16)
    with pytest.warns(ExactnessWarning, match="not checked .* it failed without autocast"):
        accumulator.backward(inputs, torch.randint(0, 4, (N,)))
    assert model.weight.grad is not None
