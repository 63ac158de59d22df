"""What ``auto`` measures: a few micro-batch sizes in each memory format, stored for the next run of the same training."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bigstep.atomic_files import read_json, write_json
from bigstep.config.params import Params
from bigstep.console import console
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.planning.coarse import coarse_sizes
from bigstep.planning.measure import MeasuredData, measure_formats
from bigstep.planning.plan import covers, plan_folder, read_curves, read_plan
from bigstep.planning.throughput import PlannedSlicing, ThroughputCurve, choose_curve
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.device import possible_formats

__all__ = ["MeasuredChoice", "measured_choice", "stored_curves"]

FORMAT = 1


@dataclass(frozen=True)
class MeasuredChoice:
    """The fastest slicing that was measured, or a smaller one that is nearly as fast."""

    micro_batch_size: int
    memory_format: str
    samples_per_second: float

    @classmethod
    def of(cls, found: tuple[ThroughputCurve, PlannedSlicing] | None) -> "MeasuredChoice | None":
        """Return the choice of a curve and a slicing on it."""
        if found is None:
            return None
        curve, slicing = found
        return cls(slicing.micro_batch_size, curve.memory_format, slicing.samples_per_second)


def measured_choice(
    project: ProjectPaths, params: Params, store: Store, largest: int, room: int | None, *, size_is_open: bool
) -> MeasuredChoice | None:
    """Return the fastest slicing with micro-batches of at most ``largest``; None if nothing could be measured.

    It is read from what `bigstep plan` or an earlier run has measured, else measured now.
    """
    effective = params.batch.effective_batch_size
    plan = read_plan(project, params, store)
    if plan is not None and size_is_open and covers(plan, params, effective):
        found = choose_curve(_up_to(plan.curves(possible_formats(params.hardware)), largest), effective, room)
        if found is not None:
            return MeasuredChoice.of(found)
    curves = _find_curves(project, params, store, coarse_sizes(largest) if size_is_open else (largest,))
    found = choose_curve(_up_to(curves, largest), effective, None)
    return MeasuredChoice.of(found)


def stored_curves(project: ProjectPaths, params: Params, store: Store) -> tuple[ThroughputCurve, ...]:
    """Return what `bigstep plan` or an earlier run has measured for this training; measure nothing."""
    plan = read_plan(project, params, store)
    if plan is not None:
        return plan.curves(possible_formats(params.hardware))
    name = _name(params, (params.batch.micro_batch_size,))
    return _read(plan_folder(project, params, store) / name, 0) or ()


def _find_curves(project: ProjectPaths, params: Params, store: Store, sizes: tuple[int, ...]) -> tuple[ThroughputCurve, ...]:
    path = plan_folder(project, params, store) / _name(params, sizes)
    stored = _read(path, sizes[-1])
    if stored is not None:
        return stored
    num_samples = params.train.epochs * len(store.indices(Split.TRAIN))
    console.print(
        f"measuring {params.model.name} to choose micro-batch size and memory format, in a share of the training time"
    )
    curves = measure_formats(params, MeasuredData.of(store), sizes, num_samples)
    write_json({"format": FORMAT, "largest": sizes[-1], "ladders": [asdict(curve) for curve in curves]}, path)
    return curves


def _name(params: Params, sizes: tuple[int, ...]) -> str:
    """Name the file by what was open: all sizes of an effective batch, or one fixed size; all formats, or one."""
    size = "any" if len(sizes) > 1 or params.hardware.micro_batch_size == "auto" else str(sizes[0])
    return f"auto-{params.batch.effective_batch_size}-{size}-{params.hardware.memory_format}.json"


def _read(path: Path, largest: int) -> tuple[ThroughputCurve, ...] | None:
    """Read what was measured; None if it cannot be read, or if a larger budget allows larger sizes now."""
    try:
        content = read_json(path)
        usable = content["format"] == FORMAT and content["largest"] >= largest
        return read_curves(content["ladders"]) if usable else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _up_to(curves: tuple[ThroughputCurve, ...], largest: int) -> tuple[ThroughputCurve, ...]:
    return tuple(
        replace(curve, rungs=tuple(rung for rung in curve.rungs if rung.micro_batch_size <= largest)) for curve in curves
    )
