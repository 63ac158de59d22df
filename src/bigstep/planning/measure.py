"""Measure speed and memory over micro-batch sizes, in a separate process."""

import json
import subprocess
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from bigstep.config.params import Params
from bigstep.config.yaml_files import parse_section
from bigstep.console import console
from bigstep.data.store import Store
from bigstep.errors import ProjectError
from bigstep.planning.throughput import SizeMeasurement, ThroughputCurve
from bigstep.runtime.child_process import start_module

__all__ = ["MeasurementRequest", "climb_configured", "measure"]


@dataclass(frozen=True)
class MeasurementRequest:
    """What to measure: sections of params.yaml as plain values, the shape of the images, and a deadline."""

    sections: dict[str, dict[str, Any]]
    channels: int
    size: int
    num_classes: int
    until: float
    """Seconds since 1970 after which no further size is measured."""

    def section(self, kind: Any) -> Any:
        """Return one section."""
        return parse_section(kind, self.sections, "plan")


def measure(params: Params, store: Store, seconds: float, *, others: bool) -> tuple[ThroughputCurve, ...]:
    """Measure speed and memory of slicings, in at most ``seconds``; ``others``: of other precisions and memory formats, too."""
    end = time.perf_counter() + seconds
    chosen = (params.train.precision, params.hardware.memory_format)
    every = [(p, f) for p in ("float32", "bfloat16") for f in ("contiguous", "channels_last")]
    wanted = [chosen, *(kind for kind in every if kind != chosen and others)]
    found = []
    for number, (precision, memory_format) in enumerate(wanted):
        left = end - time.perf_counter()
        if number and left < 6:
            break
        share = left * (0.5 if others else 1.0) if number == 0 else left / (len(wanted) - number)
        console.print(f"measuring {params.model.name} in {precision}, {memory_format} ...")
        kind = {"train": {"precision": precision}, "hardware": {"memory_format": memory_format}}
        shape = store.manifest.channels, store.manifest.size, len(store.manifest.classes)
        ladder = _climb(params, kind, shape, share)
        if ladder is not None:
            found.append(ladder)
    return tuple(found)


def climb_configured(params: Params, *, channels: int, size: int, num_classes: int, seconds: float) -> ThroughputCurve:
    """Measure the configured precision and memory format, for images of a shape."""
    found = _climb(params, {}, (channels, size, num_classes), seconds)
    assert found is not None
    return found


def _climb(
    params: Params, changes: dict[str, dict[str, str]], shape: tuple[int, int, int], seconds: float
) -> ThroughputCurve | None:
    sections = {name: getattr(params, name).model_dump(mode="json") for name in ("model", "train", "hardware", "tracking")}
    sections["model"].update(weights=None, freeze_backbone=False)
    sections["train"].update(class_weights=None, effective_batch_size=params.batch.effective_batch_size)
    for name, values in changes.items():
        sections[name].update(values)
    request = MeasurementRequest(sections, *shape, until=time.time() + seconds)
    process = start_module("bigstep.planning.measure_worker", stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(seconds + 20, process.kill)
    timer.daemon = True
    timer.start()
    try:
        process.stdin.write(json.dumps(asdict(request)))
        process.stdin.close()
        lines: list[dict[str, Any]] = [json.loads(line) for line in process.stdout if line.endswith("}\n")]
    finally:
        timer.cancel()
        process.stdout.close()
        process.wait()
    rungs = tuple(SizeMeasurement(**line) for line in lines if "micro_batch_size" in line)
    if not rungs and process.returncode > 0:  # below zero: killed by a signal, as when memory runs out
        raise ProjectError(
            f"measuring {params.model.name}: expected exit code 0, got {process.returncode}; see the message above"
        )
    if not rungs:
        return None
    precision, memory_format = sections["train"]["precision"], sections["hardware"]["memory_format"]
    complete = rungs[-1].micro_batch_size < params.batch.effective_batch_size
    return ThroughputCurve(precision, memory_format, lines[0]["update_seconds"], rungs, complete)
