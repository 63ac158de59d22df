"""The section ``data``: which images, and how they are laid out, split and normalised."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from bigstep.config.section import Section

__all__ = ["DataConfig"]

Fraction = Annotated[float, Field(gt=0, lt=1)]


class DataConfig(Section):
    """Which images, and how they are laid out, split and normalised (read by the stage ``prepare``)."""

    title: ClassVar[str] = "data"
    learning: ClassVar[bool] = True

    source: Literal["digits", "fashion-mnist", "cifar10", "image-folder"] = Field(
        "digits", description="where the images come from; `digits` is embedded"
    )
    root: str = Field(
        "data/raw", min_length=1, description="the source's folder, from the project's root; digits needs none in it"
    )
    download: bool = Field(default=False, description="fetch fashion-mnist or cifar10 into `root` when they are not there")
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        None, description="pixels a side after centre crop and resize; null = the source's own (image-folder has none)"
    )
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 colour; null = the source's own (image-folder: 3)")
    normalization: Literal["measured", "imagenet"] = Field(
        "measured", description="mean and deviation: of the training images, or ImageNet's"
    )
    validation_fraction: Fraction = Field(0.15, description="share of the training images kept for validation")
    test_fraction: Fraction = Field(0.2, description="share kept for the test, where the source has no test set")
    split_seed: int = Field(0, ge=0, description="seed of the split, apart from train.seed")
    on_bad_image: Literal["refuse", "fail"] = Field(
        "refuse", description="a damaged file is listed in refused.csv, or ends the stage"
    )
    max_megapixels: float = Field(64.0, gt=0, description="larger images are refused before they are decoded")

    @model_validator(mode="after")
    def check(self) -> "DataConfig":
        """Refuse combinations that cannot work."""
        if self.source == "image-folder" and self.image_size is None:
            raise ValueError("data.image_size: expected a number with data.source image-folder, got null; write for example 64")
        if self.download and self.source in ("digits", "image-folder"):
            raise ValueError(
                f"data.download: expected false with data.source {self.source} (nothing to download), got true; write false"
            )
        if self.validation_fraction + self.test_fraction >= 1:
            total = self.validation_fraction + self.test_fraction
            raise ValueError(
                f"data.validation_fraction + data.test_fraction: expected a sum < 1, got {total:g}; lower one of them"
            )
        return self
