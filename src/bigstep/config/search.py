"""The section ``search``: what `bigstep search` tries, for how long, and what it optimizes."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bigstep.config.section import Section
from bigstep.config.units import DURATION

__all__ = ["OBJECTIVES", "Range", "SearchConfig"]

Objective = Literal["val_loss", "val_accuracy", "val_f1", "val_mae", "seconds", "peak_bytes"]
OBJECTIVES: dict[str, str] = {
    "val_loss": "minimize",
    "val_accuracy": "maximize",
    "val_f1": "maximize",
    "val_mae": "minimize",
    "seconds": "minimize",
    "peak_bytes": "minimize",
}
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Rates = Annotated[tuple[Positive, Positive], Field(strict=False)]
Counts = Annotated[tuple[Count, Count], Field(strict=False)]
TAKEN = ("train.learning_rate", "train.effective_batch_size", "train.epochs", "train.seed")


class Range(BaseModel):
    """From ``low`` to ``high``, both included; whole numbers where both are; ``log`` draws the exponent evenly."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("no range")
        return self


Choices = Annotated[tuple[bool | int | float | str, ...], Field(strict=False, min_length=2)]


class SearchConfig(Section):
    """What `bigstep search` tries, for how long, and what it optimizes."""

    title: ClassVar[str] = "search"
    learning: ClassVar[bool] = False

    trials: int = Field(20, ge=1, description="total number of trials, across restarts and machines")
    max_time: Annotated[str, Field(pattern=DURATION)] = Field(
        "none",
        description="start no new trial after this time; none = no limit",
        json_schema_extra={"rule": "none or a duration such as 60s, 10min or 1h"},
    )
    epochs: Count | None = Field(None, description="epochs per trial; null = train.epochs")
    space: Literal["planned", "full"] = Field(
        "planned",
        description="planned = search learning rate and effective batch, use the fastest slicing; full = search learning rate, "
        "accumulation steps and micro-batch size",
    )
    learning_rate: Rates | None = Field(None, description="[lowest, highest]; null = from 0.1 to 10 times train.learning_rate")
    effective_batch_size: Counts = Field((8, 512), description="space planned: [lowest, highest], powers of two")
    micro_batch_size: Counts = Field((4, 256), description="space full: [lowest, highest], powers of two")
    accumulation_steps: Counts = Field((1, 64), description="space full: [lowest, highest], powers of two")
    parameters: dict[str, Range | Choices] = Field(
        {},
        description="more keys to search, such as {train.weight_decay: {low: 1e-4, high: 0.1, log: true}, "
        "train.optimizer: [adamw, sgd]}",
        json_schema_extra={"rule": "a mapping of section.key to {low: ..., high: ..., log: ...} or a list of choices"},
    )
    objective: Objective | Annotated[tuple[Objective, ...], Field(strict=False, min_length=2)] = Field(
        "val_loss",
        description="what to optimize; a list (may include seconds and peak_bytes) gives a Pareto front",
        json_schema_extra={
            "rule": "one of val_loss, val_accuracy, val_f1, val_mae, or a list of these, seconds and peak_bytes"
        },
    )
    sampler: Literal["auto", "tpe", "gp", "cmaes", "random", "qmc"] = Field(
        "auto", description="Optuna sampler; auto = the best of docs/search.md for the search space"
    )
    pruner: Literal["median", "none"] = Field(
        "median",
        description="median = stop trials that are worse than the median after as many samples (one objective only)",
    )
    confirm_top: int = Field(3, ge=0, description="number of best trials to retrain with new seeds; 0 = off")
    confirm_seeds: int = Field(3, ge=1, description="new seeds for each of them; the best mean wins")
    audit_fraction: float = Field(
        0.05, ge=0, le=1, description="fraction of the trials to retrain with another slicing, as a check"
    )
    workers: Count | None = Field(
        None,
        description="worker processes, which share this machine's cores and memory; null = by number of cores, 1 on a GPU",
    )
    storage: str | None = Field(
        None,
        min_length=1,
        description="storage of the study: path of a journal file, or postgresql://...; null = in .bigstep/search",
    )
    study: str = Field(
        "search",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of the study",
        json_schema_extra={
            "rule": "a name of letters, digits, dots, dashes and underscores that starts with a letter or digit"
        },
    )
    seed: int = Field(0, ge=0, description="seed of the sampler and of the audit")

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objectives of a trial, in order."""
        return (self.objective,) if isinstance(self.objective, str) else tuple(self.objective)

    @model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        for name in ("learning_rate", "effective_batch_size", "micro_batch_size", "accumulation_steps"):
            pair = getattr(self, name)
            if pair is not None and pair[0] > pair[1]:
                raise ValueError(f"search.{name}: expected [lowest, highest], got {list(pair)}; swap them")
        for name in self.parameters:
            plain = name.replace("model.options.", "model.", 1)
            if plain.count(".") != 1 or name in TAKEN or name.partition(".")[0] not in ("model", "train"):
                raise ValueError(
                    f"search.parameters: expected keys of model or train other than {', '.join(TAKEN)}, got {name!r}; "
                    "write for example train.weight_decay"
                )
        if self.objective in ("seconds", "peak_bytes"):
            raise ValueError(
                f"search.objective: expected val_loss or val_accuracy if it is one, got {self.objective}; add val_loss"
            )
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"search.objective: expected each objective once, got {list(self.objectives)}; remove duplicates")
        return self
