"""The section ``train``: everything that decides what is learned, given data and model."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bigstep.config.section import Section

__all__ = ["TrainConfig"]

Positive = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Named = str | dict[str, dict[str, Any]]  # a transform, with or without arguments
Augmentation = Literal["none", "flip", "shift", "shift-flip"] | Annotated[tuple[Named, ...], Field(strict=False, min_length=1)]


class TrainConfig(Section):
    """Everything that decides what is learned, given data and model (read by the stage ``train``)."""

    title: ClassVar[str] = "train"
    learning: ClassVar[bool] = True

    epochs: int = Field(20, ge=1, description="passes over the training images")
    effective_batch_size: Annotated[int, Field(ge=1)] | None = Field(
        64, description="B, samples of one optimizer step; null = micro_batch_size * accumulation_steps"
    )
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adamw", description="torch.optim's")
    learning_rate: Positive = Field(0.004, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="as the optimizer defines it; not on biases and norms")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    nesterov: bool = Field(default=False, description="sgd only")
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = Field((0.9, 0.999), description="adam and adamw only")
    schedule: Literal["constant", "cosine", "linear", "step", "plateau"] = Field(
        "cosine", description="of the learning rate, stepped once per optimizer step (plateau: once per validation)"
    )
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="share of the updates with linear warm-up; 0 with plateau")
    step_epochs: int = Field(10, ge=1, description="schedule step: epochs between two cuts")
    factor: float = Field(0.1, gt=0, lt=1, description="schedules step and plateau: what a cut multiplies by")
    plateau_patience: int = Field(3, ge=0, description="schedule plateau: validations without gain before a cut")
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="share of each target spread over all classes")
    class_weights: Literal["balanced"] | Annotated[tuple[Positive, ...], Field(strict=False, min_length=2)] | None = Field(
        None, description="`balanced`, one weight a class, or null"
    )
    clip_norm: Positive | None = Field(1.0, description="largest norm of the gradient of the effective batch; null = off")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="decay of an average of the weights, per optimizer step; null = off"
    )
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = Field(
        None, description="validations without gain before training ends; null = off"
    )
    select_by: Literal["val_loss", "val_accuracy"] = Field("val_loss", description="what the kept epoch is best in")
    augmentation: Augmentation = Field(
        "shift",
        description="mirror and one-eighth shifts, or torchvision.transforms.v2 by name; keyed by (seed, epoch, sample)",
        json_schema_extra={
            "rule": "one of none, flip, shift, shift-flip, or a list of transforms: a name, or {name: {argument: value}}"
        },
    )
    mixup_alpha: Positive | None = Field(None, description="mixup with a share from Beta(alpha, alpha); null = off")
    cutmix_alpha: Positive | None = Field(None, description="cutmix with an area from Beta(alpha, alpha); null = off")
    keyed_randomness: bool = Field(
        default=True, description="key dropout by (seed, step, position), so that it does not depend on the cut"
    )
    precision: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        "float32", description="bfloat16 and float16 by autocast over float32 weights"
    )
    max_bad_steps: int = Field(
        20, ge=1, description="steps in a row without a finite gradient, all of them dropped, before training stops"
    )
    seed: int = Field(0, ge=0, description="of weights, order, augmentation and dropout")

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
