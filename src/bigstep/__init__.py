"""bigstep: one exact optimizer step over a big batch, computed in small pieces.

>>> from bigstep import Accumulator, losses
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigstep.memory.prediction import MemoryPrediction, predict_memory
    from bigstep.step import losses
    from bigstep.step.accumulate import Accumulator, BackwardResult
    from bigstep.step.checking import CheckResult, check

__all__ = [
    "Accumulator",
    "BackwardResult",
    "CheckResult",
    "MemoryPrediction",
    "__version__",
    "check",
    "losses",
    "predict_memory",
]

__version__ = "0.1.0"

_HOMES = {
    "Accumulator": "bigstep.step.accumulate",
    "BackwardResult": "bigstep.step.accumulate",
    "CheckResult": "bigstep.step.checking",
    "MemoryPrediction": "bigstep.memory.prediction",
    "check": "bigstep.step.checking",
    "predict_memory": "bigstep.memory.prediction",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `bigstep --help` need not load torch."""
    if name == "losses":
        return importlib.import_module("bigstep.step.losses")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bigstep' has no attribute {name!r}")
