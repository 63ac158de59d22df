"""The section ``hardware``: what decides speed and memory, never the result."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bigstep.config.section import Section
from bigstep.config.units import SIZE

__all__ = ["HardwareConfig"]


class HardwareConfig(Section):
    """What decides speed and memory, never the result (DVC does not follow these keys)."""

    title: ClassVar[str] = "hardware"
    learning: ClassVar[bool] = False

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = the first CUDA device, else the CPU")
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        32,
        description="m, the most samples of one forward and backward pass; null = B / accumulation_steps; "
        "auto = the fastest measured within the budget",
    )
    accumulation_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="A, micro-batches per optimizer step; null = B / m, rounded up"
    )
    memory_budget: Annotated[str, Field(pattern=SIZE)] = Field(
        "auto",
        description="limit as 4GiB, of a GPU's allocator or the process's resident memory; auto = by the total; none",
        json_schema_extra={"rule": "auto, none or a size such as 512MiB, 4GiB or 1.5GB"},
    )
    num_workers: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="processes that decode in prepare and transform in train; 0 = none but the main one; null = by the cores",
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(None, description="of torch on the CPU; null = torch's choice")
    memory_format: Literal["contiguous", "channels_last"] = Field("contiguous", description="layout of image tensors in memory")
