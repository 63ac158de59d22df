import math
import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigstep import Accumulator, losses
from bigstep.step import micro_batch_loop as attempt
from bigstep.step.noise_scale import NoiseSample, NoiseScale, NoiseSummary, advise

DIM, N = 50, 64


class _Regression:
    """Linear regression with Gaussian inputs of known covariance: S, G2 and the noise scale are known in closed form."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.eigenvalues = torch.linspace(0.2, 2.0, DIM, dtype=torch.float64)
        self.truth = torch.randn(DIM, dtype=torch.float64, generator=generator) / DIM**0.5
        self.model = nn.Linear(DIM, 1, bias=False).double()
        self.sigma = 1.0
        with torch.no_grad():
            self.model.weight.copy_(self.truth + 0.12 * torch.randn(1, DIM, dtype=torch.float64, generator=generator))
        self.generator = generator

    def noise_scale(self) -> float:
        """For l = (w.x - y)^2 and x ~ N(0, H): G = 2 H d, tr Cov = 4 ((d'Hd + s^2) tr H + |Hd|^2)."""
        distance = self.model.weight.detach()[0] - self.truth
        curved = self.eigenvalues * distance
        trace = 4 * ((float(distance @ curved) + self.sigma**2) * float(self.eigenvalues.sum()) + float(curved @ curved))
        return trace / (4 * float(curved @ curved))

    def batch(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(N, DIM, dtype=torch.float64, generator=self.generator) * self.eigenvalues.sqrt()
        noise = self.sigma * torch.randn(N, dtype=torch.float64, generator=self.generator)
        return inputs, (inputs @ self.truth + noise)[:, None]


@pytest.mark.parametrize(("kind", "micro"), [("first", 16), ("first", 7), ("every", 16), ("every", 7)])
def test_the_noise_scale_is_within_ten_percent_of_the_closed_form(kind: str, micro: int) -> None:
    problem = _Regression()
    accumulator = Accumulator(problem.model, losses.MeanSquaredError(), micro_batch_size=micro, noise=kind)
    scale = NoiseScale(decay=1.0)
    for _ in range(500):
        result = accumulator.backward(*problem.batch())
        assert result.noise is not None
        scale.update(result.noise)
        problem.model.zero_grad()
    assert scale.value == pytest.approx(problem.noise_scale(), rel=0.1)
    summary = scale.summary()
    assert summary is not None
    assert summary.relative_error < 0.12


def test_the_stated_error_is_that_of_repeated_trials() -> None:
    problem = _Regression()
    values, errors = [], []
    accumulator = Accumulator(problem.model, losses.MeanSquaredError(), micro_batch_size=16, noise="every")
    for _ in range(30):
        scale = NoiseScale(decay=1.0)
        for _ in range(60):
            result = accumulator.backward(*problem.batch())
            assert result.noise is not None
            scale.update(result.noise)
            problem.model.zero_grad()
        summary = scale.summary()
        assert summary is not None
        values.append(summary.noise_scale)
        errors.append(summary.relative_error)
    spread = float(torch.tensor(values).std()) / problem.noise_scale()
    assert spread == pytest.approx(sum(errors) / len(errors), rel=0.4)


def _norms(weighted: bool) -> tuple[NoiseSample, Tensor, list[Tensor], Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    inputs, labels = torch.randn(10, 4).double(), torch.randint(0, 3, (10,))
    weight = torch.tensor([0.2, 1.0, 5.0]).double() if weighted else None
    result = Accumulator(model, losses.CrossEntropy(weight), micro_batch_size=4, noise="every").backward(inputs, labels)
    assert result.noise is not None

    def gradient(part: slice) -> Tensor:
        loss = F.cross_entropy(model(inputs[part]), labels[part], weight=weight)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    parts = [gradient(part) for part in (slice(0, 4), slice(4, 7), slice(7, 10))]
    return result.noise, labels, parts, gradient(slice(None))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_norms_are_those_of_mean_gradients(weighted: bool) -> None:
    sample, labels, parts, whole = _norms(weighted)
    weights = torch.tensor([0.2, 1.0, 5.0])[labels] if weighted else torch.ones(10)
    worth = [float(part.sum() ** 2 / part.square().sum()) for part in (weights, *weights.split([4, 3, 3]))]
    assert [sample.total, *sample.sizes] == pytest.approx(worth)
    assert worth == [10, 4, 3, 3] or weighted
    assert float(sample.whole) == pytest.approx(float(whole @ whole), rel=1e-12)
    assert sample.weighted is not None
    expected = sum(size * float(part @ part) for size, part in zip(sample.sizes, parts, strict=True))
    assert float(sample.weighted) == pytest.approx(expected, rel=1e-12)


def test_the_first_norm_is_that_of_the_first_micro_batch_under_a_scaler_and_after_the_fact() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    inputs, labels = torch.randn(10, 4), torch.randint(0, 3, (10,))
    expected = sum(
        float(g.square().sum()) for g in torch.autograd.grad(F.cross_entropy(model(inputs[:5]), labels[:5]), model.parameters())
    )
    for loss, targets, scaler in (
        (losses.CrossEntropy(), labels, torch.amp.GradScaler("cpu", init_scale=1024.0)),
        (lambda outputs, t: F.cross_entropy(outputs, t, reduction="none"), labels, None),
    ):
        model.zero_grad()
        result = Accumulator(model, loss, micro_batch_size=5, noise="first", scaler=scaler).backward(inputs, targets)
        assert result.noise is not None
        assert float(result.noise.first) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]


def test_one_micro_batch_has_no_noise_and_measuring_changes_no_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    inputs, labels = torch.randn(10, 4).double(), torch.randint(0, 3, (10,))
    gradients = []
    for kind, micro in ((None, 4), ("first", 4), ("every", 4), ("first", 10)):
        model.zero_grad()
        result = Accumulator(model, losses.CrossEntropy(), micro_batch_size=micro, noise=kind).backward(inputs, labels)
        assert (result.noise is None) is (kind is None or micro == 10)
        gradients.append(model.weight.grad)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-14, atol=1e-16)


def test_too_few_steps_give_no_value() -> None:
    scale = NoiseScale()
    assert scale.value is None
    assert scale.summary() is None
    scale.update(NoiseSample((2, 2), 4, 4, torch.tensor(2.0), torch.tensor(1.0), None))
    assert scale.value is None


@pytest.mark.parametrize(
    ("scale", "steps", "words"),
    [(10.0, 4, "more than it needs"), (1e4, 4, "mostly noise"), (100.0, 4, "near it"), (100.0, 1, "nothing was accumulated")],
)
def test_the_advice_follows_the_ratio(scale: float, steps: int, words: str) -> None:
    assert words in advise(NoiseSummary(scale, 0.1, 100), 128, steps)


def test_without_a_value_the_advice_says_so() -> None:
    assert "could not be estimated" in advise(None, 128, 4)
    assert "could not be estimated" in advise(NoiseSummary(1.0, 3.5, 4), 128, 4), (
        "a value of no certainty is no reason for advice"
    )
    assert math.isfinite(NoiseSample((3, 3), 6, 6, torch.tensor(1.0), torch.tensor(2.0), None).estimate()[0])


def test_the_norms_of_the_default_take_under_two_percent_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(64 * 13 * 13, 10))
    inputs, labels = torch.randn(64, 1, 28, 28), torch.randint(0, 10, (64,))
    spent, measured = [0.0], attempt.squared_norm

    def timed(tensors: list[Tensor]) -> Tensor:
        started = time.perf_counter()
        result = measured(tensors)
        spent[0] += time.perf_counter() - started
        return result

    monkeypatch.setattr(attempt, "squared_norm", timed)
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=16, noise="first")
    accumulator.backward(inputs, labels)
    spent[0], started = 0.0, time.perf_counter()
    for _ in range(10):
        accumulator.backward(inputs, labels)
    assert spent[0] > 0
    assert spent[0] / (time.perf_counter() - started) < 0.02


class _WatchesInput(nn.Module):
    """Asks for the gradient of its input in the forward pass, as Wav2Vec2 does."""

    def __init__(self, *, watches: bool) -> None:
        super().__init__()
        self.watches, self.layer = watches, nn.Linear(4, 3).double()

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.clone()
        inputs.requires_grad = self.watches
        outputs: Tensor = self.layer(inputs)
        return outputs


@pytest.mark.parametrize("kind", ["first", "every"])
def test_the_gradient_of_a_tensor_made_in_the_forward_pass_is_not_counted_and_passes_the_self_check(kind: str) -> None:
    inputs, labels = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    found = []
    for watches in (False, True):
        torch.manual_seed(0)
        model = _WatchesInput(watches=watches)
        found.append(Accumulator(model, losses.CrossEntropy(), micro_batch_size=3, noise=kind).backward(inputs, labels).noise)
    assert found[0] is not None
    assert found[0] == found[1]
