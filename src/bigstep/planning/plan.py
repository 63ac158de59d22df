"""The plan: speed and memory over micro-batch sizes, measured once for a model and a machine, to choose the micro-batch size.

A plan holds timings, so it is not an output of DVC. It is kept in `.bigstep/plans/` and used until the model, the shape of
the images, the precision or the machine changes.
"""

import hashlib
import json
import os
import platform
from collections.abc import Collection, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bigstep.atomic_files import read_json, write_json
from bigstep.config.hardware import HardwareConfig
from bigstep.config.params import Params
from bigstep.console import format_bytes
from bigstep.data.store import Store
from bigstep.errors import OutOfMemoryError
from bigstep.planning.measure import measure
from bigstep.planning.throughput import Plan, PlannedSlicing, SizeMeasurement, ThroughputCurve, choose_curve
from bigstep.project.own_code import digest_user_code
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.device import MEMORY_FORMATS, choose_device, possible_formats, total_memory_bytes
from bigstep.tasks.targets import CLASSIFICATION
from bigstep.user_code import is_user_code

__all__ = ["covers", "find_plan", "plan_folder", "read_curves", "read_measured", "read_plan", "recommend"]

FORMAT = 1


def recommend(
    plan: Plan, effective_batch_size: int, room: int | None, formats: Collection[str] = tuple(MEMORY_FORMATS)
) -> tuple[ThroughputCurve, PlannedSlicing]:
    """Return the fastest slicing within ``room`` in one of ``formats``, and the curve that it is of.

    Raises:
        OutOfMemoryError: not even a single sample fits.
    """
    curves = plan.curves(formats)
    choice = choose_curve(curves, effective_batch_size, room)
    if choice is None:
        least = min((rung.resident_growth_bytes for curve in curves for rung in curve.rungs), default=0)
        raise OutOfMemoryError(
            f"hardware.memory_budget: expected at least {format_bytes(least)} for a step with single samples, got "
            f"{format_bytes(max(room or 0, 0))} after the memory of the process itself; raise it, or choose a smaller model"
        )
    return choice


def find_plan(
    project: ProjectPaths, params: Params, store: Store, *, remeasure: bool = False, seconds: float = 30.0, others: bool = False
) -> Plan:
    """Return the stored plan for this model, these images and this machine, or measure one in at most ``seconds``.

    ``others`` measures the other precisions and memory formats too.
    """
    folder = plan_folder(project, params, store)
    key = folder.name
    effective = params.batch.effective_batch_size
    stored = read_plan(project, params, store)
    if stored is not None and not remeasure and covers(stored, params, effective) and (stored.others or not others):
        return stored
    ladders = measure(params, store, seconds, others=others)
    if not ladders or not ladders[0].rungs:
        raise OutOfMemoryError(
            f"memory: expected room for a step of {params.model.name} with one sample, got too little; use a smaller model"
        )
    fresh = {(item.precision, item.memory_format) for item in ladders}
    kept = [item for item in (stored.ladders if stored else ()) if (item.precision, item.memory_format) not in fresh]
    others = others or (stored is not None and stored.others)
    plan = Plan(key, folder, _configured_first((*ladders, *kept), params), others)
    content = {
        "format": FORMAT,
        "key": key,
        "machine": _machine(params.hardware),
        "model": params.model.model_dump(mode="json"),
    }
    write_json({**content, "others": others, "ladders": [asdict(ladder) for ladder in plan.ladders]}, folder / "measured.json")
    return plan


def plan_folder(project: ProjectPaths, params: Params, store: Store) -> Path:
    """Return the folder of measurements and predictions for this model, these images and this machine."""
    return project.plans / _key(params, store)


def covers(plan: Plan, params: Params, effective_batch_size: int) -> bool:
    """Return whether a plan answers for an effective batch in every memory format that there is to choose from."""
    curves = {item.memory_format: item for item in plan.ladders if item.precision == params.train.precision}
    wanted = [curves.get(name) for name in possible_formats(params.hardware)]
    return all(
        curve is not None and (curve.complete or curve.rungs[-1].micro_batch_size >= effective_batch_size) for curve in wanted
    )


def _configured_first(ladders: Iterable[ThroughputCurve], params: Params) -> tuple[ThroughputCurve, ...]:
    names = (*possible_formats(params.hardware), *MEMORY_FORMATS)
    precision = params.train.precision
    return tuple(sorted(ladders, key=lambda item: (item.precision != precision, names.index(item.memory_format))))


def read_plan(project: ProjectPaths, params: Params, store: Store) -> Plan | None:
    """Return the stored plan for this model, these images and this machine; None if it is missing or cannot be read."""
    folder = plan_folder(project, params, store)
    found = read_measured(folder)
    return None if found is None else replace(found, ladders=_configured_first(found.ladders, params))


def read_curves(content: Iterable[dict[str, Any]]) -> tuple[ThroughputCurve, ...]:
    """Read curves from what ``asdict`` made of them."""
    return tuple(
        ThroughputCurve(**{**item, "rungs": tuple(SizeMeasurement(**rung) for rung in item["rungs"])}) for item in content
    )


def read_measured(folder: Path) -> Plan | None:
    """Read a plan; None if it cannot be read."""
    try:
        content = read_json(folder / "measured.json")
        ladders = read_curves(content["ladders"])
        return (
            Plan(folder.name, folder, ladders, bool(content["others"]))
            if content["format"] == FORMAT and ladders and ladders[0].rungs
            else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _key(params: Params, store: Store) -> str:
    manifest = store.manifest
    model = params.model.model_dump(mode="json", exclude={"weights", "freeze_backbone"})
    code = digest_user_code(params.model.name, "model") if is_user_code(params.model.name) else ""
    described = model | ({"code": code} if code else {}) | ({} if manifest.task == CLASSIFICATION else {"task": manifest.task})
    if not manifest.is_image:
        described |= {"sample_shape": manifest.sample_shape, "sample_dtype": manifest.sample_dtype}
    parts = (
        described,
        manifest.channels,
        manifest.size,
        len(manifest.classes),
        params.train.precision,
        params.train.optimizer,
        params.train.ema_decay is None,
        params.hardware.activation_checkpointing,
        _machine(params.hardware),
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _machine(hardware: HardwareConfig) -> dict[str, Any]:
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
