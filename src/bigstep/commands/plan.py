"""`bigstep plan`: print the plan, write a plot and plan.json, and on request params.yaml."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.table import Table

from bigstep.atomic_files import whole_file, write_json
from bigstep.config.batch_sizes import UNMEASURED_MICRO_BATCH
from bigstep.config.params import Params, check_compile, read_params
from bigstep.config.yaml_files import apply_overrides, write_yaml
from bigstep.console import console, format_bytes
from bigstep.data.store import Store
from bigstep.errors import ConfigError, ProjectError
from bigstep.machine_output import Report, no_report
from bigstep.memory.measurement import resident_bytes
from bigstep.planning.compiled_gain import measure_compiled
from bigstep.planning.exchange import describe, find_exchange
from bigstep.planning.logged_noise import logged_noise
from bigstep.planning.memory_budget import budget_bytes, room_to_compute
from bigstep.planning.plan import find_plan, recommend
from bigstep.planning.throughput import GAIN, Plan, PlannedSlicing, ThroughputCurve, choose_curve
from bigstep.planning.work import is_small_training
from bigstep.project.paths import ProjectPaths, StagePaths
from bigstep.report.plan_plot import draw_plan
from bigstep.runtime.device import count_processes
from bigstep.runtime.environment import keep_compiled_code

__all__ = ["PlanRequest", "plan"]


@dataclass(frozen=True)
class PlanRequest:
    """What is asked for: a budget instead of ``hardware.memory_budget``, and how to measure.

    ``remeasure`` measures even if there is a plan, for ``seconds`` at most; ``compile`` measures the recommended slicing
    compiled, too, beyond that limit; ``apply`` writes the choice into params.yaml.
    """

    budget: str | None = None
    remeasure: bool = False
    apply: bool = False
    seconds: float = 60.0
    compile: bool = False


def plan(project: ProjectPaths, paths: StagePaths, params: Params, request: PlanRequest, report: Report = no_report) -> int:
    """Measure or read the plan, print it, and write ``plan.json`` and ``plan.png``.

    Args:
        project: its state folder holds the plan.
        paths: of the prepared data.
        params: the configuration.
        request: what is asked for.
        report: takes what plan.json contains.

    Returns:
        0

    Raises:
        ConfigError: with model.norm batch the micro-batch size is fixed; or the number of processes cannot be used.
    """
    ghost = params.model.ghost_batch_size
    if ghost is not None:
        raise ConfigError(
            f"model.norm: expected a norm that lets the plan choose the micro-batch size, got batch, with which every "
            f"micro-batch is model.ghost_batch_size, {ghost}; set model.norm to group"
        )
    if request.budget is not None:
        params = replace(params, hardware=params.hardware.model_copy(update={"memory_budget": request.budget}))
    processes = count_processes(params)
    store = Store(paths.prepared)
    effective = params.batch.effective_batch_size
    found = find_plan(project, params, store, remeasure=request.remeasure, seconds=request.seconds, others=True)
    limit, room = budget_bytes(params.hardware), room_to_compute(params, store, resident_bytes())
    ladder, choice = recommend(found, effective, room)
    _print(found, ladder, choice, room)
    _print_gains(found, ladder, choice, room)
    if request.compile:
        _print_compiled(project, params, store, ladder, choice)
    _predicted_line(found, limit)
    shared = None
    if processes > 1:
        shared = _print_exchange(project, params, store, processes, (ladder, choice), remeasure=request.remeasure)
    report(_write(found, ladder, choice, limit, room, shared))
    if request.apply:
        _apply(project.root / "params.yaml", ladder, choice)
    elif "auto" in (params.hardware.micro_batch_size, params.hardware.memory_format) and is_small_training(
        project, params, store
    ):
        console.print(
            f"auto does not use it: so small a training has micro-batches of at most {UNMEASURED_MICRO_BATCH}, contiguous"
        )
    return 0


def _print(found: Plan, curve: ThroughputCurve, choice: PlannedSlicing, room: int | None) -> None:
    for ladder in found.ladders:
        table = Table(title=f"{ladder.precision}, {ladder.memory_format}", title_justify="left")
        for name in ("micro-batch", "samples/s", "process growth", "predicted tensors", ""):
            table.add_column(name, justify="left" if name == "" else "right")
        for rung in ladder.rungs:
            fits = room is None or rung.resident_growth_bytes <= room
            chosen = ladder is curve and rung.micro_batch_size == choice.micro_batch_size
            table.add_row(
                str(rung.micro_batch_size),
                f"{rung.samples_per_second:,.0f}",
                format_bytes(rung.resident_growth_bytes),
                format_bytes(rung.predicted_bytes),
                "chosen" if chosen else "" if fits else "over budget",
            )
        console.print(table)
    console.print(
        f"recommended for an effective batch of {choice.effective_batch_size}: micro-batches of {choice.micro_batch_size}, "
        f"{choice.accumulation_steps} per step, {curve.memory_format}, {choice.samples_per_second:,.0f} samples/s"
    )
    largest = [rung for rung in curve.rungs if rung.micro_batch_size >= choice.effective_batch_size]
    if choice.accumulation_steps > 1 and largest and (room is None or largest[-1].resident_growth_bytes <= room):
        console.print("the whole batch would fit too; accumulation is recommended because it is at least as fast")


def _print_gains(found: Plan, curve: ThroughputCurve, choice: PlannedSlicing, room: int | None) -> None:
    """Print how much faster the memory format is than the other, and another precision than the configured one."""
    for other in found.ladders:
        best = choose_curve((other,), choice.effective_batch_size, room)
        if other is curve or best is None:
            continue
        ratio = best[1].samples_per_second / choice.samples_per_second
        if other.precision == curve.precision:
            console.print(f"{curve.memory_format} has {1 / ratio:.2f} times the samples/s of {other.memory_format}")
        elif ratio > GAIN:
            console.print(
                f"train.precision {other.precision} ({other.memory_format}, micro-batches of {best[1].micro_batch_size}) would "
                f"have {ratio:.2f} times the samples/s; it changes the result, so --apply does not write it"
            )


def _print_compiled(
    project: ProjectPaths, params: Params, store: Store, curve: ThroughputCurve, choice: PlannedSlicing
) -> None:
    keep_compiled_code(project.compiled)
    try:
        check_compile(params.model, params.hardware.model_copy(update={"compile": True}))
        found = measure_compiled(params, store, curve.memory_format, choice.micro_batch_size)
    except ConfigError as error:
        console.print(f"not measured compiled: {error}")
        return
    console.print(
        f"hardware.compile true would have {found.ratio:.2f} times the samples/s ({curve.memory_format}, micro-batches of "
        f"{choice.micro_batch_size}), after {found.compile_seconds:.0f} s of compiling when it is first used; it changes "
        "rounding, so --apply does not write it"
    )


def _print_exchange(
    project: ProjectPaths,
    params: Params,
    store: Store,
    processes: int,
    chosen: tuple[ThroughputCurve, PlannedSlicing],
    *,
    remeasure: bool,
) -> dict[str, object] | None:
    """Print what the exchange of a step takes and when accumulating pays; return it for plan.json, None where it failed."""
    try:
        cost = find_exchange(project, params, store, processes, chosen, remeasure=remeasure)
    except ProjectError as error:
        console.print(f"not measured in {processes} processes: {error}")
        return None
    noise = logged_noise(project.root, params)
    share = -(-chosen[1].effective_batch_size // processes)
    console.print(describe(cost, noise, -(-share // cost.micro_batch_size)))
    return {
        **asdict(cost),
        "pays_above_noise_scale": cost.least_noise_scale,
        "noise_scale": None if noise is None else noise.noise_scale,
        "run": None if noise is None else noise.run,
        "best_accumulation_steps": None if noise is None else cost.best_accumulation(noise.noise_scale),
    }


def _predicted_line(found: Plan, limit: int | None) -> None:
    rungs = found.ladders[0].rungs
    if len(rungs) < 2 or limit is None:
        return
    first, last = rungs[0], rungs[-1]
    slope = (last.predicted_bytes - first.predicted_bytes) / (last.micro_batch_size - first.micro_batch_size)
    fixed = first.predicted_bytes - slope * first.micro_batch_size
    size = max(0, int((limit - fixed) / max(slope, 1)))
    console.print(
        f"tensors alone: {format_bytes(int(fixed))} plus {format_bytes(int(slope))} per image, so {format_bytes(limit)} of GPU "
        f"memory hold micro-batches of up to {size} (without the workspaces of CUDA libraries)"
    )


def _write(
    found: Plan,
    ladder: ThroughputCurve,
    choice: PlannedSlicing,
    limit: int | None,
    room: int | None,
    shared: dict[str, object] | None,
) -> dict[str, object]:
    ladders = (ladder, *(item for item in found.ladders if item is not ladder))
    content: dict[str, object] = {
        "recommended": {**asdict(choice), "precision": ladder.precision, "memory_format": ladder.memory_format},
        "budget_bytes": limit,
        "room_bytes": room,
        "ladders": [asdict(item) for item in ladders],
        **({} if shared is None else {"exchange": shared}),
    }
    write_json(content, found.folder / "plan.json")
    with whole_file(found.folder / "plan.png") as beside:
        draw_plan(ladders, choice, room, beside)
    console.print(f"plan: {_relative(found.folder / 'plan.json')} and plan.png")
    return content


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _apply(path: Path, ladder: ThroughputCurve, choice: PlannedSlicing) -> None:
    overrides = (
        ("hardware", "micro_batch_size", choice.micro_batch_size),
        ("hardware", "accumulation_steps", None),
        ("hardware", "memory_format", ladder.memory_format),
    )
    with whole_file(path) as beside:
        write_yaml(apply_overrides(read_params(path), overrides), beside)
    console.print(
        f"params.yaml: hardware.micro_batch_size is now {choice.micro_batch_size}, "
        f"hardware.memory_format is {ladder.memory_format}"
    )
