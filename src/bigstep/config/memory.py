"""The section ``memory``: what saves memory at the cost of time, never of the result."""

from typing import ClassVar

from pydantic import Field

from bigstep.config.section import Section

__all__ = ["MemoryConfig"]


class MemoryConfig(Section):
    """What saves memory at the cost of time, never of the result (DVC does not follow these keys)."""

    title: ClassVar[str] = "memory"
    learning: ClassVar[bool] = False

    checkpoint_activations: bool = Field(
        default=False, description="recompute activations in the backward pass instead of storing them: less memory, more time"
    )
