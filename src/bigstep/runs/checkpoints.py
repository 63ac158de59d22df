"""When a training writes a checkpoint, and where it resumes."""

import contextlib
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors import SafetensorError

from bigstep.atomic_files import read_json, write_json
from bigstep.console import console
from bigstep.errors import CheckpointError
from bigstep.runs.checkpoint_files import clear_checkpoints, latest_values, load_latest, save_checkpoint
from bigstep.training.snapshot import KeptSlicing, Snapshot, is_finite, kept_slicing, restore_snapshot, take_snapshot
from bigstep.training.state import TrainingState

__all__ = ["CheckpointWriter", "ResumePoint", "checkpoint_interval"]

FIRST = 5.0  # seconds from a start to its first checkpoint
KEPT_STARTS = 9
SHARE = 0.01  # of the time between two checkpoints at the ends of epochs that writing one may take


@dataclass(frozen=True)
class ResumePoint:
    """Where a training resumed, the values saved for the caller, and tags that describe it."""

    step: int
    values: Mapping[str, Any]
    tags: Mapping[str, str]


@final
class CheckpointWriter:
    """Writes the checkpoints of one training when they are due, and finds the latest."""

    def __init__(
        self, folder: Path, every_seconds: float, tags: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Keep them in ``folder``; ``tags`` describe what differs from the start of the training."""
        self.folder = folder
        self._clock = clock
        self._opened, self._tried = clock(), False
        self._life: float | None = None
        self.every_seconds = every_seconds
        self.tags = tags
        self.num_written, self.written_seconds = 0, 0.0
        self.saved_step: int | None = None
        self._written = self._clock()
        self._cost = 0.0

    def kept_slicing(self) -> KeptSlicing | None:
        """Return the choice that the training started with, to be kept; None if there is no checkpoint yet."""
        values = latest_values(self.folder)
        return None if values is None else kept_slicing(values)

    def restore(self, state: TrainingState, *, micro_batch_size: int) -> ResumePoint | None:
        """Restore ``state`` from the latest checkpoint; None if there is no checkpoint.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged.
        """
        self._life = self._note_start()
        found = load_latest(self.folder)
        if found is None:
            return None
        snapshot, commit, problems = found
        for problem in problems:
            console.print(f"skipped a damaged checkpoint: {problem}")
        try:
            restore_snapshot(state, snapshot, micro_batch_size=micro_batch_size)
            kept = snapshot.values["kept"]
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder}: expected a checkpoint of this model and optimizer, got another at step {snapshot.step} "
                f"({type(error).__name__}: {error}); delete the folder to start from the first step"
            ) from None
        tags = {**self.tags, "bigstep.resumed_at_step": str(snapshot.step)}
        changed = {name: was for name, was in commit.versions.items() if _versions().get(name) != was}
        if changed:
            text = ", ".join(f"{name} {was}" for name, was in changed.items())
            console.print(f"this training was started with {text}; resuming, but results may differ in the last bits")
            tags["bigstep.resumed_with_other_versions"] = text
        return ResumePoint(snapshot.step, kept, tags)

    def is_due(self, *, at_epoch_end: bool) -> bool:
        """Return whether to write one now: enough time has passed, or an epoch ends and writing costs little against it."""
        passed = self._clock() - self._written
        lived = None if self._life is None else max(self._life, self._clock() - self._opened)
        interval = checkpoint_interval(self.every_seconds, self._cost if self._tried else None, lived)
        return passed >= interval or (at_epoch_end and self._cost <= SHARE * passed)

    def save(self, state: TrainingState, kept: Mapping[str, Any], *, micro_batch_size: int) -> bool:
        """Write one, with plain values of the caller's; False, and one line, if that fails: the training continues."""
        started = self._clock()
        if not is_finite(state):
            console.print(f"no checkpoint at step {state.step}: a parameter is not finite; the previous one stays")
            return False
        snapshot = take_snapshot(state, micro_batch_size=micro_batch_size)
        whole = Snapshot(snapshot.step, snapshot.tensors, {**snapshot.values, "kept": dict(kept)})
        try:
            save_checkpoint(self.folder, whole, _versions())
        except (OSError, SafetensorError) as error:
            console.print(f"no checkpoint at step {state.step}: {error}; the previous one stays, and the training continues")
            self._note_cost(started)
            return False
        self._note_cost(started)
        self.num_written, self.written_seconds = self.num_written + 1, self.written_seconds + self._cost
        self.saved_step = snapshot.step
        return True

    def _note_cost(self, started: float) -> None:
        self._written, self._tried = self._clock(), True
        self._cost = self._written - started

    def clear(self) -> None:
        """Delete them: the training has ended."""
        clear_checkpoints(self.folder)
        self._starts.unlink(missing_ok=True)

    @property
    def _starts(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.starts.json")

    def _note_start(self) -> float | None:
        """Record that the training starts now.

        Returns:
            The mean seconds from one start to the next; None at the first.
        """
        try:
            starts = [float(item) for item in read_json(self._starts)["starts"]]
        except (OSError, ValueError, TypeError, KeyError):
            starts = []
        starts = [*starts[-KEPT_STARTS:], time.time()]
        with contextlib.suppress(OSError):  # a full disk does not end a training
            self._starts.parent.mkdir(parents=True, exist_ok=True)
            write_json({"starts": starts}, self._starts)
        return max(0.0, starts[-1] - starts[0]) / (len(starts) - 1) if len(starts) > 1 else None


def checkpoint_interval(longest: float, cost: float | None, life: float | None) -> float:
    """Return the seconds from one checkpoint to the next.

    The first of a start comes soon, or a training that is killed often never advances. Where nothing killed it the others take
    at most :data:`SHARE` of the time; where something did, the interval is the one that loses least
    (J. W. Young, A first order approximation to the optimum checkpoint interval, 1974): sqrt(2 * cost * life).

    Args:
        longest: seconds, of ``hardware.checkpoint_interval``.
        cost: seconds that writing the last one took; None before the first.
        life: mean seconds between two starts of this training; None at its first start.
    """
    if math.isinf(longest):
        return longest  # at the ends of epochs only
    if cost is None:
        return min(longest, FIRST)
    if life is None:
        return min(longest, max(FIRST, cost / SHARE))
    return min(longest, max(math.sqrt(2 * cost * life), cost))


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "numpy": np.__version__, "torch": str(torch.__version__)}
