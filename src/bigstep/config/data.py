"""The section ``data``: which images, and how they are laid out, split and normalised."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bigstep.config.section import Section
from bigstep.user_code import is_user_code

__all__ = ["FILES", "SOURCES", "DataConfig", "short_source"]

SOURCES = ("digits", "fashion-mnist", "cifar10", "image-folder", "table")
FILES = ("image-folder", "table")  # sources of image files of any size
Roles = Literal["path", "class", "labels", "targets", "part", "group"]

Fraction = Annotated[float, Field(gt=0, lt=1)]


class DataConfig(Section):
    """Which images, and how they are laid out, split and normalised (read by the stage ``prepare``)."""

    title: ClassVar[str] = "data"
    learning: ClassVar[bool] = True

    source: str = Field(
        "digits",
        min_length=1,
        description="data set to use; `digits` is included in the package; "
        "`custom/data/file.py:name` or `package.module:name` is your own, see docs/custom.md",
        json_schema_extra={"rule": f"one of {', '.join(SOURCES)}, or your own as custom/data/file.py:name"},
    )
    options: dict[str, Any] = Field(
        {},
        description="arguments of your own data set, such as {language: en}",
        json_schema_extra={"rule": "mapping of arguments"},
    )
    root: str = Field(
        "data/raw", min_length=1, description="folder with the images, relative to the project; not used by digits"
    )
    table: str | None = Field(
        None,
        min_length=1,
        description="source table: a .csv or .parquet file below `root` with a row for each image; null = labels.csv or "
        "labels.parquet",
        json_schema_extra={"rule": "null or a path"},
    )
    columns: dict[Roles, str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)]] = Field(
        {},
        description="source table: columns that are not called path, class, labels, targets, part or group, such as "
        "{path: file, targets: [age, weight]}; see docs/custom.md",
        json_schema_extra={"rule": "mapping of path, class, labels, targets, part or group to a column or a list of columns"},
    )
    download: bool = Field(default=False, description="download fashion-mnist or cifar10 into `root` if it is missing")
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        None,
        description="pixels per side after centre crop and resize; null = as in the source (image-folder, table: required)",
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1 = grey, 3 = colour; null = as in the source (image-folder, table: 3)"
    )
    pixel_statistics: Literal["measured", "imagenet"] = Field(
        "measured", description="mean and standard deviation: of the training images, or ImageNet's"
    )
    validation_fraction: Fraction = Field(
        0.15, description="fraction of the training samples held out for validation; of those without a part, if there are any"
    )
    test_fraction: Fraction = Field(
        0.2,
        description="fraction held out for the test, if the source has no test set; of those without a part, if there are any",
    )
    split_seed: int = Field(0, ge=0, description="seed of the split, independent of train.seed")
    on_bad_image: Literal["skip", "fail"] = Field(
        "skip", description="skip = leave out a damaged file and list it in skipped.csv; fail = stop the stage"
    )
    max_megapixels: float = Field(64.0, gt=0, description="larger images are not decoded")

    @model_validator(mode="after")
    def check(self) -> "DataConfig":
        """Refuse combinations that cannot work."""
        if self.source not in SOURCES and not is_user_code(self.source):
            raise ValueError(
                f"data.source: expected one of {', '.join(SOURCES)}, or your own as custom/data/file.py:name, "
                f"got {self.source!r}; write for example digits"
            )
        if self.options and not is_user_code(self.source):
            raise ValueError(
                f"data.options: expected {{}} with data.source {self.source}, which takes none, got {self.options}; write {{}}"
            )
        if self.root.startswith("~"):
            raise ValueError(
                f"data.root: expected a path without ~, which DVC does not replace, got {self.root!r}; write the absolute path"
            )
        if self.source in FILES and self.image_size is None:
            raise ValueError(
                f"data.image_size: expected a number with data.source {self.source}, got null; write for example 64"
            )
        for key, empty in (("table", None), ("columns", {})):
            if self.source != "table" and getattr(self, key) != empty:
                shown = "null" if empty is None else "{}"
                raise ValueError(
                    f"data.{key}: expected {shown} with data.source {self.source}, got {getattr(self, key)}; "
                    f"write {shown}, or data.source=table"
                )
        if self.download and self.source not in ("fashion-mnist", "cifar10"):
            raise ValueError(
                f"data.download: expected false with data.source {self.source} (nothing to download), got true; write false"
            )
        if self.validation_fraction + self.test_fraction >= 1:
            total = self.validation_fraction + self.test_fraction
            raise ValueError(
                f"data.validation_fraction + data.test_fraction: expected a sum < 1, got {total:g}; lower one of them"
            )
        return self


def short_source(source: str) -> str:
    """Return the name to show for ``data.source``, also in MLflow's registry: of your own code, the name of its function."""
    return source.rpartition(":")[2]
