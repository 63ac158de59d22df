"""What the search records of a trial, as user attributes of Optuna's trial: the only place that knows their names.

The names are those of every version so far: a study of a former version is continued, and Optuna's dashboard and the runs'
tags show them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from bigstep.config.batch_sizes import BatchSizes
from bigstep.optuna_mlflow.trial_mapping import RUN_ID

__all__ = ["MEASURED", "SCORES", "SIZES", "SURPLUS", "WORKER", "TrialRecord", "learned"]

WORKER, SURPLUS = "worker", "surplus"
SIZES = ("learning_rate", "effective_batch_size", "micro_batch_size", "accumulation_steps")
SCORES = ("accuracy", "f1", "mae")  # of the tasks, beside the loss
MEASURED = ("seconds", "images_per_second", "peak_bytes")
ATTRIBUTES = {"heartbeat": "beat", "retries": "try", "run_id": RUN_ID}  # where a field's name is not the attribute's


def learned(score: str) -> tuple[str, ...]:
    """Return the fields of what a trial learned, in a task with this score."""
    return ("val_loss", f"val_{score}", "best_epoch", "epochs", "num_updates", "diverged")


@dataclass(frozen=True)
class TrialRecord:
    """The attributes of a trial; None: not recorded (yet)."""

    key: str | None = None
    """Of live trials with the same key only one counts."""
    worker: str | None = None
    heartbeat: str | None = None
    origin: int | None = None
    """Number of the trial that this one retries."""
    retries: int | None = None
    failed: str | None = None
    """Why the trial was given up: ``SURPLUS`` if others have used up the budget."""

    start: int | str | None = None
    """Which initial point it is; 0: the baseline."""
    exact: Mapping[str, Any] | None = None
    """Parameters by name; they replace the rounded ones of the point."""
    kind: str | None = None
    """``replicate`` or ``audit``."""
    of: int | None = None
    """Number of the trial that is retrained."""
    seed: int | None = None
    micro_batch_asked: int | None = None

    effective_batch_size: int | None = None
    micro_batch_size: int | None = None
    accumulation_steps: int | None = None
    learning_rate: float | None = None
    predicted_bytes: int | None = None
    refused: str | None = None
    """Why it is infeasible."""
    run_id: str | None = None

    val_loss: float | None = None
    val_accuracy: float | None = None
    val_f1: float | None = None
    val_mae: float | None = None
    best_epoch: int | None = None
    """Counted from 1 (from 0 in trials of earlier versions)."""
    epochs: int | None = None
    num_updates: int | None = None
    diverged: bool | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    peak_bytes: int | None = None
    noise_scale: float | None = None
    """In samples."""

    @classmethod
    def read(cls, trial: FrozenTrial | optuna.Trial) -> "TrialRecord":
        """Read the attributes of a trial; attributes of other programs are ignored."""
        known = trial.user_attrs
        return cls(**{field.name: known.get(_attribute(field.name)) for field in fields(cls)})

    def write(self, trial: optuna.Trial) -> None:
        """Write what is recorded here, one attribute after another; the trial's other attributes stay."""
        for name, value in self.attributes.items():
            trial.set_user_attr(name, value)

    @property
    def attributes(self) -> dict[str, Any]:
        """What is recorded, by the attributes' names."""
        found = {_attribute(field.name): getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def batch(self) -> BatchSizes:
        """The sizes of its step, of a trial that is described."""
        sizes = self.effective_batch_size, self.micro_batch_size, self.accumulation_steps
        assert None not in sizes
        return BatchSizes(*sizes)  # type: ignore[arg-type] # asserted above

    @property
    def is_described(self) -> bool:
        """Whether the sizes of its step are recorded, as they are before it is trained."""
        return all(getattr(self, name) is not None for name in SIZES)


def _attribute(field: str) -> str:
    return ATTRIBUTES.get(field, field)
