import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.convnext import CNBlockConfig
from torchvision.ops import StochasticDepth

from bigstep import Accumulator, losses
from bigstep.errors import ExactnessWarning, RandomnessError
from bigstep.randomness.calls import find_random_calls
from bigstep.randomness.counter_rng import bernoulli_mask, derive_seed, draw_words, normal_values, sample_states, uniform_values
from bigstep.randomness.kernels import drawing_from
from bigstep.randomness.keyed_randomness import KeyedRandomness
from bigstep.step.batch_norm import freeze_statistics
from oracles import keyed_gradients, probe, relative_error

N, CUTS = 12, (5, 4, 1, 12)


class _Wrapped(nn.Module):
    """A layer that draws, between layers that learn."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor], *, twice: bool = True) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(8, 8), layer, nn.Linear(8, 3)
        self.call, self.twice = call, twice

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.call(self.layer, self.first(inputs))
        if self.twice:  # with a single call torch's own generator would pass too
            hidden = self.call(self.layer, hidden)
        return self.last(hidden).mean(dim=1)


def _plain(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


def _swapped(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.transpose(0, 1)).transpose(0, 1)


def _attention(first: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    def call(layer: nn.Module, x: Tensor) -> Tensor:
        x = x if first else x.transpose(0, 1)
        out = layer(x, x, x, need_weights=False)[0]
        return out if first else out.transpose(0, 1)

    return call


def _fused(layer: nn.Module, x: Tensor) -> Tensor:
    del layer
    q = x.unsqueeze(1)
    return F.scaled_dot_product_attention(q, q, q, dropout_p=0.3).squeeze(1)


def _fused_without(layer: nn.Module, x: Tensor) -> Tensor:
    q = x.unsqueeze(1)
    return layer(F.scaled_dot_product_attention(q, q, q).squeeze(1))


def _native(layer: nn.Module, x: Tensor) -> Tensor:
    del layer
    return torch.native_dropout(torch.native_dropout(x, 0.0, True)[0], 0.3, True)[0]


def _own(layer: nn.Module, x: Tensor) -> Tensor:
    del layer
    noise = torch.randn_like(x) * 0.1 + torch.rand(len(x), 1, 1, dtype=x.dtype) + torch.rand((), dtype=x.dtype)
    return x * torch.bernoulli(torch.full_like(x, 0.7)) + noise


def _recompute(reentrant: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    def call(layer: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(layer, x, use_reentrant=reentrant)

    return call


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "dropout": (lambda: nn.Dropout(0.4), _plain),
    "dropout of one in a thousand": (lambda: nn.Dropout(0.001), _plain),
    "dropout1d": (lambda: nn.Dropout1d(0.4), _plain),
    "alpha dropout": (lambda: nn.AlphaDropout(0.4), _plain),
    "feature alpha dropout": (lambda: nn.FeatureAlphaDropout(0.4), _plain),
    "stochastic depth by row": (lambda: StochasticDepth(0.4, "row"), _plain),
    "stochastic depth by batch": (lambda: StochasticDepth(0.4, "batch"), _plain),
    "attention, batch first": (lambda: nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True), _attention(True)),
    "attention, sequence first": (lambda: nn.MultiheadAttention(8, 2, dropout=0.3), _attention(False)),
    "fused attention": (nn.Identity, _fused),
    "fused attention without dropout": (lambda: nn.Dropout(0.2), _fused_without),
    "native dropout": (nn.Identity, _native),
    "transformer, batch first": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True), _plain),
    "transformer, sequence first": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.3), _swapped),
    "lstm": (lambda: nn.LSTM(8, 8, num_layers=2, dropout=0.3), lambda layer, x: layer(x.transpose(0, 1))[0].transpose(0, 1)),
    "a user's own calls": (nn.Identity, _own),
    "checkpoint": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.4), nn.ReLU(), nn.Dropout(0.2)), _recompute(False)),
    "checkpoint, reentrant": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.4), nn.ReLU(), nn.Dropout(0.2)),
        _recompute(True),
    ),
}


def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    make, call = LAYERS[name]
    return _Wrapped(make(), call).double()


def _batch(count: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return torch.randn(count, 5, 8, dtype=torch.float64, generator=generator), labels


@pytest.mark.parametrize("name", LAYERS)
def test_masks_do_not_depend_on_the_cut(name: str) -> None:
    model, (inputs, labels) = _model(name), _batch()
    expected, loss = keyed_gradients(model, 7, 3, F.cross_entropy, inputs, labels)
    other, _ = keyed_gradients(model, 7, 4, F.cross_entropy, inputs, labels)
    if name not in ("dropout of one in a thousand", "stochastic depth by batch"):  # two steps may draw alike
        assert any((a != b).any() for a, b in zip(expected, other, strict=True)), "nothing was drawn"
    for cut in CUTS:
        accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=cut, seed=7)
        result = accumulator.backward(inputs, labels, step=3)
        assert relative_error(model, expected) <= 1e-12, cut
        torch.testing.assert_close(result.loss, loss, rtol=1e-12, atol=0)
        model.zero_grad()


def test_without_a_seed_the_masks_do_depend_on_the_cut() -> None:
    """The negative control: torch's generators are drawn from in order, so another cut is another mask."""
    model, (inputs, labels) = _model("dropout"), _batch()
    gradients = []
    for cut in (12, 4):
        torch.manual_seed(0)
        Accumulator(model, losses.CrossEntropy(), micro_batch_size=cut).backward(inputs, labels)
        gradients.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
    assert max(float((a - b).norm() / b.norm()) for a, b in zip(*gradients, strict=True)) > 0.1


def test_processes_that_share_a_batch_draw_its_masks_by_position() -> None:
    model, (inputs, labels) = _model("transformer, sequence first"), _batch()
    expected, _ = keyed_gradients(model, 7, 0, F.cross_entropy, inputs, labels)
    sums = [torch.zeros_like(p) for p in model.parameters()]
    for rank in range(2):
        places = torch.arange(N)[rank::2]
        Accumulator(model, losses.CrossEntropy(), micro_batch_size=4, seed=7).backward(
            inputs[places], labels[places], step=0, positions=places
        )
        sums = [total + p.grad * len(places) / N for total, p in zip(sums, model.parameters(), strict=True)]
        model.zero_grad()
    for parameter, total in zip(model.parameters(), sums, strict=True):
        parameter.grad = total
    assert relative_error(model, expected) <= 1e-12


def test_a_stream_draws_the_same_masks() -> None:
    model, (inputs, labels) = _model("dropout"), _batch()
    expected, _ = keyed_gradients(model, 7, 2, F.cross_entropy, inputs, labels)
    parts = zip(inputs.split([5, 4, 3]), labels.split([5, 4, 3]), strict=True)
    Accumulator(model, losses.CrossEntropy(), micro_batch_size=1, seed=7).backward_stream(parts, N, step=2)
    assert relative_error(model, expected) <= 1e-12


def test_steps_are_counted_when_none_is_given() -> None:
    model, (inputs, labels) = _model("dropout"), _batch()
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=5, seed=7)
    for step in range(2):
        expected, _ = keyed_gradients(model, 7, step, F.cross_entropy, inputs, labels)
        accumulator.backward(inputs, labels)
        assert relative_error(model, expected) <= 1e-12
        model.zero_grad()


def test_torchs_random_state_and_kernels_are_as_before() -> None:
    model, (inputs, labels) = _model("dropout"), _batch()
    torch.manual_seed(5)
    expected = (torch.rand(3), F.dropout(torch.ones(50), 0.5))
    torch.manual_seed(5)
    Accumulator(model, losses.CrossEntropy(), micro_batch_size=4, seed=7).backward(inputs, labels)
    assert (torch.rand(3) == expected[0]).all()
    assert (F.dropout(torch.ones(50), 0.5) == expected[1]).all()


def test_the_probe_leaves_batch_norm_and_gradients_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = torch.randn(3, 8).double()
    sites = find_random_calls(probe(model, inputs), inputs.device)
    assert [site.batch_dim for site in sites] == [0]
    assert all((before[name] == tensor).all() for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_begins_to_draw_is_noticed() -> None:
    model, (inputs, labels) = _model("dropout"), _batch()
    layer = model.layer
    assert isinstance(layer, nn.Dropout)
    layer.p = 0.0
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=4, seed=7)
    accumulator.backward(inputs, labels)
    model.zero_grad()
    for probability in (0.4, 0.0, 0.6):
        layer.p = probability
        expected, _ = keyed_gradients(model, 7, 9, F.cross_entropy, inputs, labels)
        accumulator.backward(inputs, labels, step=9)
        assert relative_error(model, expected) <= 1e-12, probability
        model.zero_grad()


def test_evaluation_mode_draws_nothing() -> None:
    model, (inputs, labels) = _model("dropout"), _batch()
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=4, seed=7)
    for training in (True, False, True):
        model.train(training)
        model.zero_grad()
        accumulator.backward(inputs, labels, step=0)
        expected, _ = keyed_gradients(model, 7, 0, F.cross_entropy, inputs, labels)
        accumulator.backward(inputs, labels, step=0)
        assert relative_error(model, expected) <= 1e-12


def _generator(layer: nn.Module, x: Tensor) -> Tensor:
    del layer
    return x * torch.rand(x.shape, generator=torch.Generator(), dtype=x.dtype)


def _by_data(layer: nn.Module, x: Tensor) -> Tensor:
    for _ in range(int((x.sum(dim=(1, 2)) > 0).sum())):
        x = layer(x)
    return x


def _across(layer: nn.Module, x: Tensor) -> Tensor:
    del layer
    return x + (torch.rand(len(x), len(x), dtype=x.dtype) @ x.flatten(1)).view_as(x)


def _python(layer: nn.Module, x: Tensor) -> Tensor:
    del layer
    return x * random.random()


@pytest.mark.parametrize(
    ("layer", "call", "message"),
    [
        (nn.RReLU(), _plain, "rrelu_with_noise"),
        (nn.Identity(), lambda _layer, x: x[torch.randperm(len(x))], "randperm"),
        (nn.Identity(), lambda _layer, x: x * torch.randint(0, 2, x.shape), "randint"),
        (nn.Identity(), _generator, "generator of its own"),
        (nn.Dropout(0.5), _by_data, "the same random calls"),
        (nn.Identity(), _across, "one dimension that counts samples"),
        (nn.Identity(), _python, "Python's random"),
        (
            nn.Dropout(0.5),
            lambda layer, x: checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False),
            "preserve_rng_state",
        ),
    ],
    ids=["rrelu", "randperm", "randint", "generator", "by data", "across", "python", "checkpoint"],
)
def test_what_cannot_be_keyed_is_refused_by_name_and_leaves_no_gradient(layer: nn.Module, call: Any, message: str) -> None:
    torch.manual_seed(0)
    model, (inputs, labels) = _Wrapped(layer, call).double(), _batch()
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=4, seed=7)
    with pytest.raises(RandomnessError, match=message):
        accumulator.backward(inputs, labels)
    assert all(p.grad is None for p in model.parameters())
    with pytest.warns(ExactnessWarning, match="not checked"):
        Accumulator(model, losses.CrossEntropy(), micro_batch_size=12).backward(inputs, labels)


def _convnext() -> nn.Module:
    blocks = [CNBlockConfig(16, 32, 6), CNBlockConfig(32, None, 6)]
    return torchvision.models.ConvNeXt(blocks, stochastic_depth_prob=0.2, num_classes=5)


def _swin() -> nn.Module:
    sizes = {"patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
    return torchvision.models.SwinTransformer(**sizes, dropout=0.1, attention_dropout=0.1, num_classes=5)


def _vit() -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 16, "num_layers": 4, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
    return torchvision.models.VisionTransformer(**sizes, dropout=0.1, attention_dropout=0.1, num_classes=5)


def _efficientnet() -> nn.Module:
    return torchvision.models.get_model("efficientnet_b0", weights=None, num_classes=5)


@pytest.mark.slow
@pytest.mark.parametrize(("build", "size"), [(_convnext, 32), (_efficientnet, 32), (_swin, 64), (_vit, 32)])
def test_gradients_of_torchvisions_models_agree_between_cuts(build: Callable[[], nn.Module], size: int) -> None:
    """Their classes, with fewer and narrower layers than the published models."""
    torch.manual_seed(0)
    model = build().double().train()
    freeze_statistics(model)
    inputs, labels = torch.randn(6, 3, size, size).double(), torch.tensor([0, 1, 2, 3, 4, 0])
    gradients = []
    for cut in (6, 4, 1):
        Accumulator(model, losses.CrossEntropy(), micro_batch_size=cut, seed=1).backward(inputs, labels, step=0)
        gradients.append([torch.zeros(1) if p.grad is None else p.grad for p in model.parameters()])
        model.zero_grad()
    sites = KeyedRandomness(model, 1).step(0, probe(model, inputs), inputs.device).calls
    assert len(sites) >= 10
    whole = sum(float(g.square().sum()) for g in gradients[0]) ** 0.5
    for other in gradients[1:]:
        difference = sum(float((a - b).square().sum()) for a, b in zip(gradients[0], other, strict=True)) ** 0.5
        assert difference <= 1e-12 * whole


def test_the_numbers_are_spread_as_they_should_be() -> None:
    words = partial(draw_words, sample_states(torch.tensor([derive_seed(1, 2)]), torch.arange(2000))[0])
    for probability in (0.5, 0.9, 0.999, 0.1):
        mask = bernoulli_mask(words, 501, probability)
        assert mask.shape == (2000, 501)
        deviation = (probability * (1 - probability) / mask.numel()) ** 0.5
        assert abs(float(mask.double().mean()) - probability) < 4 * deviation + 1e-4 * min(probability, 1 - probability)
    for dtype in (torch.float32, torch.float64):
        uniform = uniform_values(words, 500, dtype).double()
        assert 0 <= float(uniform.min()) < float(uniform.max()) < 1
        assert abs(float(uniform.mean()) - 0.5) < 4 / (12 * uniform.numel()) ** 0.5
        assert abs(float(torch.corrcoef(uniform[:, :2].T)[0, 1])) < 0.1
        assert abs(float(torch.corrcoef(torch.stack([uniform[:-1, 0], uniform[1:, 0]]))[0, 1])) < 0.1
        normal = normal_values(words, 500, dtype).double()
        assert abs(float(normal.mean())) < 4 / normal.numel() ** 0.5
        assert abs(float(normal.std()) - 1) < 0.01
        assert abs(float((normal**4).mean()) - 3) < 0.05
    assert bernoulli_mask(words, 3, 1.0).all()
    assert not bernoulli_mask(words, 3, 0.0).any()


def _of_every_kind(count: int) -> Tensor:
    """16 bits and 32 for a boolean, 53 and 24 for a number, and one number that all samples share: exact on every machine."""
    ones = torch.ones(count, 64)
    masks = [F.dropout(ones, probability) > 0 for probability in (0.5, 0.98)]
    numbers = [torch.rand(count, 1, dtype=torch.float64), torch.rand(count, 1), torch.rand(1).expand(count, 1)]
    return torch.cat([*masks, *numbers], 1).double()


@pytest.mark.parametrize("parts", [(slice(0, 4),), (slice(0, 1), slice(1, 4))], ids=["whole", "cut"])
def test_the_numbers_are_those_of_earlier_versions(parts: tuple[slice, ...]) -> None:
    positions, drawn = torch.tensor([0, 1, 2, 9]), []
    calls = KeyedRandomness(nn.Identity(), 7).step(3, _of_every_kind, positions.device)
    for part in parts:
        with calls.micro_batch(positions, part):
            drawn.append(_of_every_kind(part.stop - part.start))
    values = torch.cat(drawn)
    bits = [hex(int("".join(str(int(bit)) for bit in row), 2)) for row in values[:, :128]]
    assert bits == [
        "0xfc2691f8d4afad570000002800020010",
        "0xc1c86930ca825fe60000400000000000",
        "0xa9743b2af1c1f4120000000000000000",
        "0xce8f0cbb6ccf00ae0200000000000000",
    ]
    assert [[number.hex() for number in row] for row in values[:, 128:].tolist()] == [
        ["0x1.ff84d3fb2d404p-1", "0x1.6ee5420000000p-1", "0x1.8511480000000p-2"],
        ["0x1.2c5eaf5053e20p-3", "0x1.9931000000000p-3", "0x1.8511480000000p-2"],
        ["0x1.d6bd7eefa12d2p-1", "0x1.3a317c0000000p-1", "0x1.8511480000000p-2"],
        ["0x1.8dfad9c798ac0p-2", "0x1.7357100000000p-2", "0x1.8511480000000p-2"],
    ]


def _operations(model: nn.Module, cut: int, seed: int | None) -> Counter[str]:
    """Count torch's operations in the second step."""
    inputs, labels = torch.randn(8, 6), torch.zeros(8, dtype=torch.int64)
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=cut, seed=seed, self_check=False)
    accumulator.backward(inputs, labels)
    with torch.autograd.profiler.profile() as profile:
        accumulator.backward(inputs, labels)
    return Counter(event.name for event in profile.function_events)


def test_where_nothing_is_drawn_a_seed_costs_no_operation() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.0), nn.Linear(5, 3))
    model.eval()
    assert _operations(model, 2, seed=1) == _operations(model, 2, seed=None)


def test_samples_are_hashed_once_however_the_batch_is_cut() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3), nn.Dropout(0.5))
    shifts = [_operations(model, cut, seed=1)["aten::bitwise_right_shift"] for cut in (8, 2)]
    assert shifts == [3 + 3 * 2, 3 + 3 * 2 * 4]  # three for the samples, three for the elements of each call


def test_seeds_tell_their_parts_apart() -> None:
    assert len({derive_seed(a, b) for a in range(50) for b in range(50)}) == 2500
    assert 0 <= derive_seed(-5, 2**80) < 2**63


class _Zeros:
    """A source whose every bit is zero."""

    def draw(self, _operation: str, shape: torch.Size, values: Callable[[Any, int], Tensor]) -> Tensor:
        return values(lambda count: torch.zeros(1, count, dtype=torch.int64), shape.numel()).reshape(shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_exponential_number_is_zero_as_none_of_torchs_is(dtype: torch.dtype) -> None:
    with drawing_from(_Zeros()):
        drawn = torch.empty(3, dtype=dtype).exponential_()
        assert (drawn > 0).all()
        assert F.gumbel_softmax(torch.zeros(2, 5, dtype=dtype)).isfinite().all()
