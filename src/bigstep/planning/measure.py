"""Measure speed and memory over micro-batch sizes, in a separate process."""

import contextlib
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
from bigstep.models.building import InputShape
from bigstep.planning.throughput import SizeMeasurement, ThroughputCurve
from bigstep.runtime.child_process import read_answer, start_module
from bigstep.runtime.device import MEMORY_FORMATS, possible_formats
from bigstep.tasks.targets import CLASSIFICATION

__all__ = ["MeasuredData", "MeasurementRequest", "ask", "climb_configured", "measure", "measure_formats", "plain_sections"]

LONGEST_WAIT = 600.0  # seconds for the first size, and for ``auto``, whose process stops much earlier by itself


@dataclass(frozen=True)
class MeasuredData:
    """What is measured with: made-up samples and targets like those of a store."""

    channels: int
    size: int
    num_classes: int
    task: str = CLASSIFICATION
    sample_shape: tuple[int, ...] = ()
    sample_dtype: str = "uint8"

    @classmethod
    def of(cls, store: Store) -> "MeasuredData":
        """Return what is like the samples of a store."""
        manifest = store.manifest
        counts = manifest.channels, manifest.size, len(manifest.classes)
        return cls(*counts, manifest.task, manifest.sample_shape, manifest.sample_dtype)

    @property
    def shape(self) -> InputShape:
        """What a network for it is built for."""
        return InputShape(self.channels, self.size, self.num_classes, tuple(self.sample_shape), self.sample_dtype)


@dataclass(frozen=True)
class MeasurementRequest:
    """What to measure: sections of params.yaml as plain values, what the data is like, and a deadline."""

    sections: dict[str, dict[str, Any]]
    data: MeasuredData
    until: float
    """Seconds since 1970 after which no further size is measured."""
    sizes: tuple[int, ...] = ()
    """For ``auto``: the micro-batch sizes to measure, in each of ``formats``; empty: climb until larger ones gain nothing."""
    formats: tuple[str, ...] = ()
    num_samples: int = 0
    """For ``auto``: samples of the training; measuring takes a share of the time for them."""

    compiled: bool = False
    """Measure the one size of ``sizes`` compiled and not, in turns."""

    def section(self, kind: Any) -> Any:
        """Return one section."""
        return parse_section(kind, self.sections, "plan")


def measure(params: Params, store: Store, seconds: float, *, others: bool) -> tuple[ThroughputCurve, ...]:
    """Measure speed and memory of slicings, in at most ``seconds``; ``others``: of other precisions and memory formats, too."""
    started = time.perf_counter()
    chosen = [(params.train.precision, name) for name in possible_formats(params.hardware)]
    every = [(p, f) for p in ("float32", "bfloat16") for f in MEMORY_FORMATS]
    wanted = [*chosen, *(kind for kind in every if kind not in chosen and others)]
    found = []
    for number, (precision, memory_format) in enumerate(wanted):
        is_chosen = number < len(chosen)
        left = started + seconds * (0.5 if others and is_chosen else 1.0) - time.perf_counter()
        if not is_chosen and left < 6:
            break
        share = max(0.0, left) / ((len(chosen) if is_chosen else len(wanted)) - number)
        console.print(f"measuring {params.model.name} in {precision}, {memory_format} ...")
        kind = {"train": {"precision": precision}, "hardware": {"memory_format": memory_format}}
        ladder = _climb(params, kind, MeasuredData.of(store), share)
        if ladder is not None:
            found.append(ladder)
    return tuple(found)


def climb_configured(params: Params, *, channels: int, size: int, num_classes: int, seconds: float) -> ThroughputCurve:
    """Measure the configured precision and memory format, for images of a shape."""
    changes = {"hardware": {"memory_format": possible_formats(params.hardware)[0]}}
    found = _climb(params, changes, MeasuredData(channels, size, num_classes), seconds)
    assert found is not None
    return found


def measure_formats(
    params: Params, data: MeasuredData, sizes: tuple[int, ...], num_samples: int
) -> tuple[ThroughputCurve, ...]:
    """Measure ``sizes`` in the possible memory formats, in a share of the time that training ``num_samples`` takes."""
    sections = plain_sections(params, {"hardware": {"memory_format": possible_formats(params.hardware)[0]}})
    formats = possible_formats(params.hardware)
    request = MeasurementRequest(sections, data, until=0.0, sizes=sizes, formats=formats, num_samples=num_samples)
    lines = ask(request, params.model.name, LONGEST_WAIT)
    curves = []
    for name in formats:
        mine = [line for line in lines if line["memory_format"] == name]
        found = sorted((SizeMeasurement(**line["rung"]) for line in mine), key=lambda rung: rung.samples_per_second)
        best = {rung.micro_batch_size: rung for rung in found}  # of several measurements the fastest
        if mine:
            rungs = tuple(best[size] for size in sorted(best))
            curves.append(ThroughputCurve(params.train.precision, name, mine[0]["update_seconds"], rungs, complete=True))
    return tuple(curves)


def _climb(params: Params, changes: dict[str, dict[str, str]], data: MeasuredData, seconds: float) -> ThroughputCurve | None:
    sections, started = plain_sections(params, changes), time.monotonic()
    lines = ask(MeasurementRequest(sections, data, until=time.time() + seconds), params.model.name, seconds + 20)
    rungs = tuple(SizeMeasurement(**line) for line in lines if "micro_batch_size" in line)
    if not rungs and time.monotonic() - started > LONGEST_WAIT:
        raise ProjectError(
            f"measuring {params.model.name}: expected a step of one sample within {LONGEST_WAIT:.0f} s, got none; "
            "use a smaller model, or try again when the machine has less to do"
        )
    if not rungs:
        return None
    precision, memory_format = sections["train"]["precision"], sections["hardware"]["memory_format"]
    complete = rungs[-1].micro_batch_size < params.batch.effective_batch_size
    return ThroughputCurve(precision, memory_format, lines[0]["update_seconds"], rungs, complete)


def plain_sections(params: Params, changes: dict[str, dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Return the sections of a request: without starting weights and class weights, and with ``changes``."""
    sections = {name: getattr(params, name).model_dump(mode="json") for name in ("model", "train", "hardware", "tracking")}
    sections["model"].update(weights=None, freeze_backbone=False)
    sections["train"].update(class_weights=None, effective_batch_size=params.batch.effective_batch_size)
    for name, values in changes.items():
        sections[name].update(values)
    return sections


def ask(request: MeasurementRequest, model: str, seconds: float) -> list[dict[str, Any]]:
    """Run the process that measures, and return its lines: those before it died, if it did.

    It is killed after ``seconds``, but not before the first size is measured: a busy machine may take that long to start it.
    """
    process, started = start_module("bigstep.planning.measure_worker", stdout=subprocess.PIPE), time.monotonic()
    assert process.stdin is not None
    assert process.stdout is not None
    timer = _killing(process, max(seconds, LONGEST_WAIT))
    lines: list[dict[str, Any]] = []
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is noticed below
            process.stdin.write(json.dumps(asdict(request)))
            process.stdin.close()
        for answer in filter(None, map(read_answer, process.stdout)):
            lines.append(answer)
            if len(lines) == 2:  # what all sizes share, and the first of them
                timer.cancel()
                timer = _killing(process, started + seconds - time.monotonic())
    finally:
        timer.cancel()
        process.stdout.close()
        process.wait()
    if len(lines) < 2 and process.returncode > 0:  # below zero: killed by a signal, as when memory runs out
        raise ProjectError(f"measuring {model}: expected exit code 0, got {process.returncode}; see the message above")
    return lines


def _killing(process: "subprocess.Popen[str]", seconds: float) -> threading.Timer:
    """Start a timer that kills the process."""
    timer = threading.Timer(max(0.0, seconds), process.kill)
    timer.daemon = True
    timer.start()
    return timer
