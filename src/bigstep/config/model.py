"""The section ``model``: the architecture, its normalisation and its starting weights."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bigstep.config.section import Section
from bigstep.user_code import is_user_code

__all__ = ["TIMM", "ModelConfig"]

TIMM = "timm/"  # before the name of a network of the package timm


class ModelConfig(Section):
    """The architecture, its normalisation and its starting weights (read by the stage ``train``)."""

    title: ClassVar[str] = "model"
    learning: ClassVar[bool] = True

    name: str = Field(
        "small_cnn",
        min_length=1,
        description="`small_cnn` (8 to 64 pixels), any torchvision classifier, one of timm as `timm/NAME`, or your own as "
        "`custom/model/file.py:name` or `package.module:name`, see docs/custom.md",
    )
    options: dict[str, Any] = Field(
        {},
        description="arguments of your own network, or of timm's, such as {depth: 3}",
        json_schema_extra={"rule": "mapping of arguments"},
    )
    width: int = Field(32, ge=4, le=1024, description="channels of the first layer (small_cnn only)")
    norm: Literal["group", "batch", "none"] = Field(
        "group",
        description="what to use for BatchNorm layers: GroupNorm, BatchNorm, or no normalisation",
    )
    ghost_batch_size: Annotated[int, Field(ge=2)] | None = Field(
        None, description="samples that BatchNorm normalises together (norm: batch only); also the micro-batch size"
    )
    batch_norm_statistics: Literal["plain", "corrected", "frozen", "recalibrated"] = Field(
        "corrected", description="norm: batch only: how running statistics are updated, see docs/concepts.md"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="dropout probability, if the architecture has dropout; null = the architecture's default"
    )
    weights: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="pretrained weights: a .safetensors or .pth file in weights/"
    )
    freeze_backbone: bool = Field(default=False, description="train only the head (requires weights)")

    @model_validator(mode="after")
    def check(self) -> "ModelConfig":
        """Refuse combinations that cannot work."""
        if self.options and not is_user_code(self.name) and not self.name.startswith(TIMM):
            raise ValueError(
                f"model.options: expected {{}} with model.name {self.name}, which takes none, got {self.options}; write {{}}"
            )
        if self.norm == "batch" and self.ghost_batch_size is None:
            raise ValueError("model.ghost_batch_size: expected a number with model.norm batch, got null; write for example 32")
        if self.norm != "batch" and self.ghost_batch_size is not None:
            raise ValueError(
                f"model.ghost_batch_size: expected null with model.norm {self.norm}, got {self.ghost_batch_size}; write null"
            )
        if self.freeze_backbone and self.weights is None:
            raise ValueError("model.freeze_backbone: expected false without model.weights, got true; set model.weights")
        return self
