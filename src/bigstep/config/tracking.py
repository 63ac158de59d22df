"""The section ``tracking``: what is logged, and its names in MLflow."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bigstep.config.section import Section

__all__ = ["TrackingConfig"]

MODEL_NAME = r"^[^/:'\"`\\]+$"  # MLflow takes no slash and no colon, and cannot look for quotes


class TrackingConfig(Section):
    """What is logged, and its names in MLflow (DVC does not follow these keys)."""

    title: ClassVar[str] = "tracking"
    learning: ClassVar[bool] = False

    noise_scale: Literal["first", "every", "none"] = Field(
        "first", description="estimate the gradient noise scale from the first or every micro-batch of a step"
    )
    experiment: str = Field(
        "bigstep", min_length=1, description="MLflow experiment; overridden by `mlflow run --experiment-name`"
    )
    registered_model: Annotated[str, Field(pattern=MODEL_NAME)] | None = Field(
        None,
        json_schema_extra={"rule": "null or a name without quotes, slash, colon or backslash"},
        description="model name in MLflow's registry; null = bigstep-<data.source>",
    )
