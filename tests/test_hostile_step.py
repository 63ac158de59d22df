"""Threads, processes, the noise scale, and what a step leaves behind: what takes more than a model and a batch."""

import contextlib
import copy
import itertools
import random
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from bigstep import Accumulator, losses
from bigstep.errors import ExactnessError, ExactnessWarning
from bigstep.randomness.torch_internals import all_modules
from bigstep.step.batch_norm import DeferredStatistics
from bigstep.step.batch_structure import BatchStructure
from bigstep.step.noise_scale import NoiseScale
from bigstep.step.preserved_state import StateGuard
from bigstep.step.self_check import SelfCheck
from bigstep.step.torch_internals import all_parameters
from hostile import CLASSES, Average, Between, Codebook, LayerDrop, N, around, batch, dropping, mlp
from oracles import full_batch_gradients, keyed_gradients, relative_error

pytestmark = pytest.mark.usefixtures("float64_by_default")

CPU = torch.device("cpu")
CROSS_ENTROPY = losses.CrossEntropy()


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return make()


def train(model: nn.Module, steps: int) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    accumulator = Accumulator(model, CROSS_ENTROPY, micro_batch_size=8, seed=5)
    for step in range(steps):
        accumulator.backward(*batch(), step=step)
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_threads_that_draw_beside_a_keyed_step_change_nothing_and_are_not_changed() -> None:
    """A1: one draws from the default generator, one from its own; this was a segmentation fault."""
    alone = train(seeded(dropping), 300)
    model, stop = seeded(dropping), threading.Event()
    own, drawn = torch.Generator().manual_seed(9), ([], [])

    def draw(into: list[Tensor], generator: torch.Generator | None) -> None:
        while not stop.is_set():
            into.append(torch.rand(24, generator=generator, dtype=torch.float64))

    torch.manual_seed(77)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # take turns often
    threads = [threading.Thread(target=draw, args=pair) for pair in zip(drawn, (None, own), strict=True)]
    for thread in threads:
        thread.start()
    try:
        beside = train(model, 300)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert torch.equal(beside, alone)
    for numbers, generator in zip(drawn, (torch.default_generator.manual_seed(77), own.manual_seed(9)), strict=True):
        assert len(numbers) > 100
        assert all(torch.equal(torch.rand(24, generator=generator), number) for number in numbers)


def test_a_stream_of_a_model_that_skips_layers_by_chance_is_exact_in_every_step() -> None:
    """A stream cannot be run again, so what a step will skip has to be known before its first micro-batch."""
    whole, stream = (Accumulator(seeded(lambda: LayerDrop(0.3)), CROSS_ENTROPY, micro_batch_size=4, seed=5) for _ in range(2))
    inputs, labels = torch.randn(12, 6), torch.randint(0, 4, (12,))
    for step in range(40):
        expected = whole.backward(inputs, labels, step=step)
        parts = zip(inputs.split([5, 4, 3]), labels.split([5, 4, 3]), strict=True)
        found = stream.backward_stream(parts, 12.0, step=step)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)


PART = (slice(0, 10), slice(10, N))


def centred(hidden: Tensor) -> Tensor:
    return hidden - hidden.mean(0)


def _exchange(rank: int, place: str) -> None:
    """One of two processes: unequal shares, unequally many ignored labels; whole-batch gradients are expected."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/group", rank=rank, world_size=2)
    inputs, labels = batch()
    labels[:7] = -100
    share = (inputs[PART[rank]], labels[PART[rank]])
    expected, _ = keyed_gradients(seeded(dropping), 3, 0, F.cross_entropy, inputs, labels)
    errors = []
    for options in ({}, {"gradient_as_bucket_view": True}):
        model = DistributedDataParallel(seeded(dropping), **options)
        accumulator = Accumulator(model, CROSS_ENTROPY, micro_batch_size=3, seed=3, self_check=rank == 0)  # no collectives
        for _ in range(3):
            weight = CROSS_ENTROPY.weight(labels) / 2
            accumulator.backward(*share, step=0, positions=torch.arange(N)[PART[rank]], weight=weight)
            errors.append(relative_error(model, expected))
            model.zero_grad(set_to_none=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ExactnessWarning)
        Accumulator(model, CROSS_ENTROPY, micro_batch_size=3, seed=3).backward(*share)
    coupled = DistributedDataParallel(Between(centred), init_sync=False)
    with pytest.raises(ExactnessError) as refused:
        Accumulator(coupled, CROSS_ENTROPY, micro_batch_size=3, seed=3).backward(
            *share, weight=CROSS_ENTROPY.weight(labels) / 2
        )
    torch.save((errors, [str(item.message) for item in caught], str(refused.value)), f"{place}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_with_unequal_shares_have_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    """B8, B9: also with views of DDP's buckets; without weight= there is a warning, and a coupled model is refused."""
    torch.multiprocessing.spawn(_exchange, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        errors, warned, refused = torch.load(tmp_path / f"{rank}.pt")
        assert len(errors) == 6
        assert max(errors) <= 1e-12
        assert ["exact only where their weights are equal" in text for text in warned] == [True]
        assert "layers that treat samples apart" in refused


@pytest.mark.slow
def test_gradients_that_are_views_of_a_flat_buffer_are_added_to_in_place() -> None:
    """B10."""
    model = seeded(mlp)
    expected, _ = full_batch_gradients(model, F.cross_entropy, *batch())
    sizes = [parameter.numel() for parameter in model.parameters()]
    flat = torch.ones(sum(sizes))
    for parameter, piece in zip(model.parameters(), flat.split(sizes), strict=True):
        parameter.grad = piece.view_as(parameter)
    Accumulator(model, CROSS_ENTROPY, micro_batch_size=3).backward(*batch())
    torch.testing.assert_close(flat, torch.cat([gradient.flatten() for gradient in expected]) + 1, rtol=1e-12, atol=1e-14)
    assert relative_error(model, [gradient + 1 for gradient in expected]) <= 1e-12


@pytest.mark.parametrize("noise", [None, "first", "every"])
def test_sparse_gradients_are_added_to_dense_ones(noise: str | None) -> None:
    """C3."""
    torch.manual_seed(1)
    embedding = nn.Embedding(10, 4, sparse=True)
    model, inputs = nn.Sequential(embedding, nn.Flatten(), nn.Linear(8, CLASSES)), torch.randint(0, 10, (N, 2))
    F.cross_entropy(model(inputs), batch()[1]).backward()
    expected = embedding.weight.grad.to_dense() + 1
    embedding.weight.grad = torch.ones(10, 4)
    Accumulator(model, CROSS_ENTROPY, micro_batch_size=3, noise=noise).backward(inputs, batch()[1])
    assert float((embedding.weight.grad - expected).norm()) <= 1e-12


@pytest.mark.parametrize("kind", ["first", "every"])
def test_the_noise_scale_of_very_unequal_weights_is_unbiased(kind: str) -> None:
    """B11: 1 and 19, one in ten; for l = |w - x|^2 / 2 and x ~ N(mu, 1) S is the dimension and G2 is |w - mu|^2."""
    generator = torch.Generator().manual_seed(0)
    dim, distance = 20, torch.linspace(0.1, 0.8, 20)
    model = nn.Linear(dim, 1, bias=False)
    model.weight.data = distance[None].clone()

    def loss(outputs: Tensor, targets: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        points, weights = targets
        return outputs.sum() * 0 + (model.weight - points).square().sum(dim=1) / 2, weights

    accumulator = Accumulator(model, loss, micro_batch_size=16, noise=kind, self_check=False)
    found, traces = [], []
    for _ in range(400):
        points = torch.randn(64, dim, generator=generator)
        weights = torch.where(torch.rand(64, generator=generator) < 0.1, 19.0, 1.0)
        sample = accumulator.backward(points, (points, weights)).noise
        if sample is not None:
            trace, gradient = sample.estimate()
            found.append(gradient)
            traces.append(trace * float(weights.sum() ** 2 / weights.square().sum()) / 64)
        model.zero_grad()
    assert len(found) > 300
    for values, true in ((found, float(distance.square().sum())), (traces, float(dim))):
        mean, error = float(np.mean(values)), float(np.std(values)) / len(values) ** 0.5
        assert error < 0.1 * true
        assert abs(mean - true) < 3 * error


def _weighted(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return F.cross_entropy(outputs, targets.clamp(0), reduction="none"), (targets >= 0).double()


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, _weighted], ids=["bigstep's", "callable"])
@pytest.mark.parametrize("kind", ["first", "every"])
def test_a_micro_batch_without_weight_is_left_out_of_the_noise_scale(kind: str, loss: Any) -> None:
    """B12, C1."""
    model, scale = seeded(mlp), NoiseScale()
    accumulator = Accumulator(model, loss, micro_batch_size=4, noise=kind)
    inputs, labels = batch()
    for count in (4, 0, 4, 0):
        hidden = labels.clone()
        hidden[:count] = -100
        sample = accumulator.backward(inputs, hidden).noise
        assert sample is not None
        assert len(sample.sizes) == (3 if count else 4)
        scale.update(sample)
    assert all(np.isfinite(scale.sums()))


def test_a_momentum_that_the_user_sets_is_kept() -> None:
    """B13."""
    layer = nn.BatchNorm1d(8)
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, CLASSES)))
    statistics = DeferredStatistics(model)
    layer.momentum = 0.01
    accumulator = Accumulator(model, CROSS_ENTROPY, micro_batch_size=8, statistics=statistics, self_check=False)
    accumulator.backward(*batch())
    statistics.commit()
    assert layer.momentum == 0.01
    torch.testing.assert_close(layer.running_mean, 0.01 * model[0](batch()[0]).mean(0).detach())


class Failing(nn.Module):
    """Changes everything it can, and fails in its third pass."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.passes = nn.Linear(6, CLASSES), 0
        self.seen, self.by_size, self.shape = [], {"sizes": [0]}, (0, 0)
        self.register_buffer("assigned", torch.zeros(6))
        self.register_buffer("written", torch.zeros(6))

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        self.assigned = 0.9 * self.assigned + inputs.detach().mean(0)
        self.written.add_(1)
        self.seen.append(len(inputs))
        self.shape = tuple(inputs.shape)
        self.by_size["sizes"].append(len(inputs))
        if self.passes == 3:
            raise OSError("third pass")
        return self.head(F.dropout(inputs, 0.5))


@pytest.mark.parametrize("seed", [None, 5])
def test_an_exception_leaves_everything_as_it_was(seed: int | None) -> None:
    """B14."""
    model = seeded(Failing)
    gradients = [torch.full_like(parameter, 7.0) for parameter in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    states = _states()
    with pytest.raises(OSError, match="third pass"):
        Accumulator(model, CROSS_ENTROPY, micro_batch_size=2, seed=seed, self_check=False).backward(*batch())
    assert (model.passes, model.seen, model.by_size, model.shape) == (0, [], {"sizes": [0]}, (0, 0))
    assert model.assigned.tolist() == model.written.tolist() == [0.0] * 6
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert (gradient == 7).all()
    assert _states()[0] == states[0]


class Following(nn.Module):
    """Has a second layer that follows the first in every forward pass, as the momentum encoders of BYOL and MoCo do."""

    def __init__(self, share: float = 1.0, *, assigns: bool = False) -> None:
        super().__init__()
        self.head, self.slow, self.fails = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES).requires_grad_(False), False
        self.share, self.assigns = share, assigns

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and not self.assigns:
            for slow, fast in zip(self.slow.parameters(), self.head.parameters(), strict=True):
                slow.data.lerp_(fast.detach(), 0.1)
        elif self.training:
            self.slow.weight = nn.Parameter(self.slow.weight.lerp(self.head.weight.detach(), 0.1), requires_grad=False)
        if self.fails:
            raise OSError("after the copy has moved")
        return self.head(inputs) + self.share * self.slow(inputs)


@pytest.mark.parametrize(
    ("share", "found"), [(1.0, r"got 'slow' \(Linear\)"), (0.0, r"got the parameter 'slow\.(weight|bias)', which moves once")]
)
def test_parameters_without_gradient_that_forward_writes_are_as_before_and_refused(share: float, found: str) -> None:
    model = seeded(lambda: Following(share))
    before = [parameter.clone() for parameter in model.slow.parameters()]
    with pytest.raises(ExactnessError, match=found):
        Accumulator(model, CROSS_ENTROPY, micro_batch_size=4).backward(*batch())
    for now, then in zip(model.slow.parameters(), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("assigns", [False, True])
def test_an_exception_gives_back_parameters_without_gradient(assigns: bool) -> None:
    model = seeded(lambda: Following(assigns=assigns))
    accumulator = Accumulator(model, CROSS_ENTROPY, micro_batch_size=16, self_check=False)
    for fails in (False, False, True, True):
        model.fails = fails
        before = model.slow.weight.clone()
        with contextlib.suppress(OSError):
            accumulator.backward(*batch())
        assert torch.equal(model.slow.weight, before) is fails


def test_a_frozen_network_below_an_adapter_is_not_copied() -> None:
    model = nn.Sequential(nn.Linear(6, 512).requires_grad_(False), nn.Linear(512, CLASSES))
    state = StateGuard(model).state()
    assert model[0].weight not in {slot.value for module in state.changing for slot in module.slots}


def _shard(_rank: int, place: str) -> None:
    """One process alone, with a frozen layer below FSDP2, whose loss fails once."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/group", rank=0, world_size=1)
    plain = seeded(mlp)
    plain[0].requires_grad_(requires_grad=False)
    model = fully_shard(copy.deepcopy(plain), mesh=init_device_mesh("cpu", (1,)))
    calls, failed = itertools.count(), []

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        if next(calls) == 4:
            failed.append(True)
            raise OSError("once")
        return F.cross_entropy(outputs, labels, reduction="none")

    accumulator = Accumulator(model, loss, micro_batch_size=8, seed=3)
    for _ in range(3):
        with contextlib.suppress(OSError), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExactnessWarning)
            accumulator.backward(*batch())
            F.cross_entropy(plain(batch()[0]), batch()[1]).backward()
    found = [parameter.grad.full_tensor() for parameter in model.parameters() if parameter.requires_grad]
    expected = [parameter.grad for parameter in plain.parameters() if parameter.requires_grad]
    torch.save((found, expected, failed), f"{place}/found.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_frozen_layer_below_fsdp2_is_left_to_it(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_shard, (str(tmp_path),), nprocs=1)
    found, expected, failed = torch.load(tmp_path / "found.pt")
    assert failed == [True]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


class Sparse(nn.Module):
    """A fixed graph as a sparse parameter, and a small parameter beside a teacher that is as large as the student."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = nn.Parameter(torch.eye(6).to_sparse(), requires_grad=False)
        self.head, self.teacher = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES).requires_grad_(False)
        self.center = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            self.center += 1
        return self.head(torch.sparse.mm(self.graph, inputs.T).T)


def test_small_frozen_parameters_are_put_back_beside_large_and_sparse_ones() -> None:
    model = Sparse()
    with pytest.raises(ExactnessError, match="got the parameter 'center'"):
        Accumulator(model, CROSS_ENTROPY, micro_batch_size=4).backward(*batch())
    assert model.center.item() == 0
    Accumulator(model, CROSS_ENTROPY, micro_batch_size=4, self_check=False).backward(*batch())


def test_a_parameter_that_is_frozen_later_is_put_back() -> None:
    model = seeded(lambda: Following(0.0))
    model.slow.requires_grad_()
    accumulator = Accumulator(model, CROSS_ENTROPY, micro_batch_size=16, self_check=False)
    accumulator.backward(*batch())
    model.slow.requires_grad_(requires_grad=False)
    before, model.fails = model.slow.weight.clone(), True
    with pytest.raises(OSError, match="has moved"):
        accumulator.backward(*batch())
    assert torch.equal(model.slow.weight, before)


class FailingLater(nn.Module):
    """Leaves its second layer alone in every pass but the last, which changes it and fails."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fails = nn.Linear(6, 6), nn.Sequential(nn.LayerNorm(6), nn.Linear(6, CLASSES)), False

    def forward(self, inputs: Tensor) -> Tensor:
        if self.fails:
            self.second[0].eps, self.second[0].added, self.second.name = 0.5, [1], "changed"
            raise OSError("later")
        return self.second(self.first(inputs))


def test_an_exception_gives_back_what_no_step_before_has_changed() -> None:
    model = seeded(FailingLater)
    accumulator = Accumulator(model, CROSS_ENTROPY, micro_batch_size=2)
    for _ in range(3):
        accumulator.backward(*batch())
    model.second[0].eps = 0.25  # by the user, between two steps
    model.fails = True
    with pytest.raises(OSError, match="later"):
        accumulator.backward(*batch())
    assert model.second[0].eps == 0.25
    assert not hasattr(model.second[0], "added")
    assert not hasattr(model.second, "name")
    assert model.fails
    model.fails = False
    accumulator.backward(*batch())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_keyed_uniform_numbers_are_never_one(dtype: torch.dtype) -> None:
    """B15: one in six hundred was, in bfloat16."""
    seen = []

    def draw(hidden: Tensor) -> Tensor:
        numbers = torch.rand(len(hidden), 4096, dtype=dtype)
        seen.append((float(numbers.min()), float(numbers.max())))
        return hidden

    Accumulator(Between(draw), CROSS_ENTROPY, micro_batch_size=8, seed=5).backward(*batch())
    assert max(largest for _, largest in seen) < 1
    assert min(smallest for smallest, _ in seen) >= 0
    assert seen[-1][1] > 0.99


def _states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 # the one users draw from
    return torch.random.get_rng_state().tolist(), random.getstate(), (kind, keys.tolist(), *rest)


def _plain(model: nn.Module) -> dict[str, str]:
    return {key: repr(value) for key, value in vars(model).items() if type(value) in (int, float, list, dict)}


def _draw_from_everywhere(hidden: Tensor) -> Tensor:
    return F.dropout(hidden, 0.5) * random.random() * float(np.random.rand())  # noqa: NPY002


@pytest.mark.parametrize(
    ("make", "outcome"),
    [
        (lambda: Between(lambda hidden: F.dropout(hidden, 0.5)), contextlib.nullcontext()),
        (lambda: Between(_draw_from_everywhere), pytest.warns(ExactnessWarning, match="not checked")),
        (Average, pytest.raises(ExactnessError)),
        (lambda: around(Codebook()).model, pytest.raises(ExactnessError)),
        (Failing, pytest.raises(OSError, match="third pass")),
    ],
    ids=["dropout", "draws from everywhere", "assigns a buffer", "writes a buffer", "fails"],
)
def test_the_self_check_leaves_everything_as_it_was(make: Callable[[], nn.Module], outcome: Any) -> None:
    model = seeded(make)
    gradients = [torch.full_like(parameter, 7.0) for parameter in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    plain = _plain(model)
    states = _states()
    with outcome:
        SelfCheck(model, CROSS_ENTROPY, None).check(BatchStructure(*batch()), 8, CPU)
    assert _states() == states
    assert _plain(model) == plain
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert (gradient == 7).all()


class Counted(nn.Module):
    """Notes for each pass whether autocast was on, in a list that is not its own, so that nothing puts it back."""

    def __init__(self, passes: list[bool]) -> None:
        super().__init__()
        self.inner, self.note = mlp(), passes.append

    def forward(self, inputs: Tensor) -> Tensor:
        self.note(torch.is_autocast_enabled("cpu"))
        return self.inner(inputs)


def test_the_self_check_runs_on_the_first_batch_and_after_modes_changed() -> None:
    passes: list[bool] = []
    model = Counted(passes)
    accumulator = Accumulator(model, CROSS_ENTROPY, micro_batch_size=8)
    counts = []
    for mode in (True, True, False, False, True):
        model.train(mode)
        passes.clear()
        accumulator.backward(*batch())
        counts.append(len(passes))
    assert counts == [7, 2, 7, 2, 2]  # a probe, one pass together and three of parts, and the step's two
    model.inner[1] = nn.ReLU()
    passes.clear()
    accumulator.backward(*batch())
    assert len(passes) == 7


def test_the_self_checks_switch_turns_it_off() -> None:
    passes: list[bool] = []
    model = Counted(passes)
    Accumulator(model, CROSS_ENTROPY, micro_batch_size=8, self_check=False).backward(*batch())
    assert len(passes) == 2
    Accumulator(Between(lambda z: z - z.mean(0)), CROSS_ENTROPY, micro_batch_size=8, self_check=False).backward(*batch())


def test_the_self_check_runs_without_autocast() -> None:
    passes: list[bool] = []
    model = Counted(passes).float()
    inputs, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        Accumulator(model, CROSS_ENTROPY, micro_batch_size=8, autocast=torch.bfloat16).backward(inputs.float(), labels)
    assert passes[-2:] == [True, True]
    assert not any(passes[:-2])


class _Uncopyable(Tensor):
    """A gradient for whose copy there is no memory."""

    def clone(self, **options: Any) -> Tensor:
        del options
        raise MemoryError("no memory for a copy")


def test_a_step_that_fails_at_once_gives_back_the_gradients_that_it_had_set_aside() -> None:
    model = nn.Linear(4, 2)
    flat = torch.ones(10)  # in the memory of which both gradients lie, so that they are copied
    gradients = [flat[:8].view(2, 4), flat[8:].as_subclass(_Uncopyable)]
    model.weight.grad, model.bias.grad = gradients
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=2, self_check=False)
    with pytest.raises(MemoryError, match="no memory for a copy"):
        accumulator.backward(torch.ones(4, 4), torch.zeros(4, dtype=torch.int64))
    assert model.weight.grad is gradients[0]
    assert model.bias.grad is gradients[1]


def test_modules_and_parameters_come_in_torchs_order_each_once() -> None:
    shared, late = nn.Linear(3, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 3))
    model = nn.Sequential(nn.Sequential(shared, late), nn.ModuleList([shared, nn.Sequential(late[1], nn.Linear(3, 2))]))
    model.register_module("none", None)
    model[1][1][1].weight = late[1].weight
    assert all_modules([model, late]) == list(model.modules())
    assert list(map(id, all_parameters([model, late]))) == list(map(id, model.parameters()))
