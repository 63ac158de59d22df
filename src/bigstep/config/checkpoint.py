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
        description="maximum time between two checkpoints; the first is written after 5 s, and one at the end of "
        "each epoch; none = at the end of each epoch only",
        json_schema_extra={"rule": "none or a duration such as 60s, 10min or 1h"},
    )
