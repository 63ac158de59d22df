"""Before a search starts: what is searched, with how many workers, and on which share of the machine."""

import os
from copy import deepcopy
from dataclasses import replace
from typing import Any

from optuna.distributions import IntDistribution

from bigstep.config.params import Params
from bigstep.config.yaml_files import Override, apply_overrides
from bigstep.data.store import Store
from bigstep.errors import ConfigError, OutOfMemoryError
from bigstep.memory.measurement import resident_bytes
from bigstep.planning.memory_budget import available_bytes, budget_bytes, bytes_over_budget, predict
from bigstep.planning.plan import find_plan, recommend
from bigstep.planning.throughput import Plan
from bigstep.planning.work import is_small_training
from bigstep.project.parameters import check_params
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.device import choose_device
from bigstep.search.space import EFFECTIVE, MICRO, Space
from bigstep.search.trial_params import trial_params
from bigstep.training.invariance import check_slice_invariance
from bigstep.training.setup import build_training, task_of_store

__all__ = [
    "check_objectives",
    "describe_space",
    "fix_memory_format",
    "largest_micro",
    "num_workers",
    "plan_slicings",
    "share_machine",
    "why_in_full",
]

MAX_AUTO_WORKERS, BYTES_PER_WORKER = 4, 3 * 2**30
PLANNING_SECONDS = 30.0


def why_in_full(project: ProjectPaths, params: Params, store: Store) -> str:
    """Return why the micro-batch size must be searched too; empty if it does not affect training."""
    if params.model.norm == "batch":
        return "with model.norm batch the micro-batch size affects training"
    silent = replace(params, tracking=params.tracking.model_copy(update={"noise_scale": "none"}))
    state = build_training(store, params.batch, silent, weights=project.starting_weights(params.model.weights))
    found = check_slice_invariance(state, params.train, store, params.model.name)
    state.guard.close()
    return "" if found.holds else found.reason


def check_objectives(params: Params, store: Store) -> None:
    """Refuse an objective that is the score of another task than the data's.

    Raises:
        ConfigError: one line.
    """
    task = task_of_store(store)
    allowed = ("val_loss", f"val_{task.score}", "seconds", "peak_bytes")
    for name in params.search.objectives:
        if name not in allowed:
            raise ConfigError(
                f"search.objective: expected {', '.join(allowed)} with targets of {task.name}, got {name}; write {allowed[1]}"
            )


def describe_space(params: Params, space: Space) -> str:
    """Return one line on what is searched."""
    search = params.search
    text = f"study {search.study}: {search.trials} trials over {', '.join(space.dimensions)}"
    if space.reason:
        return f"{text}; the micro-batch size is searched too, because {space.reason}"
    return f"{text}; the micro-batch size is {'planned' if space.kind == 'planned' else 'searched too'}"


def num_workers(params: Params) -> int:
    """Return the number of workers: as configured, one on a GPU, or one per core (at most four) with enough memory for each."""
    if params.search.workers is not None:
        return params.search.workers
    if choose_device(params.hardware).type == "cuda":
        return 1
    budget = budget_bytes(params.hardware)
    return max(1, min(_cores(), MAX_AUTO_WORKERS, MAX_AUTO_WORKERS if budget is None else budget // BYTES_PER_WORKER))


def share_machine(content: dict[str, Any], params: Params, workers: int) -> dict[str, Any]:
    """Return the parameters with the share of threads and memory that each worker of this machine gets."""
    hardware = params.hardware
    if workers == 1:
        return content
    shared: list[Override] = [("hardware", "threads", hardware.threads or max(1, _cores() // workers))]
    if hardware.num_workers is None:
        shared.append(("hardware", "num_workers", 0))
    budget = budget_bytes(hardware)
    if budget is not None:
        shared.append(("hardware", "memory_budget", f"{budget // workers // 2**20}MiB"))
    return apply_overrides(content, tuple(shared))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan_slicings(project: ProjectPaths, content: dict[str, Any], space: Space, store: Store) -> Plan | None:
    """Measure speed and memory once, up to the largest effective batch of the space."""
    if space.kind != "planned":
        return None
    largest = int(space.dimensions[EFFECTIVE].high)  # type: ignore[attr-defined] # whole numbers
    asked: tuple[Override, ...] = (
        ("train", "effective_batch_size", largest),
        ("hardware", "micro_batch_size", "auto"),
        ("hardware", "accumulation_steps", None),
    )
    return find_plan(project, check_params(apply_overrides(deepcopy(content), asked)), store, seconds=PLANNING_SECONDS)


def fix_memory_format(
    project: ProjectPaths, content: dict[str, Any], space: Space, store: Store, plan: Plan | None
) -> dict[str, Any]:
    """Return the parameters with the memory format of all trials: the plan's, where ``auto`` leaves it to be measured."""
    params = check_params(content)
    if params.hardware.memory_format != "auto":
        return content
    if plan is None or is_small_training(project, _as_trial(params), store):
        chosen = "contiguous"
    else:
        largest = int(space.dimensions[EFFECTIVE].high)  # type: ignore[attr-defined] # whole numbers
        chosen = recommend(plan, largest, available_bytes(params.hardware, resident_bytes()))[0].memory_format
    return apply_overrides(content, (("hardware", "memory_format", chosen),))


def _as_trial(params: Params) -> Params:
    epochs = params.search.epochs or params.train.epochs
    return replace(params, train=params.train.model_copy(update={"epochs": epochs}))


def largest_micro(project: ProjectPaths, content: dict[str, Any], space: Space, store: Store) -> int | None:
    """Return the largest micro-batch size, a power of two, whose predicted memory fits the budget; None if it is planned.

    Raises:
        OutOfMemoryError: not even the smallest fits.
    """
    kind = space.dimensions.get(MICRO)
    if not isinstance(kind, IntDistribution):
        return None
    resident = resident_bytes()
    size = kind.high
    while size >= kind.low:
        params = trial_params(content, {"train.effective_batch_size": size, "hardware.micro_batch_size": size})
        if bytes_over_budget(params, predict(project, params, store, params.batch), resident) <= 0:
            return size
        size //= 2
    raise OutOfMemoryError(
        f"search.micro_batch_size: expected a size that fits hardware.memory_budget, got at least {kind.low}; lower it"
    )
