"""Processes that share an effective batch: the gradient of the whole in each, the same collectives, and no one left waiting."""

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bigstep import Accumulator, losses
from bigstep.errors import LossError, LostStepError, OtherProcessError
from bigstep.step.batch_norm import DeferredStatistics
from bigstep.step.channel_statistics import ChannelStatistics
from bigstep.step.gradient_sum import GradientSum
from bigstep.step.process_group import Processes
from bigstep.step.slicing import slices

N, STEPS = 23, 3
SHARES = {  # of the samples; and the micro-batch size of each process
    2: [((12, 11), (4, 7)), ((23, 0), (5, 2)), ((1, 22), (3, 23))],
    3: [((8, 8, 7), (3, 4, 8)), ((0, 20, 3), (1, 6, 2))],
    4: [((6, 6, 6, 5), (2, 3, 4, 5)), ((0, 1, 0, 22), (1, 1, 1, 7))],
}
Collectives = list[tuple[int, int, torch.dtype]]


class Tied(nn.Module):
    """Tied, frozen and unused weights, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen, self.unused = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 5)
        self.frozen.requires_grad_(requires_grad=False)
        self.second = self.first

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.dropout(torch.tanh(self.frozen(self.first(inputs))), 0.3, self.training)
        return self.last(torch.tanh(self.second(hidden)))


class Margin(nn.Module):
    """A loss with a parameter of its own, and weights that are known from the forward pass only."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        values = F.cross_entropy(outputs * self.scale, targets, reduction="none")
        return values, 1.0 + targets.to(values.dtype)


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.4), nn.Tanh(), nn.Linear(8, 5))


def channels_last() -> nn.Module:
    layers = (nn.Unflatten(1, (3, 2, 1)), nn.Conv2d(3, 4, (2, 1)), nn.Tanh(), nn.Flatten(), nn.Linear(4, 5))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def narrow() -> nn.Module:
    return dropping().bfloat16()


def classes() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 6), torch.randint(0, 5, (N,))


def ignored() -> tuple[Tensor, Tensor]:
    inputs, labels = classes()
    labels[:12] = -100  # all of the first process, where there are two or three
    return inputs, labels


def narrow_classes() -> tuple[Tensor, Tensor]:
    inputs, labels = classes()
    return inputs.bfloat16(), labels


def numbers() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 6), torch.rand(N, 5)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], Callable[[], tuple[Tensor, Tensor]], float]] = {
    "dropout": (dropping, losses.CrossEntropy, classes, 1e-12),
    "tied, frozen, unused": (Tied, losses.CrossEntropy, classes, 1e-12),
    "class weights, ignored labels": (dropping, lambda: losses.CrossEntropy(torch.rand(5)), ignored, 1e-12),
    "binary": (dropping, losses.BinaryCrossEntropy, numbers, 1e-12),
    "squared error": (dropping, losses.MeanSquaredError, numbers, 1e-12),
    "callable with a parameter": (dropping, Margin, classes, 1e-12),
    "channels last": (channels_last, losses.CrossEntropy, classes, 1e-12),
    "bfloat16 parameters": (narrow, losses.CrossEntropy, narrow_classes, 4e-3),
}


def _made(make: Callable[[], Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return make()


def _gradients(*modules: Any) -> Tensor:
    tensors = [p for module in modules if isinstance(module, nn.Module) for p in module.parameters() if p.requires_grad]
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.double().flatten() for p in tensors])


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@contextmanager
def _counted() -> Iterator[Collectives]:
    seen: Collectives = []
    add_up = Processes.add_up

    def counting(self: Processes, values: Tensor) -> Tensor:
        seen.append((self.count, values.numel(), values.dtype))
        return add_up(self, values)

    Processes.add_up = counting  # type: ignore[method-assign] # for this process only
    try:
        yield seen
    finally:
        Processes.add_up = add_up  # type: ignore[method-assign]


def _exactness(
    group: Any, sizes: tuple[int, ...], micro: tuple[int, ...], noise: str | None
) -> dict[str, tuple[float, float, bool]]:
    """Return the errors of the gradient and of the loss, and whether unused parameters are left without one, of each case."""
    rank = dist.get_rank(group)
    share, found = slices(sizes)[rank], {}
    for name, (make, make_loss, data, _) in CASES.items():
        inputs, targets = _made(data, 1)
        model, loss = _made(make), _made(make_loss, 2)
        expected = Accumulator(model, loss, micro_batch_size=N, seed=7).backward(inputs, targets, step=3).loss
        whole, empty = _gradients(model, loss), [p.grad is None for p in model.parameters()]
        model, loss = _made(make), _made(make_loss, 2)
        accumulator = Accumulator(model, loss, micro_batch_size=micro[rank], seed=7, noise=noise, group=group)
        given = (None, None) if sizes[rank] == 0 else (inputs[share], targets[share])
        result = accumulator.backward(*given, step=3)
        unused = [p.grad is None for p in model.parameters()] == empty
        for parameter in model.parameters():
            assert parameter.grad is None or parameter.grad.stride() == parameter.stride(), (
                "else fused optimizers mix weights up"
            )
        found[name] = (_error(_gradients(model, loss), whole), abs(float(result.loss / expected) - 1), unused)
    return found


def _weight_is_given(group: Any, sizes: tuple[int, ...]) -> list[float]:
    """With sizes, with positions in another order, as a stream; and added to a gradient that is there."""
    rank, share = dist.get_rank(group), slices(sizes)[dist.get_rank(group)]
    inputs, labels = _made(classes, 1)
    loss, reference = losses.CrossEntropy(), _made(dropping)
    Accumulator(reference, loss, micro_batch_size=N, seed=7).backward(inputs, labels, step=0)
    expected, errors = _gradients(reference), []
    own = (inputs[share], labels[share])
    order = torch.arange(N)[rank :: len(sizes)]
    calls: list[Callable[[Accumulator], object]] = [
        lambda it: it.backward(*own, step=0, weight=float(N), sizes=sizes),
        lambda it: it.backward(inputs[order], labels[order], step=0, weight=float(N), positions=order),
        lambda it: it.backward_stream(
            zip(own[0].split(3), own[1].split(3), strict=True) if len(own[0]) else [], float(N), step=0, start=share.start
        ),
    ]
    for call in calls:
        model = _made(dropping)
        for times in (1, 2):
            call(Accumulator(model, loss, micro_batch_size=4, seed=7, group=group))
            errors.append(_error(_gradients(model), times * expected))
    return errors


def _sizes_are_given(group: Any, sizes: tuple[int, ...]) -> float:
    """To a loss that is called per sample, whose weight is known from the forward passes only."""
    rank, (inputs, labels) = dist.get_rank(group), _made(classes, 1)
    share, model, loss = slices(sizes)[rank], _made(dropping), Margin()
    Accumulator(model, loss, micro_batch_size=N, seed=7).backward(inputs, labels, step=0)
    expected, model, loss = _gradients(model, loss), _made(dropping), Margin()
    given = (inputs[share], labels[share]) if sizes[rank] else (None, None)
    Accumulator(model, loss, micro_batch_size=4, seed=7, group=group).backward(*given, step=0, sizes=sizes)
    return _error(_gradients(model, loss), expected)


def _failure_is_announced(group: Any, sizes: tuple[int, ...], rank: int) -> str:
    """One process cannot prepare its samples, where the weight is given."""
    inputs, labels = _made(classes, 1)
    share = slices(sizes)[rank]
    accumulator = Accumulator(_made(dropping), losses.CrossEntropy(), micro_batch_size=4, seed=7, group=group)
    given = (inputs[share], labels[share]) if sizes[rank] else (None, None)
    call = partial(accumulator.backward, *given) if rank != 1 else partial(accumulator.fail, MemoryError("no memory left"))
    with pytest.raises((MemoryError, OtherProcessError)) as caught:
        call(weight=float(N), sizes=sizes)
    return type(caught.value).__name__


def _controls(group: Any, sizes: tuple[int, ...]) -> list[float]:
    """The mean of the processes' own means, and positions that are those of the share: both must be wrong."""
    share = slices(sizes)[dist.get_rank(group)]
    inputs, labels = _made(classes, 1)
    model = _made(dropping)
    Accumulator(model, losses.CrossEntropy(), micro_batch_size=N, seed=7).backward(inputs, labels, step=0)
    expected, errors = _gradients(model), []
    model = _made(dropping)
    places = torch.arange(N)[share]
    Accumulator(model, losses.CrossEntropy(), micro_batch_size=4, seed=7).backward(
        inputs[share], labels[share], step=0, positions=places
    )
    mean = _gradients(model) / len(sizes)
    dist.all_reduce(mean, group=group)
    errors.append(_error(mean, expected))
    model = _made(dropping)
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=4, seed=7, group=group)
    accumulator.backward(
        inputs[share], labels[share], step=0, weight=float(N), positions=torch.arange(sizes[dist.get_rank(group)])
    )
    errors.append(_error(_gradients(model), expected))
    return errors


def _noise(group: Any, sizes: tuple[int, ...]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The estimates of the processes' shares, and of the same cut in one process."""
    rank = dist.get_rank(group)
    inputs, labels = _made(classes, 1)
    labels[:3] = -100
    weights = losses.CrossEntropy(torch.tensor([1.0, 2.0, 1.0, 3.0, 0.5]))
    parts = slices(sizes)
    alone = Accumulator(_made(dropping), weights, micro_batch_size=N, seed=7, noise="every")
    cut = [(inputs[part], labels[part]) for part in parts if part.stop > part.start]
    expected = alone.backward_stream(cut, weights.weight(labels), step=0).noise
    shared = Accumulator(_made(dropping), weights, micro_batch_size=5, seed=7, noise="first", group=group)
    found = shared.backward(inputs[parts[rank]], labels[parts[rank]], step=0).noise
    assert expected is not None
    assert found is not None
    return found.estimate(), expected.estimate()


def _statistics(group: Any, sizes: tuple[int, ...]) -> float:
    """The running statistics of a first layer, against one pass over the whole batch."""

    def normed() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5))

    inputs, labels = _made(classes, 1)
    share = slices(sizes)[dist.get_rank(group)]
    expected = _made(normed)
    expected(inputs)
    model = _made(normed)
    statistics = DeferredStatistics(model)
    options = {"micro_batch_size": 5, "statistics": statistics, "self_check": False}
    given = (inputs[share], labels[share]) if sizes[dist.get_rank(group)] else (None, None)
    Accumulator(model, losses.CrossEntropy(), group=group, **options).backward(*given)  # type: ignore[arg-type]
    if min(sizes) >= 4:  # the same batch in two calls
        statistics.discard()
        for part in (slice(0, 2), slice(2, None)):
            Accumulator(model, losses.CrossEntropy(), group=group, **options).backward(  # type: ignore[arg-type]
                given[0][part], given[1][part]
            )
    statistics.commit()
    return max(
        float((model[0].running_mean - expected[0].running_mean).abs().max()),
        float((model[0].running_var - expected[0].running_var).abs().max()),
    )


class _Unreadable(list[int]):
    """What a step cannot copy, and so not put back: it fails before its first pass."""

    def __iter__(self) -> Iterator[int]:
        raise MemoryError("no memory for a copy")


KEPT: list[Any] = []  # not in the model: a failed step puts back what it holds


class _Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.fails = dropping(), False

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.inner(inputs)
        if self.fails:
            KEPT.append(weakref.ref(hidden.untyped_storage()))
            raise MemoryError("no memory left")
        return hidden


def _faults(group: Any) -> list[str]:
    """One process fails in its pass, gives a batch that does not fit, or another weight: all learn it, and go on."""
    rank, count = dist.get_rank(group), dist.get_world_size(group)
    inputs, labels = _made(classes, 1)
    share = torch.arange(N)[rank::count]
    model, said = _made(_Failing), []
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=4, seed=7, self_check=False, group=group)

    def attempt(*given: Any, **options: Any) -> None:
        before = copy.deepcopy(model.state_dict())
        try:
            accumulator.backward(*given, **options)
        except (MemoryError, OtherProcessError, TypeError, ValueError, LossError) as error:
            said.append(f"{type(error).__name__}: {error}")
        else:
            said.append("exact")
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    model.fails = rank == 1
    attempt(inputs[share], labels[share])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(storage() is None for storage in KEPT), "memory is free again, without the garbage collector"
    assert bool(KEPT) == (rank == 1)
    model.fails = False
    model.listed = _Unreadable() if rank == 1 else []
    attempt(inputs[share], labels[share])
    model.listed = []
    attempt(inputs[share], labels[share], weight=float(N), positions=share if rank else 3)
    attempt(inputs[share], labels[share], weight=float(N), sizes=[len(share)] * count if rank else 3)
    attempt(inputs[share], labels[share][: -1 if rank == 0 else None])
    attempt(inputs[share], labels[share], weight=float(N) if rank else N + 1.0, positions=share)
    attempt(inputs[share], labels[share], weight=N + 1.0, positions=share)
    attempt(inputs[share], torch.full_like(labels[share], -100))
    assert all(parameter.grad is None for parameter in model.parameters())
    attempt(inputs[share], labels[share])
    assert all(parameter.grad is not None for parameter in model.parameters())
    return said


def _no_room_for_the_vector(group: Any, rank: int) -> list[str]:
    """A gradient cannot be copied for the sum, in one process: all fail, and the next step is whole."""
    inputs, labels = _made(classes, 1)
    share, said, fill = torch.arange(N)[rank :: dist.get_world_size(group)], [], GradientSum.fill
    accumulator = Accumulator(_made(dropping), losses.CrossEntropy(), micro_batch_size=4, seed=7, group=group)
    for fails in (rank == 1, False):
        GradientSum.fill = _raise_memory_error if fails else fill  # type: ignore[method-assign] # for this process only
        try:
            said.append(f"{float(accumulator.backward(inputs[share], labels[share]).loss):.3f}")
        except (MemoryError, OtherProcessError) as error:
            said.append(type(error).__name__)
    return said


def _raise_memory_error(*_: Any) -> None:
    raise MemoryError("no room\nfor this")


def _out_of_step(group: Any, rank: int) -> str:
    """The last process fails between two sums, and ends; so do the others, that wait for it. The group is lost."""
    inputs, labels = _made(classes, 1)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5))
    statistics, share = DeferredStatistics(model), torch.arange(N)[rank :: dist.get_world_size(group)]
    if rank == dist.get_world_size(group) - 1:
        ChannelStatistics.move_mean = _raise_memory_error  # type: ignore[method-assign] # for this process only
    accumulator = Accumulator(
        model, losses.CrossEntropy(), micro_batch_size=8, statistics=statistics, self_check=False, group=group
    )
    with pytest.raises((LostStepError, RuntimeError)) as caught:
        accumulator.backward(inputs[share], labels[share])
    assert all(parameter.grad is None for parameter in model.parameters())
    return f"{type(caught.value).__name__}: {caught.value}"


def _refusals(group: Any) -> list[str]:
    """What would be another model in each process, on all processes alike."""
    inputs, labels = _made(classes, 1)
    batch_norm = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5))
    free = nn.Parameter(torch.ones(()))
    cases: list[tuple[nn.Module, Any]] = [
        (batch_norm, losses.CrossEntropy()),
        (nn.Sequential(nn.SyncBatchNorm(6), nn.Linear(6, 5)), losses.CrossEntropy()),
        (DistributedDataParallel(dropping(), process_group=group), losses.CrossEntropy()),
        (dropping(), lambda outputs, targets: F.cross_entropy(outputs * free, targets, reduction="none")),
    ]
    said = []
    for model, loss in cases:
        with pytest.raises((ValueError, LossError)) as caught:
            Accumulator(model, loss, micro_batch_size=4, self_check=False, group=group).backward(inputs, labels)
        said.append(str(caught.value))
    return said


def _one_is_none() -> bool:
    """A group of one process is no group: the same bits."""
    group = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    inputs, labels = _made(classes, 1)
    found = []
    for options in ({}, {"group": group}):
        model = _made(dropping)
        Accumulator(model, losses.CrossEntropy(), micro_batch_size=4, seed=7, **options).backward(inputs, labels)
        found.append(_gradients(model))
    return torch.equal(*found)


def _work(rank: int, place: str) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/group", rank=rank, world_size=4, timeout=timedelta(minutes=2))
    groups = {count: dist.new_group(list(range(count))) for count in SHARES}
    found: dict[str, Any] = {"one": _one_is_none()}
    for count, group in groups.items():
        if rank >= count:
            continue
        for number, (sizes, micro) in enumerate(SHARES[count]):
            with _counted() as seen:
                found[f"{count} {number} exact"] = _exactness(group, sizes, micro, None if number % 2 else "every")
            found[f"{count} {number} collectives"] = seen
            if 1 not in sizes:  # BatchNorm takes no single sample
                found[f"{count} {number} statistics"] = _statistics(group, sizes)
            with _counted() as seen:
                found[f"{count} {number} given"] = _weight_is_given(group, sizes)
            found[f"{count} {number} given collectives"] = seen
            with _counted() as seen:
                found[f"{count} {number} sized"] = _sizes_are_given(group, sizes)
                found[f"{count} {number} announced"] = _failure_is_announced(group, sizes, rank)
            found[f"{count} {number} sized collectives"] = seen
        found[f"{count} controls"] = _controls(group, SHARES[count][0][0])
        found[f"{count} noise"] = _noise(group, SHARES[count][0][0])
        with _counted() as seen:
            found[f"{count} faults"] = _faults(group)
        found[f"{count} fault collectives"] = seen
        found[f"{count} refused"] = _refusals(group)
        found[f"{count} vector"] = _no_room_for_the_vector(group, rank)
    found["lost"] = _out_of_step(groups[4], rank)
    torch.save(found, f"{place}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of four processes found, in groups of two, three and four of them."""
    place = tmp_path_factory.mktemp("group")
    torch.multiprocessing.spawn(_work, (str(place),), nprocs=4)
    return [torch.load(place / f"{rank}.pt", weights_only=False) for rank in range(4)]


pytestmark = pytest.mark.slow


def _all(processes: list[dict[str, Any]], ending: str) -> Iterator[Any]:
    found = [(key, value) for process in processes for key, value in process.items() if key.endswith(ending)]
    assert len(found) >= 9
    yield from (value for _, value in found)


@pytest.mark.parametrize("case", CASES)
def test_each_process_ends_with_the_gradient_of_the_whole_batch(processes: list[dict[str, Any]], case: str) -> None:
    for errors in _all(processes, "exact"):
        gradient, loss, unused = errors[case]
        assert gradient <= CASES[case][-1]
        assert loss <= 3 * CASES[case][-1]
        assert unused, "parameters that no sample reaches have no gradient"


def test_the_weight_may_be_given_with_sizes_positions_or_in_a_stream(processes: list[dict[str, Any]]) -> None:
    assert max(max(errors) for errors in _all(processes, "given")) <= 1e-12
    assert max(_all(processes, "sized")) <= 1e-12


def test_a_process_without_samples_fails_in_all_where_the_weight_is_given(processes: list[dict[str, Any]]) -> None:
    for rank, process in enumerate(processes):
        for name in (name for name in process if name.endswith("announced")):
            assert process[name] == ("MemoryError" if rank == 1 else "OtherProcessError")


def test_means_of_means_and_forgotten_positions_are_wrong(processes: list[dict[str, Any]]) -> None:
    for means, positions in _all(processes, "controls"):
        assert means > 1e-3
        assert positions > 1e-3


def test_the_noise_scale_is_that_of_the_processes_shares(processes: list[dict[str, Any]]) -> None:
    for found, expected in _all(processes, "noise"):
        assert found == pytest.approx(expected, rel=1e-9)


def test_running_statistics_are_pooled(processes: list[dict[str, Any]]) -> None:
    assert max(_all(processes, "statistics")) <= 1e-12


def test_every_process_issues_the_same_collectives(processes: list[dict[str, Any]]) -> None:
    """Two a step, and one more where the weight is not given, also where a process has no sample, or fails."""
    for count in SHARES:
        for key in (key for key in processes[0] if key.startswith(f"{count} ") and key.endswith("collectives")):
            assert len({str(process[key]) for process in processes[:count]}) == 1, key
        assert len(processes[0][f"{count} 0 collectives"]) == 3 * len(CASES)
        assert len(processes[0][f"{count} 0 given collectives"]) == 2 * 6
        assert len(processes[0][f"{count} 0 sized collectives"]) == 2 + 1, "the step that fails ends with the agreement"
        assert len(processes[0][f"{count} fault collectives"]) == 2 * 3 + 2 * 3 + 4, (
            "a wrong weight ends a step earlier, in all"
        )


def test_what_fails_in_one_process_is_known_in_all_and_the_next_step_is_whole(processes: list[dict[str, Any]]) -> None:
    for count in SHARES:
        for rank, process in enumerate(processes[:count]):
            memory, copy_of_state, positions, sizes, batch, *weights, nothing, whole = process[f"{count} faults"]
            assert memory.startswith(
                "MemoryError" if rank == 1 else "OtherProcessError: process 1: expected its share of the step"
            )
            assert copy_of_state.startswith(
                "MemoryError: no memory for a copy" if rank == 1 else "OtherProcessError: process 1"
            )
            assert positions.startswith("TypeError" if rank == 0 else "OtherProcessError: process 0")
            assert sizes.startswith("TypeError" if rank == 0 else ("OtherProcessError", "ValueError: sizes"))
            assert batch.startswith("ValueError: batch" if rank == 0 else "OtherProcessError: process 0")
            assert weights[0].startswith("LossError: weight: expected the same in all processes")
            assert weights[1].startswith("LossError: weight: expected that of all micro-batches together, 23, got 24")
            assert (nothing, whole) == ("exact", "exact")


def test_what_takes_memory_is_done_before_the_processes_agree(processes: list[dict[str, Any]]) -> None:
    for count in SHARES:
        for rank, process in enumerate(processes[:count]):
            failed, whole = process[f"{count} vector"]
            assert failed == ("MemoryError" if rank == 1 else "OtherProcessError")
            assert whole == processes[0][f"{count} vector"][1]


def test_an_error_between_two_sums_ends_all_processes(processes: list[dict[str, Any]]) -> None:
    """None waits for the time limit of the group."""
    *others, last = (process["lost"] for process in processes)
    assert last == (
        "LostStepError: process 3: expected its part of the sums that others wait for, got MemoryError: no room; start all "
        "processes again"
    )
    for lost in others:
        assert lost.startswith("RuntimeError: ")
        assert "Timed out" not in lost


def test_models_that_would_differ_between_processes_are_refused(processes: list[dict[str, Any]]) -> None:
    for kept, talking, wrapped, free in _all(processes, "refused"):
        assert "running statistics that all processes share, got those of BatchNorm1d" in kept
        assert "got 0 (SyncBatchNorm)" in talking
        assert "got DistributedDataParallel" in wrapped
        assert "loss: expected its parameters to be those of a module" in free


def test_a_group_of_one_is_no_group(processes: list[dict[str, Any]], tmp_path: Path) -> None:
    del tmp_path
    assert all(process["one"] for process in processes)
