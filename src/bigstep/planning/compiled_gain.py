"""What ``hardware.compile`` gains: a slicing measured compiled and not, in turns in one process."""

from dataclasses import dataclass

from bigstep.config.params import Params
from bigstep.console import console
from bigstep.data.store import Store
from bigstep.errors import ConfigError
from bigstep.planning.measure import MeasuredData, MeasurementRequest, ask, plain_sections

__all__ = ["CompiledGain", "measure_compiled"]

LONGEST_SECONDS = 900.0  # compiling a large network takes minutes


@dataclass(frozen=True)
class CompiledGain:
    """Samples per second of compiled code over those of the model itself, and what compiling took."""

    ratio: float
    compile_seconds: float


def measure_compiled(params: Params, store: Store, memory_format: str, micro_batch_size: int) -> CompiledGain:
    """Measure steps of a slicing.

    Raises:
        ConfigError: the model cannot be compiled here.
    """
    console.print(f"measuring {params.model.name} compiled ...")
    request = MeasurementRequest(
        plain_sections(params, {"hardware": {"memory_format": memory_format}}),
        MeasuredData.of(store),
        until=0.0,
        sizes=(micro_batch_size,),
        compiled=True,
    )
    lines = ask(request, params.model.name, LONGEST_SECONDS)
    if not lines or "refused" in lines[0]:
        raise ConfigError(lines[0]["refused"] if lines else f"it took more than {LONGEST_SECONDS:.0f} s, or more memory")
    return CompiledGain(**lines[0])
