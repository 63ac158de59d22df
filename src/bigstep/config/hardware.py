"""The section ``hardware``: what decides speed and memory, never the result."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bigstep.config.section import Section
from bigstep.config.units import DURATION, SIZE

__all__ = ["HardwareConfig"]


class HardwareConfig(Section):
    """What decides speed and memory, never the result (DVC does not follow these keys)."""

    title: ClassVar[str] = "hardware"
    learning: ClassVar[bool] = False

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = the first CUDA device, else the CPU")
    processes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        "auto",
        description="processes on this machine that share each effective batch, with the same result (docs/scale.md); "
        "auto = one for each CUDA device, 1 on a CPU",
    )
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        "auto",
        description="m, maximum samples per forward/backward pass; null = B / accumulation_steps; "
        "auto = at most 32 in small trainings, else the fastest that fits in memory (docs/memory.md)",
    )
    accumulation_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="A, micro-batches per optimizer step; null = B / m, rounded up"
    )
    memory_budget: Annotated[str, Field(pattern=SIZE)] = Field(
        "auto",
        description="memory limit such as 4GiB, for each GPU or for all processes on a CPU; auto = 80 % of the machine's "
        "memory, 90 % of a GPU's; none = no limit",
        json_schema_extra={"rule": "auto, none or a size such as 512MiB, 4GiB or 1.5GB"},
    )
    activation_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass instead of storing them: less memory, more time"
    )
    checkpoint_interval: Annotated[str, Field(pattern=DURATION)] = Field(
        "60s",
        description="maximum time between two checkpoints; the first is written after 5 s, and one at the end of "
        "each epoch if that costs at most 1 % of the time; none = at the end of such epochs only",
        json_schema_extra={"rule": "none or a duration such as 60s, 10min or 1h"},
    )
    max_time: Annotated[str, Field(pattern=DURATION)] = Field(
        "none",
        description="stop the stage `train` after this time with a checkpoint and exit code 124, as where jobs are "
        "limited; the same command resumes; none = no limit",
        json_schema_extra={"rule": "none or a duration such as 60s, 10min or 1h"},
    )
    num_workers: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="worker processes that decode and augment images; 0 = in the main process; "
        "null = one per core in prepare, one per two cores in train, where all processes share them",
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="CPU threads of torch, of all processes together; null = 1 in a training of seconds on the CPU "
        "(not in a search, nor where OMP_NUM_THREADS is set), else torch's default",
    )
    memory_format: Literal["auto", "contiguous", "channels_last"] = Field(
        "auto",
        description="memory layout of image tensors in training; auto = contiguous in small trainings, else the faster one",
    )
    compile: bool = Field(
        default=False,
        description="run the passes of training through torch.compile (docs/speed.md); a run that is resumed keeps its choice",
    )
