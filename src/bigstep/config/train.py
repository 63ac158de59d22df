"""The section ``train``: everything that decides what is learned, given data and model."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from bigstep.config.section import Named, Section

__all__ = ["TrainConfig"]

Positive = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Augmentation = Literal["none", "flip", "shift", "shift-flip"] | Annotated[tuple[Named, ...], Field(strict=False, min_length=1)]


class TrainConfig(Section):
    """Everything that decides what is learned, given data and model (read by the stage ``train``)."""

    title: ClassVar[str] = "train"
    learning: ClassVar[bool] = True

    epochs: int = Field(20, ge=1, description="passes over the training samples")
    effective_batch_size: Annotated[int, Field(ge=1)] | None = Field(
        64, description="B, samples per optimizer step; null = micro_batch_size * accumulation_steps"
    )
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adamw", description="optimizer from torch.optim")
    learning_rate: Positive = Field(0.004, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="weight decay; not applied to biases and normalisation layers")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd: momentum")
    nesterov: bool = Field(default=False, description="sgd: use Nesterov momentum")
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = Field(
        (0.9, 0.999), description="adam and adamw: decay rates of the moment estimates"
    )
    schedule: Literal["constant", "cosine", "linear", "step", "plateau"] = Field(
        "cosine", description="learning rate schedule, updated every optimizer step (plateau: every validation)"
    )
    warmup_fraction: float = Field(
        0.05, ge=0, lt=1, description="fraction of the optimizer steps used for linear warm-up; must be 0 with plateau"
    )
    lr_decay_epochs: int = Field(10, ge=1, description="schedule step: epochs between reductions, from the start of training")
    lr_decay_factor: float = Field(0.1, gt=0, lt=1, description="schedules step and plateau: factor of each reduction")
    plateau_patience: int = Field(3, ge=0, description="schedule plateau: validations without improvement before a reduction")
    loss: Named | None = Field(
        None,
        description="loss to train with; null = the task's (cross-entropy, binary cross-entropy, squared error), a loss of "
        "torch.nn such as {HuberLoss: {delta: 2.0}}, or your own as `custom/model/file.py:name`, see docs/custom.md",
        json_schema_extra={"rule": "null, a name, or {name: {argument: value}}"},
    )
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="label smoothing, as in torch's CrossEntropyLoss")
    class_weights: Literal["balanced"] | Annotated[tuple[Positive, ...], Field(strict=False, min_length=2)] | None = Field(
        None, description="`balanced` (by inverse frequency), a list with one weight per class, or null"
    )
    clip_norm: Positive | None = Field(1.0, description="maximum gradient norm of the effective batch; null = off")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="decay of the exponential moving average of the weights, per optimizer step; null = off"
    )
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = Field(
        None, description="validations without improvement before training stops; null = off"
    )
    monitor: Literal["val_loss", "val_accuracy", "val_f1", "val_mae"] = Field(
        "val_loss",
        description="metric that selects the epoch to keep: val_loss, or the score of the data's task (classes: val_accuracy, "
        "several labels: val_f1, numbers: val_mae)",
    )
    augmentation: Augmentation = Field(
        "shift",
        description="mirroring, shifts by up to one eighth, or torchvision.transforms.v2 by name; random numbers depend "
        "on (seed, epoch, sample) only; RandomApply, RandomChoice and RandomOrder nest: see the end of docs/parameters.md; "
        "an entry of a list may be your own, as `custom/model/file.py:name`",
        json_schema_extra={
            "rule": "one of none, flip, shift, shift-flip, or a list of transforms: a name, or {name: {argument: value}}"
        },
    )
    mixup_alpha: Positive | None = Field(None, description="mixup; the ratio is drawn from Beta(alpha, alpha); null = off")
    cutmix_alpha: Positive | None = Field(None, description="cutmix; the area is drawn from Beta(alpha, alpha); null = off")
    keyed_randomness: bool = Field(
        default=True, description="make dropout depend on (seed, step, position) only, not on the micro-batch size"
    )
    precision: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        "float32", description="bfloat16 and float16 use autocast with float32 weights"
    )
    max_nonfinite_steps: int = Field(
        20, ge=1, description="stop after this many consecutive steps with a non-finite gradient (each is skipped)"
    )
    seed: int = Field(0, ge=0, description="seed of initial weights, sample order, augmentation and dropout")

    @model_validator(mode="after")
    def check(self) -> "TrainConfig":
        """Refuse combinations that cannot work."""
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError(
                "train.nesterov: expected false unless train.optimizer is sgd with momentum > 0, "
                f"got true with {self.optimizer}, momentum {self.momentum:g}; write false"
            )
        if self.schedule == "plateau" and self.warmup_fraction > 0:
            raise ValueError(
                f"train.warmup_fraction: expected 0 with train.schedule plateau, got {self.warmup_fraction:g}; write 0"
            )
        return self
