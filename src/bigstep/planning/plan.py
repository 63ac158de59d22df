"""`bigstep plan`: measured speed and memory over micro-batch sizes, kept for this model and machine, into a slicing.

A plan holds timings, so it is no output of DVC: it lies in `.bigstep/plans/` and is used until the model, the shape of the
images, the precision or the machine changes.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bigstep.atomic_files import read_json, write_json
from bigstep.config.hardware import Hardware, parse_size
from bigstep.config.params import Params
from bigstep.console import console, format_bytes
from bigstep.data.store import Store
from bigstep.errors import OutOfMemoryError, ProjectError
from bigstep.planning.measure_worker import LadderRequest, source_folder
from bigstep.planning.throughput import Choice, Rung, choose
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.device import choose_device, total_memory_bytes

__all__ = [
    "OVERHEAD_BYTES",
    "Ladder",
    "Plan",
    "budget_bytes",
    "climb_configured",
    "find_plan",
    "plan_folder",
    "recommend",
    "room_for_training",
]

FORMAT = 1
OVERHEAD_BYTES = 384 * 2**20  # what a training process needs beside the step: MLflow, the export of the model
AUTOMATIC = {"cpu": 0.8, "cuda": 0.9}  # share of the total


@dataclass(frozen=True)
class Ladder:
    """Rungs of one precision and memory format.

    ``complete``: they ended before the whole batch, since larger ones gained nothing, did not fit or took too long to measure.
    """

    precision: str
    memory_format: str
    update_seconds: float
    rungs: tuple[Rung, ...]
    complete: bool


@dataclass(frozen=True)
class Plan:
    """All ladders, that of the configured precision and format first, and where the files lie."""

    key: str
    folder: Path
    ladders: tuple[Ladder, ...]
    others: bool
    """Whether other precisions and formats were asked for too, as far as the time went."""


def budget_bytes(hardware: Hardware) -> int | None:
    """Give the limit that ``hardware.memory_budget`` means here: of the GPU's allocator, or of resident memory; None: none."""
    if hardware.memory_budget == "none":
        return None
    if hardware.memory_budget != "auto":
        return parse_size(hardware.memory_budget)
    device = choose_device(hardware)
    return int(AUTOMATIC[device.type] * total_memory_bytes(device))


def room_for_training(hardware: Hardware, resident: int) -> int | None:
    """Give the bytes that a training step may take, in a process that holds ``resident`` bytes without it."""
    budget = budget_bytes(hardware)
    if budget is None or choose_device(hardware).type == "cuda":
        return budget
    return budget - resident - OVERHEAD_BYTES


def recommend(plan: Plan, effective_batch_size: int, room: int | None) -> Choice:
    """Choose the fastest slicing within ``room``.

    Raises:
        OutOfMemoryError: not even one image fits.
    """
    ladder = plan.ladders[0]
    choice = choose(ladder.rungs, effective_batch_size, room)
    if choice is None:
        least = min((rung.resident_growth_bytes for rung in ladder.rungs), default=0)
        raise OutOfMemoryError(
            f"hardware.memory_budget must leave {format_bytes(least)} for a step of one image at a time, but leaves "
            f"{format_bytes(max(room or 0, 0))} after what the process itself takes; raise it, or take a smaller model"
        )
    return choice


def find_plan(
    project: ProjectPaths, params: Params, store: Store, *, again: bool = False, seconds: float = 30.0, others: bool = False
) -> Plan:
    """Give the stored plan for this model, these images and this machine, or measure one in at most ``seconds``.

    ``others`` measures the other precisions and memory formats too.
    """
    folder = plan_folder(project, params, store)
    key = folder.name
    effective = params.batch.effective_batch_size
    if not again:
        stored = read_measured(folder, key)
        if stored is not None and _covers(stored.ladders[0], effective) and (stored.others or not others):
            return stored
    ladders = _measure(params, store, seconds, others=others)
    if not ladders or not ladders[0].rungs:
        raise OutOfMemoryError(
            f"a step of {params.model.name} with one image at a time must fit in memory, but does not; take a smaller model"
        )
    plan = Plan(key, folder, ladders, others)
    content = {
        "format": FORMAT,
        "key": key,
        "machine": _machine(params.hardware),
        "model": params.model.model_dump(mode="json"),
    }
    write_json({**content, "others": others, "ladders": [asdict(ladder) for ladder in ladders]}, folder / "measured.json")
    return plan


def plan_folder(project: ProjectPaths, params: Params, store: Store) -> Path:
    """Name the folder of what was measured and predicted for this model, these images and this machine."""
    return project.plans / _key(params, store)


def _covers(ladder: Ladder, effective_batch_size: int) -> bool:
    return ladder.complete or ladder.rungs[-1].micro_batch_size >= effective_batch_size


def read_measured(folder: Path, key: str) -> Plan | None:
    """Read a plan; one that does not read counts as none."""
    try:
        content = read_json(folder / "measured.json")
        ladders = tuple(
            Ladder(**{**item, "rungs": tuple(Rung(**rung) for rung in item["rungs"])}) for item in content["ladders"]
        )
        return (
            Plan(key, folder, ladders, bool(content["others"]))
            if content["format"] == FORMAT and ladders and ladders[0].rungs
            else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _measure(params: Params, store: Store, seconds: float, *, others: bool) -> tuple[Ladder, ...]:
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


def climb_configured(params: Params, *, channels: int, size: int, num_classes: int, seconds: float) -> Ladder:
    """Measure the ladder of the configured precision and memory format, for images of a shape."""
    found = _climb(params, {}, (channels, size, num_classes), seconds)
    assert found is not None
    return found


def _climb(params: Params, changes: dict[str, dict[str, str]], shape: tuple[int, int, int], seconds: float) -> Ladder | None:
    sections = {
        name: getattr(params, name).model_dump(mode="json") for name in ("model", "train", "hardware", "memory", "tracking")
    }
    sections["model"].update(weights=None, freeze_backbone=False)
    sections["train"].update(class_weights=None, effective_batch_size=params.batch.effective_batch_size)
    for name, values in changes.items():
        sections[name].update(values)
    request = LadderRequest(sections, *shape, until=time.time() + seconds)
    code = (
        f"import sys; sys.path.insert(0, {str(source_folder())!r}); from bigstep.stages import ladder; sys.exit(ladder.main())"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
    rungs = tuple(Rung(**line) for line in lines if "micro_batch_size" in line)
    if not rungs and process.returncode > 0:  # a signal, below zero, is what running out of memory looks like
        raise ProjectError(
            f"measuring {params.model.name} must end well, but ended with exit code {process.returncode}; its message is above"
        )
    if not rungs:
        return None
    precision, memory_format = sections["train"]["precision"], sections["hardware"]["memory_format"]
    complete = rungs[-1].micro_batch_size < params.batch.effective_batch_size
    return Ladder(precision, memory_format, lines[0]["update_seconds"], rungs, complete)


def _key(params: Params, store: Store) -> str:
    manifest = store.manifest
    model = params.model.model_dump(mode="json", exclude={"weights", "freeze_backbone"})
    parts = (
        model,
        manifest.channels,
        manifest.size,
        len(manifest.classes),
        params.train.precision,
        params.train.optimizer,
        params.train.ema_decay is None,
        params.hardware.memory_format,
        params.memory.checkpoint_activations,
        _machine(params.hardware),
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _machine(hardware: Hardware) -> dict[str, Any]:
    device = choose_device(hardware)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": hardware.threads,
        "memory_bytes": total_memory_bytes(device),
        "torch": torch.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
