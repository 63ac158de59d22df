"""A step that runs out of memory happens once or not at all: errors injected where an allocation may fail."""

import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.model import ModelConfig
from bigstep.config.train import TrainConfig
from bigstep.data.store import Store
from bigstep.errors import LostProcessError, LostStepError, OutOfMemoryError
from bigstep.models.building import InputShape
from bigstep.models.model_files import build_classifier
from bigstep.training.loop import set_training_mode, take_step, train_epochs
from bigstep.training.out_of_memory_guard import MemoryExhaustedError, OutOfMemoryGuard, is_out_of_memory
from bigstep.training.state import TrainingState, build_state
from bigstep.training.training_batches import TrainingBatches
from bigstep.training.transaction import compute_gradient
from building import ten_classes

TEXT = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."
)
EFFECTIVE = 40


def _begin(store: Store, micro: int = 16, **train: Any) -> tuple[TrainingState, TrainConfig]:
    """Dropout, BatchNorm in evaluation mode, and what ``train`` asks."""
    section = TrainConfig.model_validate({"epochs": 2, "effective_batch_size": EFFECTIVE, "augmentation": "none", **train})
    frozen = {"norm": "batch", "ghost_batch_size": micro, "batch_norm_statistics": "frozen"}
    model = ModelConfig.model_validate({"width": 4, "dropout": 0.3, **frozen})
    manifest = store.manifest
    torch.manual_seed(0)
    classifier = build_classifier(model, InputShape(1, 8, 10), mean=manifest.mean, std=manifest.std)
    batch = BatchSizes(EFFECTIVE, micro, -(-EFFECTIVE // micro))
    options: Any = {"num_samples": 400, **ten_classes(section), "model": model}
    state = build_state(classifier, section, batch, **options)
    set_training_mode(state)
    return state, section


def _batches(store: Store, train: TrainConfig, count: int) -> list[tuple[Tensor, Tensor]]:
    source = TrainingBatches(store, train, EFFECTIVE, 0)
    found: list[tuple[Tensor, Tensor]] = []
    epoch = 0
    while len(found) < count:
        found += [batch for batch in source.epoch(epoch) if len(batch[1]) == EFFECTIVE]
        epoch += 1
    return found[:count]


class _Injection:
    """Raises once at the chosen call of the chosen place, and remembers what the failed pass had alive."""

    def __init__(self, state: TrainingState, place: str, call: int) -> None:
        self.state, self.place, self.left = state, place, call
        self.fired = False
        self.storages: list[Any] = []

    def strike(self) -> None:
        self.left -= 1
        if self.left == 0 and not self.fired:
            self.fired = True
            raise RuntimeError(TEXT)

    @contextmanager
    def active(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        layers = [m for m in self.state.classifier.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        handles = [layer.register_forward_hook(self._after_forward) for layer in layers]
        if self.place == "backward":
            handles += [p.register_hook(lambda _gradient: self.strike()) for layer in layers for p in layer.parameters()]
        with monkeypatch.context() as patched:
            if self.place == "update":
                for name in ("_fused_adamw_", "_fused_sgd_"):
                    patched.setattr(torch, name, self._failing(getattr(torch, name)))
            yield
        for handle in handles:
            handle.remove()

    def _after_forward(self, _layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        if not self.fired:
            self.storages.append(weakref.ref(output.untyped_storage()))
        if self.place == "forward":
            self.strike()

    def _failing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            self.strike()
            return function(*args, **named)

        return call


def _bits(state: TrainingState) -> list[Tensor]:
    moments = [tensor for item in state.optimizer.state.values() for tensor in item.values() if isinstance(tensor, Tensor)]
    return [t.detach().clone() for t in (*state.classifier.parameters(), *state.classifier.buffers(), *moments)]


@pytest.mark.parametrize(
    ("train", "seed"),
    [({"precision": "float16", "optimizer": "adamw"}, 1), ({"precision": "float32", "optimizer": "sgd"}, 2)],
    ids=["float16-adamw", "float32-sgd"],
)
def test_bugs_6_7_and_12_fifty_random_failures_leave_the_bits_of_an_undisturbed_run(
    train: dict[str, Any], seed: int, digits: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    disturbed, section = _begin(digits, **train)
    batches = _batches(digits, section, 50)
    sizes, fired = [], 0
    for images, labels in batches:
        disturbed.accumulator.micro_batch_size = 16
        place = chance.choice(["forward", "backward", "update"])
        injection = _Injection(disturbed, place, chance.randint(1, 2 if place == "update" else 6))
        with injection.active(monkeypatch):
            assert take_step(disturbed, section, images, labels).applied
        fired += injection.fired
        assert not any(storage() is not None and storage().nbytes() for storage in injection.storages)
        sizes.append(disturbed.accumulator.micro_batch_size)
        assert sizes[-1] == (16 if place == "update" else 8)
    assert fired == 50
    quiet, _ = _begin(digits, **train)
    for size, (images, labels) in zip(sizes, batches, strict=True):
        quiet.accumulator.micro_batch_size = size
        take_step(quiet, section, images, labels)
    assert all(torch.equal(a, b) for a, b in zip(_bits(disturbed), _bits(quiet), strict=True))
    if disturbed.scaler.is_enabled():
        assert disturbed.scaler.state_dict() == quiet.scaler.state_dict()


def test_the_result_is_that_of_the_smaller_size_from_the_start(digits: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed, section = _begin(digits, precision="float64")
    smaller, _ = _begin(digits, micro=8, precision="float64")
    for number, (images, labels) in enumerate(_batches(digits, section, 12)):
        injection = _Injection(disturbed, "backward", 5 if number == 3 else -1)
        with injection.active(monkeypatch):
            record = take_step(disturbed, section, images, labels)
        assert record.micro_batch_size == (14 if number < 3 else 8)
        take_step(smaller, section, images, labels)
    for found, wanted in zip(_bits(disturbed), _bits(smaller), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_a_failure_at_one_image_is_one_clear_line_and_moves_nothing(digits: Store) -> None:
    state, section = _begin(digits)
    before = _bits(state)

    def fail(*_: Any) -> None:
        raise RuntimeError(TEXT)

    handle = state.classifier.register_forward_hook(fail)
    with pytest.raises(OutOfMemoryError, match="expected a micro-batch of one sample to fit") as caught:
        take_step(state, section, *_batches(digits, section, 1)[0])
    handle.remove()
    assert len(str(caught.value).splitlines()) == 1
    assert all(torch.equal(a, b) for a, b in zip(_bits(state), before, strict=True))
    assert all(parameter.grad is None for parameter in state.classifier.parameters())


def test_a_ghost_batch_is_never_made_smaller(digits: Store) -> None:
    state, section = _begin(digits)
    state.classifier.train()  # BatchNorm normalises by its batch again
    handle = state.classifier.register_forward_hook(lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(OutOfMemoryError, match=r"lower model\.ghost_batch_size"):
        take_step(state, section, *_batches(digits, section, 1)[0])
    handle.remove()
    assert state.accumulator.micro_batch_size == 16


def test_bug_11_a_validation_that_does_not_fit_says_so(digits: Store) -> None:
    state, section = _begin(digits)

    def fail(module: nn.Module, *_: Any) -> None:
        if not module.training:
            raise RuntimeError(TEXT)

    state.classifier.register_forward_hook(fail)
    with pytest.raises(OutOfMemoryError, match="expected 16 samples at a time to fit in memory"):
        list(train_epochs(state, section, digits, TrainingBatches(digits, section, EFFECTIVE, 0)))


def test_other_errors_pass_through_with_their_type() -> None:
    guard = OutOfMemoryGuard(torch.device("cpu"))
    with pytest.raises(ZeroDivisionError):
        guard.call(lambda: 1 // 0)
    with pytest.raises(MemoryExhaustedError, match="can't allocate"):
        guard.call(lambda: torch.empty(2**50))
    assert guard.call(lambda: 3) == 3
    assert guard.num_failures == 1
    guard.close()
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_thread_that_cannot_begin_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> None:
        raise MemoryError(number)

    monkeypatch.setattr("bigstep.training.out_of_memory_guard.THREAD_START_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(torch, "set_num_threads", fail)
    guard = OutOfMemoryGuard(torch.device("cpu"))
    with pytest.raises(MemoryExhaustedError, match="can't allocate"):
        guard.call(lambda: torch.empty(2**50))
    assert guard.call(lambda: 3) == 3
    guard.close()


class _NoMoreSums:
    """Processes of which one has ended: those that live would wait for each other."""

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"{name}: nothing may be exchanged any more")


@pytest.mark.parametrize("lost", [LostProcessError, LostStepError])
def test_nothing_is_exchanged_after_a_process_was_lost(digits: Store, lost: type[Exception]) -> None:
    state, _ = _begin(digits)
    state.processes = _NoMoreSums()  # type: ignore[assignment]

    def fail() -> None:
        raise lost("of a killed process")

    with pytest.raises(lost, match="of a killed process"):
        compute_gradient(state, fail)
    state.guard.close()
