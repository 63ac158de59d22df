"""The section ``checkpoint``: how often training is saved to disk; it does not affect the result."""

from typing import Annotated, ClassVar

from pydantic import Field

from bigstep.config.section import Section
from bigstep.config.units import DURATION

__all__ = ["CheckpointConfig"]


class CheckpointConfig(Section):
    """How often training is saved to disk, to resume after a kill (DVC does not follow these keys)."""

    title: ClassVar[str] = "checkpoint"
    learning: ClassVar[bool] = False

    every: Annotated[str, Field(pattern=DURATION)] = Field(
        "60s",
        description="longest time between two checkpoints; the first of a start comes after 5 s, the others as often as they "
        "are worth their cost; one is written at the end of each epoch besides; none = only there",
        json_schema_extra={"rule": "none or a duration such as 60s, 10min or 1h"},
    )
