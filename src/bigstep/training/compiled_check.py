"""Compile a training before its first step, and compare the gradient of compiled code with that of the model itself."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from bigstep.config.train import TrainConfig
from bigstep.errors import ConfigError, OutOfMemoryError, RandomnessError
from bigstep.randomness.counter_rng import Words, draw_words
from bigstep.randomness.kernels import drawing_from
from bigstep.step.accumulate import Accumulator
from bigstep.step.precision import PRECISIONS
from bigstep.step.preserved_state import preserved_gradients, preserved_state
from bigstep.training.loop import set_training_mode
from bigstep.training.out_of_memory_guard import MemoryExhaustedError
from bigstep.training.state import TrainingState
from bigstep.training.torch_internals import compiler_problem

__all__ = ["compile_training"]

TOLERANCES = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}  # of the gradient's norm
WAY_OUT = "set hardware.compile=false"


def compile_training(state: TrainingState, train: TrainConfig, images: Tensor, labels: Tensor) -> None:
    """Compile the passes of ``state``, whose gradients, buffers and random states stay as they are.

    Where random numbers are keyed, the gradient of a micro-batch must be the model's own.

    Args:
        state: of a training with ``hardware.compile``.
        train: the section ``train``.
        images: some of the training's, ``(n, channels, size, size)``, augmented as they will be.
        labels: ``(n,)``.

    Raises:
        ConfigError: they cannot be compiled, compute something else, or draw random numbers that cannot be keyed.
        OutOfMemoryError: not even one sample fits.
    """
    set_training_mode(state)
    device = state.classifier.mean.device
    devices = [device] if device.type == "cuda" else []
    with preserved_state(state.classifier), torch.random.fork_rng(devices), _named_errors():
        for dtype in _types(train, images):
            size = _compile(state, train, images.to(device, dtype))
        if train.keyed_randomness:
            places = torch.arange(size) % len(images)
            _compare(state, train, images[places], labels[places])


def _types(train: TrainConfig, images: Tensor) -> list[torch.dtype]:
    """Return the types of images in training: mixup makes floating-point numbers of whole ones, and cutmix does not."""
    mixed = images.dtype if images.is_floating_point() else torch.float32
    both = [dtype for alpha, dtype in ((train.mixup_alpha, mixed), (train.cutmix_alpha, images.dtype)) if alpha is not None]
    return list(dict.fromkeys(both)) or [images.dtype]


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except RandomnessError as error:
        raise ConfigError(f"hardware.compile: {str(error).partition(';')[0]}; {WAY_OUT}") from None
    except Exception as error:
        problem = compiler_problem(error)
        if problem is None:
            raise
        raise ConfigError(
            f"hardware.compile: expected a model and a machine that torch.compile can use, got {problem}; "
            f"install a C++ compiler if it is missing, or {WAY_OUT}"
        ) from None


def _compile(state: TrainingState, train: TrainConfig, images: Tensor) -> int:
    """Compile with a whole micro-batch, or with a half, a quarter, ... of it that fits in memory; returns its size."""
    assert state.compiled is not None
    size = state.accumulator.micro_batch_size
    while True:
        places = torch.arange(size, device=images.device) % len(images)
        try:
            state.guard.call(_passes(state, train, images[places]))
            state.compiled.probe_sizes = (max(size, 2), max(size, 2) + 1)
            return size
        except MemoryExhaustedError as failure:
            problem = str(failure)
        if size == 1:
            raise OutOfMemoryError(
                f"memory: expected one sample to fit, got: {problem}; use a smaller model or smaller samples"
            )
        size = -(-size // 2)


def _passes(state: TrainingState, train: TrainConfig, images: Tensor) -> Callable[[], None]:
    """Return what runs forward and backward in the circumstances of a training step, on which compiled code depends."""
    precision, source = PRECISIONS[train.precision], _AnyNumbers(images.device)

    def run() -> None:
        assert state.compiled is not None
        with (
            preserved_gradients(state.classifier.parameters()),
            drawing_from(source) if train.keyed_randomness else contextlib.nullcontext(),
        ):
            with _autocast(images.device, precision.autocast):
                outputs = state.compiled(images)
            logits = outputs if isinstance(outputs, Tensor) else outputs[0]
            logits.float().sum().backward()

    return run


def _autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _compare(state: TrainingState, train: TrainConfig, images: Tensor, labels: Tensor) -> None:
    assert state.compiled is not None
    own, compiled = (_gradient(state, train, model, images, labels) for model in (state.classifier, state.compiled))
    difference = float((own - compiled).norm() / own.norm())
    if difference > TOLERANCES[train.precision]:  # not where the gradient is zero or not finite
        raise ConfigError(
            "hardware.compile: expected compiled code with the gradient of the model, got one that differs by "
            f"{difference:.2g} of its norm; {WAY_OUT}"
        )


def _gradient(state: TrainingState, train: TrainConfig, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    accumulator = Accumulator(
        model,
        state.loss,
        micro_batch_size=len(images),
        seed=train.seed,
        autocast=PRECISIONS[train.precision].autocast,
        self_check=False,
    )
    parameters = list(state.classifier.parameters())
    with preserved_gradients(parameters):
        accumulator.backward(images, labels, step=0)
        return torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None])


@final
class _AnyNumbers:
    """A source of random numbers that do not matter."""

    def __init__(self, device: torch.device) -> None:
        self._states = torch.zeros(1, dtype=torch.int64, device=device)

    def draw(self, operation: str, shape: torch.Size, values: Callable[[Words, int], Tensor]) -> Tensor:
        del operation
        return values(partial(draw_words, self._states), shape.numel()).reshape(shape)
