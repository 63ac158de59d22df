"""The section ``model``: the architecture, its normalisation and its starting weights."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from bigstep.config.section import Section

__all__ = ["ModelConfig"]


class ModelConfig(Section):
    """The architecture, its normalisation and its starting weights (read by the stage ``train``)."""

    title: ClassVar[str] = "model"
    learning: ClassVar[bool] = True

    name: str = Field("small_cnn", min_length=1, description="`small_cnn` (8 to 64 pixels) or any torchvision classifier")
    width: int = Field(32, ge=4, le=1024, description="channels of the first layer of small_cnn")
    norm: Literal["group", "batch", "none"] = Field(
        "group",
        description="normalisation where the architecture has BatchNorm: GroupNorm in its place, itself, or none",
    )
    ghost_batch_size: Annotated[int, Field(ge=2)] | None = Field(
        None, description="samples BatchNorm normalises together (norm: batch only); the micro-batch then equals it"
    )
    batch_norm_statistics: Literal["plain", "corrected", "frozen", "recalibrated"] = Field(
        "corrected", description="norm batch: what moves BatchNorm's running statistics; see docs/concepts.md"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="dropout probability, where the architecture has dropout; null = its own"
    )
    weights: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="weights to start from: a .safetensors or .pth file in the folder weights/"
    )
    freeze_backbone: bool = Field(default=False, description="train the head only (needs weights)")

    @model_validator(mode="after")
    def check(self) -> "ModelConfig":
        """Refuse combinations that cannot work."""
        if self.norm == "batch" and self.ghost_batch_size is None:
            raise ValueError("model.ghost_batch_size: expected a number with model.norm batch, got null; write for example 32")
        if self.norm != "batch" and self.ghost_batch_size is not None:
            raise ValueError(
                f"model.ghost_batch_size: expected null with model.norm {self.norm}, got {self.ghost_batch_size}; write null"
            )
        if self.freeze_backbone and self.weights is None:
            raise ValueError("model.freeze_backbone: expected false without model.weights, got true; set model.weights")
        return self
