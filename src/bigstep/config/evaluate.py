"""The section ``evaluate``: how the trained model is evaluated."""

from typing import Annotated, ClassVar

from pydantic import Field

from bigstep.config.section import Named, Section

__all__ = ["EvaluateConfig"]


class EvaluateConfig(Section):
    """How the trained model is evaluated (read by the stage ``evaluate``)."""

    title: ClassVar[str] = "evaluate"
    learning: ClassVar[bool] = True

    calibration_bins: int = Field(15, ge=2, le=1000, description="number of bins of the expected calibration error")
    metrics: Annotated[tuple[Named, ...], Field(strict=False)] = Field(
        (),
        description="more scores on the test part: classes of torchmetrics by name, such as {AUROC: {average: macro}}, "
        "or your own as `custom/model/file.py:name`, see docs/custom.md",
        json_schema_extra={"rule": "list of names, or {name: {argument: value}}"},
    )
    num_mistakes: int = Field(25, ge=1, le=400, description="number of mistakes shown in mistakes.png, worst first")
