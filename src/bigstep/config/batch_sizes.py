"""Effective batch B, micro-batch m, accumulation steps A: any two are given, ``A = ceil(B / m)`` holds."""

from dataclasses import dataclass

from bigstep.config.hardware import HardwareConfig
from bigstep.config.model import ModelConfig
from bigstep.config.train import TrainConfig
from bigstep.errors import ConfigError

__all__ = ["UNMEASURED_MICRO_BATCH", "BatchSizes", "resolve_batch"]

UNMEASURED_MICRO_BATCH = 32  # the largest micro-batch of ``auto`` where nothing is measured

B, M, A = "train.effective_batch_size", "hardware.micro_batch_size", "hardware.accumulation_steps"


@dataclass(frozen=True)
class BatchSizes:
    """The sizes of one optimizer step, in samples and micro-batches."""

    effective_batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    is_planned: bool = True
    """False: ``hardware.micro_batch_size`` is ``auto`` and nothing is chosen yet; the micro-batch is then at most 32."""

    def __str__(self) -> str:
        """Print the arithmetic of a step."""
        if not self.is_planned:
            return f"effective batch {self.effective_batch_size}, micro-batch size auto"
        pieces = "1 micro-batch" if self.accumulation_steps == 1 else f"{self.accumulation_steps} micro-batches"
        return f"effective batch {self.effective_batch_size} = {pieces} of at most {self.micro_batch_size}"

    def at_most(self, micro_batch_size: int) -> "BatchSizes":
        """Return the same effective batch in micro-batches of at most ``micro_batch_size``, and of at least one sample."""
        size = min(self.micro_batch_size, max(1, micro_batch_size))
        return BatchSizes(self.effective_batch_size, size, -(-self.effective_batch_size // size))


def resolve_batch(train: TrainConfig, hardware: HardwareConfig, model: ModelConfig, planned: int | None = None) -> BatchSizes:
    """Complete B, m and A from the two that are given; ``planned`` replaces an ``auto`` micro-batch.

    With BatchNorm the micro-batch is the ghost batch, and ``hardware.micro_batch_size`` must be null or equal to it.

    Raises:
        ConfigError: fewer than two are given, or they contradict one another.
    """
    whole, part, count = train.effective_batch_size, hardware.micro_batch_size, hardware.accumulation_steps
    if part == "auto":
        return _automatic(whole, count, model.ghost_batch_size, planned)
    if model.ghost_batch_size is not None:
        part = _ghost(model.ghost_batch_size, part)
    if [whole, part, count].count(None) > 1:
        raise ConfigError(
            f"{B}, {M}, {A}: expected at least two values, got {_null(whole)}, {_null(part)} and {_null(count)}; "
            "set a second one"
        )
    whole = whole if whole is not None else (part or 0) * (count or 0)
    part = part if part is not None else -(-whole // (count or 1))
    steps = -(-whole // part)
    if count is not None and count != steps:
        raise ConfigError(
            f"{A}: expected {B} / {M} rounded up, {steps} for {whole} / {part}, got {count}; "
            f"write {steps}, or change one of the three"
        )
    return BatchSizes(whole, part, steps)


def _automatic(whole: int | None, count: int | None, ghost: int | None, planned: int | None) -> BatchSizes:
    if whole is None or count is not None:
        raise ConfigError(
            f"{B} and {A}: expected a number and null with {M} auto, got {_null(whole)} and {_null(count)}; "
            "set the effective batch size, and leave the micro-batch size to the plan"
        )
    part = ghost or planned or min(whole, UNMEASURED_MICRO_BATCH)
    return BatchSizes(whole, min(part, whole), -(-whole // part), is_planned=ghost is not None or planned is not None)


def _ghost(ghost: int, part: int | None) -> int:
    if part not in (None, ghost):
        raise ConfigError(
            f"{M}: expected null or model.ghost_batch_size ({ghost}) with model.norm batch, got {part}; write {ghost}"
        )
    return ghost


def _null(value: int | None) -> str:
    return "null" if value is None else str(value)
