"""What decides rounding in a training before it starts: as configured, kept by a checkpoint, or chosen (``auto``)."""

from dataclasses import dataclass, field, replace

from bigstep.config.batch_sizes import UNMEASURED_MICRO_BATCH, BatchSizes, resolve_batch
from bigstep.config.params import Params
from bigstep.console import console, format_seconds
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.memory.measurement import resident_bytes
from bigstep.planning.automatic_plan import measured_choice
from bigstep.planning.memory_budget import (
    available_bytes,
    bytes_over_budget,
    check_budget,
    largest_fitting,
    predict,
    room_to_compute,
)
from bigstep.planning.work import choose_threads, is_small_training
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.device import possible_formats
from bigstep.training.snapshot import KeptSlicing

__all__ = ["CheckedSlicing", "choose_slicing", "kept_compilation"]


@dataclass(frozen=True)
class CheckedSlicing:
    """The sizes of a step, predicted bytes of its tensors, memory format, compilation, threads: all that decides rounding."""

    batch: BatchSizes
    predicted_bytes: int
    memory_format: str
    compiled: bool = False
    threads: int | None = None
    """Of torch on the CPU; None: as configured."""
    room_bytes: int | None = field(default=None, compare=False)
    """Of memory for a step within the budget, at this moment; None: there is no limit, or it was not asked for."""

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the run that trains with it."""
        return {
            "bigstep.micro_batch_size": str(self.batch.micro_batch_size),
            "bigstep.accumulation_steps": str(self.batch.accumulation_steps),
            "bigstep.memory_format": self.memory_format,
            "bigstep.compile": str(self.compiled).lower(),
        }

    def applied_to(self, params: Params) -> Params:
        """Return the parameters with the memory format and the threads that were chosen, compiled or not."""
        chosen = {"memory_format": self.memory_format, "compile": self.compiled}
        chosen |= {} if self.threads is None else {"threads": self.threads}
        return replace(params, hardware=params.hardware.model_copy(update=chosen))


def choose_slicing(
    project: ProjectPaths,
    params: Params,
    store: Store,
    failed_at: int | None = None,
    kept: KeptSlicing | None = None,
    *,
    always_measured: bool = False,
) -> CheckedSlicing:
    """Choose or check micro-batch size and memory format.

    Args:
        project: its state folder holds plans and predictions.
        params: the configuration; what it leaves open (``auto``) is chosen.
        store: the images.
        failed_at: micro-batch size at which an earlier run was killed with little memory left.
        kept: what the training's checkpoint was started with; it replaces what is open.
        always_measured: small trainings, too.

    Raises:
        OutOfMemoryError: it does not fit the budget; the message has what it needs, the budget, and the largest that fits.
    """
    resident = resident_bytes()
    choice = _Choice(project, params, store, resident, always_measured=always_measured)
    batch, memory_format = choice.of_checkpoint(kept) or choice.made_now()
    if failed_at is not None and params.model.ghost_batch_size is None:
        batch = batch.at_most(-(-failed_at // 2))
        console.print(
            f"the last run was killed with little memory left at micro-batch size {failed_at}; "
            f"starting with {batch.micro_batch_size}"
        )
    predicted = predict(project, params, store, batch)
    if params.hardware.micro_batch_size != "auto":
        check_budget(params, batch, predicted, resident)
    room = available_bytes(params.hardware, resident)
    threads = choose_threads(project, params, store)
    return CheckedSlicing(batch, predicted.peak_bytes, memory_format, kept_compilation(params, kept), threads, room)


def kept_compilation(params: Params, kept: KeptSlicing | None) -> bool:
    """Return whether a training is compiled: as it was when it started, whatever ``hardware.compile`` is by now."""
    asked = params.hardware.compile
    if kept is None or kept.compiled == asked:
        return asked
    was, now = str(kept.compiled).lower(), str(asked).lower()
    console.print(f"this training was started with hardware.compile={was}, and keeps it; {now} holds from the next one on")
    return kept.compiled


@dataclass(frozen=True)
class _Choice:
    """The choice of what is open, for one training in a process of ``resident`` bytes."""

    project: ProjectPaths
    params: Params
    store: Store
    resident: int
    always_measured: bool

    @property
    def size_is_open(self) -> bool:
        return self.params.hardware.micro_batch_size == "auto" and self.params.model.ghost_batch_size is None

    def of_checkpoint(self, kept: KeptSlicing | None) -> tuple[BatchSizes, str] | None:
        """Return the checkpoint's choice; None without one, or where the budget was lowered so that it no longer fits."""
        formats = possible_formats(self.params.hardware)
        if kept is None or not (self.size_is_open or len(formats) > 1):
            return None
        batch = self.batch(kept.micro_batch_size)
        if self.size_is_open and not self.fits(batch):
            console.print(
                f"micro-batches of {batch.micro_batch_size}, as the run was started, exceed hardware.memory_budget now"
            )
            return None
        return batch, kept.memory_format if len(formats) > 1 else formats[0]

    def made_now(self) -> tuple[BatchSizes, str]:
        formats = possible_formats(self.params.hardware)
        if not self.size_is_open and len(formats) == 1:
            return self.params.batch, formats[0]
        if not self.always_measured and is_small_training(self.project, self.params, self.store):
            return self.fitting(UNMEASURED_MICRO_BATCH), formats[0]
        largest = self.largest() if self.size_is_open else self.params.batch.micro_batch_size
        room = room_to_compute(self.params, self.store, self.resident)
        chosen = measured_choice(self.project, self.params, self.store, largest, room, size_is_open=self.size_is_open)
        if chosen is None:
            return self.fitting(UNMEASURED_MICRO_BATCH), formats[0]
        self.print_duration(chosen.samples_per_second)
        return self.fitting(chosen.micro_batch_size), chosen.memory_format

    def print_duration(self, samples_per_second: float) -> None:
        epochs = self.params.train.epochs
        seconds = epochs * len(self.store.indices(Split.TRAIN)) / samples_per_second
        speed = f"{samples_per_second:,.0f} samples/s"
        console.print(f"expected: {format_seconds(seconds)} for {epochs} epochs at {speed}, and the validation")

    def batch(self, size: int) -> BatchSizes:
        """Return the sizes with micro-batches of at most ``size``, if the size is open."""
        params = self.params
        return resolve_batch(params.train, params.hardware, params.model, size) if self.size_is_open else params.batch

    def fits(self, batch: BatchSizes) -> bool:
        predicted = predict(self.project, self.params, self.store, batch)
        return bytes_over_budget(self.params, predicted, self.resident) <= 0

    def largest(self) -> int:
        """Return the effective batch if it fits the budget, else the largest power of two that fits (1 if none does)."""
        effective = self.params.batch.effective_batch_size
        base = predict(self.project, self.params, self.store, self.batch(min(effective, 2 * UNMEASURED_MICRO_BATCH)))
        largest = largest_fitting(self.params, base, self.resident)
        if largest is None or largest >= effective:
            return effective
        return 1 << max(0, largest.bit_length() - 1)

    def fitting(self, size: int) -> BatchSizes:
        """Return the sizes with the largest micro-batch that is at most ``size`` and fits the budget by prediction."""
        while True:
            batch = self.batch(size)
            if not self.size_is_open or self.fits(batch):
                return batch
            predicted = predict(self.project, self.params, self.store, batch)
            if batch.micro_batch_size == 1:
                check_budget(self.params, batch, predicted, self.resident)  # raises
            line = largest_fitting(self.params, predicted, self.resident) or 0
            size = max(1, min(line, batch.micro_batch_size - 1))
