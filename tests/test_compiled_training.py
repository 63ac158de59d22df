"""`hardware.compile`: trainings through torch.compile are exact, keyed and resumed to the bit, or refused in one line."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn

from bigstep.commands.plan import PlanRequest, plan
from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.model import ModelConfig
from bigstep.config.params import Params, parse_params
from bigstep.data.store import Store
from bigstep.errors import ConfigError
from bigstep.models.classifier import Classifier
from bigstep.planning.slicing_choice import choose_slicing
from bigstep.project.paths import ProjectPaths, StagePaths
from bigstep.training.compilation import CompiledClassifier
from bigstep.training.compiled_check import compile_training
from bigstep.training.loop import set_training_mode, take_step
from bigstep.training.setup import build_training
from bigstep.training.snapshot import KeptSlicing, kept_slicing, restore_snapshot, take_snapshot
from bigstep.training.state import TrainingState, build_state
from bigstep.training.training_batches import TrainingBatches
from building import first_batch, flat_weights, quick_train, ten_classes

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch"),
]
needs_inductor = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, and there is no g++")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    with torch._inductor.config.patch(compile_threads=1):
        yield
    torch.compiler.reset()


def _params(micro: int, *, compiled: bool = True, **hardware: Any) -> Params:
    train = {"precision": "float64", "effective_batch_size": 64, "learning_rate": 0.01, "epochs": 2, "warmup_fraction": 0.0}
    sections = {"model": {"width": 4, "dropout": 0.3}, "train": train}
    return parse_params({**sections, "hardware": {"micro_batch_size": micro, "compile": compiled, **hardware}})


def _build(store: Store, params: Params) -> TrainingState:
    return build_training(store, params.batch, params, weights=None)


def _train(state: TrainingState, params: Params, store: Store, steps: range) -> list[float]:
    """The steps of the first epoch, of which the last has 61 samples."""
    set_training_mode(state)
    batches = list(TrainingBatches(store, params.train, 64).epoch(0))
    return [float(take_step(state, params.train, *batches[number], measure_memory=number == 0).loss) for number in steps]


@needs_inductor
@pytest.mark.slow
def test_compiled_trainings_are_slice_invariant_keyed_and_those_of_the_model_itself(digits: Store) -> None:
    found = []
    for micro, compiled in ((64, False), (64, True), (7, True)):
        params = _params(micro, compiled=compiled)
        state = _build(digits, params)
        assert (state.compiled is not None) == compiled
        losses = _train(state, params, digits, range(18))
        found.append((flat_weights(state), torch.tensor(losses)))
        assert not [name for name in take_snapshot(state, micro_batch_size=micro).tensors if "orig_mod" in name]
        state.guard.close()
    for weights, losses in found[1:]:
        assert float((weights - found[0][0]).norm() / found[0][0].norm()) <= 1e-9
        assert torch.allclose(losses, found[0][1], rtol=1e-9, atol=0)


@needs_inductor
@pytest.mark.slow
def test_a_compiled_training_is_resumed_to_the_bit_wherever_it_was_left(digits: Store) -> None:
    """The last batch is smaller: were it the first that is compiled, its code would be made for it."""
    params = _params(7)
    whole = _build(digits, params)
    _train(whole, params, digits, range(17))
    kept = take_snapshot(whole, micro_batch_size=7)
    tensors = {name: tensor.clone() for name, tensor in kept.tensors.items()}
    assert kept_slicing(kept.values) == KeptSlicing(7, "contiguous", compiled=True)
    _train(whole, params, digits, range(17, 18))
    resumed = _build(digits, params)
    restore_snapshot(resumed, type(kept)(kept.step, tensors, kept.values), micro_batch_size=7)
    _train(resumed, params, digits, range(17, 18))
    assert torch.equal(flat_weights(whole), flat_weights(resumed))
    for state in (whole, resumed):
        state.guard.close()


@pytest.mark.parametrize("was", [True, False])
def test_a_training_stays_compiled_or_not_as_it_was_started(
    was: bool, digits: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params, kept = _params(16, compiled=not was), KeptSlicing(16, "contiguous", compiled=was)
    fit = choose_slicing(ProjectPaths(tmp_path), params, digits, kept=kept)
    assert fit.applied_to(params).hardware.compile == was
    assert fit.tags["bigstep.compile"] == str(was).lower()
    printed = " ".join(capsys.readouterr().out.split())
    assert f"started with hardware.compile={str(was).lower()}, and keeps it" in printed
    assert choose_slicing(ProjectPaths(tmp_path), params, digits).compiled != was
    former = {"memory_format": "contiguous", "micro_batch_size": [16, 16]}
    assert kept_slicing(former) == KeptSlicing(16, "contiguous", compiled=False)


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {"model": {"norm": "batch", "ghost_batch_size": 16}, "hardware": {"micro_batch_size": None}},
            "expected false with model.batch_norm_statistics corrected, .* got true; write false, or set",
        ),
        (
            {"hardware": {"activation_checkpointing": True}},
            "expected false with hardware.activation_checkpointing, .* got true",
        ),
    ],
)
def test_what_compiled_code_would_not_do_is_refused(sections: dict[str, Any], problem: str) -> None:
    content = {**sections, "hardware": {**sections["hardware"], "compile": True}}
    with pytest.raises(ConfigError, match=f"params.yaml: hardware.compile: {problem}"):
        parse_params(content)


def test_without_a_compiler_one_line_says_so(digits: Store) -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(ConfigError, match=r"hardware.compile: expected .* got .*no-such-compiler.*; install a C\+\+ compiler"),
    ):
        _build(digits, _params(16))


class _Different(nn.Module):
    """A network whose compiled code does something else."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1))
        if torch.compiler.is_compiling() and self.kind == "wrong":
            return logits * 2
        if torch.compiler.is_compiling() and self.kind == "shuffled":
            return logits + torch.randperm(10, dtype=logits.dtype)
        return logits


@needs_inductor
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("wrong", "expected compiled code with the gradient of the model, got one that differs by .* of its norm"),
        ("shuffled", "expected random calls that can be keyed by sample, got compiled code .*, which draws its own numbers"),
    ],
)
def test_compiled_code_that_computes_something_else_is_refused(kind: str, problem: str, digits: Store) -> None:
    train = quick_train(effective_batch_size=8)
    classifier = Classifier(_Different(kind), mean=(0.5,), std=(0.2,), network_channels=1)
    options = {"num_samples": 8, "model": ModelConfig(), **ten_classes(train)}
    state = build_state(CompiledClassifier(classifier, 8), train, BatchSizes(8, 8, 1), **options)
    with pytest.raises(ConfigError, match=f"hardware.compile: .*{problem}.*; set hardware.compile=false"):
        compile_training(state, train, *first_batch(digits))
    assert all(parameter.grad is None for parameter in classifier.parameters())


@pytest.mark.long
@needs_inductor
@pytest.mark.slow
def test_plan_measures_what_compiling_gains(
    digits: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/tmp/torchinductor_of_torch")  # as torch sets it
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prepared").symlink_to(digits.paths.root)
    params = parse_params(
        {"model": {"width": 4}, "train": {"effective_batch_size": 8}, "hardware": {"memory_format": "contiguous"}}
    )
    request = PlanRequest(seconds=1.0, compile=True)
    assert plan(ProjectPaths(tmp_path), StagePaths(tmp_path), params, request) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "hardware.compile true would have " in printed
    assert "it changes rounding, so --apply does not write it" in printed
    assert ProjectPaths(tmp_path).compiled.is_dir(), "code is kept in the project"
