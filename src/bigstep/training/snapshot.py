"""A training between two steps as tensors and plain values, and back: every bit that decides what comes next.

Sample order, augmentation and dropout are functions of (seed, epoch, step, sample), so of random state only torch's own is
kept, which unkeyed dropout draws from.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigstep.training.state import Best, TrainingState

__all__ = ["KeptSlicing", "Snapshot", "in_device_order", "is_finite", "kept_slicing", "restore_snapshot", "take_snapshot"]

COUNTERS = ("epoch", "step", "num_updates", "num_dropped", "num_bad_in_a_row", "epochs_without_gain", "peak_bytes")
MODEL, AVERAGE, BEST, OPTIMIZER, RANDOM = "model.", "average.", "best.", "optimizer.", "random."
DEVICE = f"{RANDOM}cuda."
LOSSES = "epoch_losses"


@dataclass(frozen=True)
class Snapshot:
    """A state between two steps: tensors by name, and plain values (what JSON holds)."""

    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class KeptSlicing:
    """What a training started with that decides rounding: micro-batch size, memory format, and whether it is compiled."""

    micro_batch_size: int
    memory_format: str
    compiled: bool = False


def kept_slicing(values: Mapping[str, Any]) -> KeptSlicing | None:
    """Read it from a snapshot's values; None in those of versions that did not write it."""
    found = values.get("memory_format")
    if found is None:
        return None
    return KeptSlicing(int(values["micro_batch_size"][0]), str(found), bool(values.get("compile", False)))


def take_snapshot(state: TrainingState, *, micro_batch_size: int) -> Snapshot:
    """Return ``state`` as tensors (its own, not copies) and values; ``micro_batch_size`` is what was asked for."""
    tensors = _under(MODEL, state.classifier.state_dict())
    tensors |= _under(AVERAGE, state.average.state_dict())
    if state.best is not None:
        tensors |= _under(BEST, state.best.weights)
    optimizer = state.optimizer.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    tensors |= _random_state(with_devices=state.processes is None)
    tensors[LOSSES] = torch.tensor([float(loss) for loss, _ in state.epoch_losses], dtype=torch.float64)
    values = {
        "counters": {name: getattr(state, name) for name in COUNTERS},
        "epoch_weights": [weight for _, weight in state.epoch_losses],
        "best": None if state.best is None else [state.best.epoch, state.best.value, state.best.loss, state.best.score],
        "optimizer": plain,
        "rates": [[group["lr"], group.get("initial_lr")] for group in optimizer["param_groups"]],
        "schedule": _plain_schedule(state.schedule),
        "scaler": state.scaler.state_dict() or None,
        "noise": state.noise.sums(),
        "micro_batch_size": [micro_batch_size, state.accumulator.micro_batch_size],
        "compile": state.compiled is not None,
        "memory_format": str(state.classifier.memory_format).removeprefix("torch.").removesuffix("_format"),
    }
    return Snapshot(state.step, tensors, values)


def restore_snapshot(state: TrainingState, snapshot: Snapshot, *, micro_batch_size: int) -> None:
    """Restore ``state``, built from the same parameters, to what :func:`take_snapshot` saw.

    Where ``micro_batch_size`` is what was asked for then, the size that memory had left it is kept too.

    Raises:
        KeyError, RuntimeError, TypeError, ValueError: the snapshot is of another model or optimizer.
    """
    values, tensors = snapshot.values, snapshot.tensors
    state.classifier.load_state_dict(_below(MODEL, tensors))
    state.average.load_state_dict(_below(AVERAGE, tensors))
    _restore_optimizer(state, tensors, values)
    state.schedule.load_state_dict(_loaded_schedule(state.schedule, values["schedule"]))
    state.scaler.load_state_dict(values["scaler"])
    if values["noise"] is not None:  # as earlier versions wrote where nothing was measured
        state.noise.restore(values["noise"])
    for name in COUNTERS:
        setattr(state, name, values["counters"][name])
    weights = values["epoch_weights"] if "epoch_weights" in values else values["epoch_samples"]  # as earlier versions wrote
    state.epoch_losses = list(zip(tensors[LOSSES].unbind(), weights, strict=True))
    if values["best"] is not None:
        epoch, value, loss, score = values["best"]
        state.best = Best(epoch, value, loss, score, {name: item.clone() for name, item in _below(BEST, tensors).items()})
    asked, left = values["micro_batch_size"]
    if asked == micro_batch_size:
        state.accumulator.micro_batch_size = left
    _set_random_state(tensors)


def is_finite(state: TrainingState) -> bool:
    """Return whether every parameter and buffer is finite: others are not saved."""
    tensors = [t for t in state.classifier.state_dict().values() if t.is_floating_point()]
    return all(bool(flag) for flag in torch.stack([torch.isfinite(tensor).all() for tensor in tensors]))


@torch.no_grad()
def _restore_optimizer(state: TrainingState, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Copy in place, so that layouts in memory stay; the state is there from the start."""
    optimizer = state.optimizer
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        entries = optimizer.state[parameter]
        for name, value in entries.items():
            if isinstance(value, Tensor):
                value.copy_(tensors[f"{OPTIMIZER}{index}.{name}"])
            else:
                entries[name] = values["optimizer"][str(index)][name]
    for group, (rate, initial) in zip(optimizer.param_groups, values["rates"], strict=True):
        group["lr"] = rate
        if initial is not None:
            group["initial_lr"] = initial


def _plain_schedule(schedule: Any) -> dict[str, Any]:
    """Return a schedule's state as JSON holds it; the schedules inside a sequence are in it, functions are not."""
    return {key: value for key, value in schedule.state_dict().items() if not callable(value)}


def _loaded_schedule(schedule: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schedule's state with the saved values in it, as the schedules of earlier versions had others."""
    new = schedule.state_dict()
    inner = zip(new.get("_schedulers", ()), values.get("_schedulers", ()), strict=False)
    return {**new, **values, **({"_schedulers": [{**own, **saved} for own, saved in inner]} if "_schedulers" in new else {})}


def _random_state(*, with_devices: bool) -> dict[str, Tensor]:
    found = {f"{RANDOM}cpu": torch.get_rng_state()}
    if with_devices and torch.cuda.is_available():
        found |= {f"{DEVICE}{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    return found


def _set_random_state(tensors: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(tensors[f"{RANDOM}cpu"])
    devices = [tensors[name] for name in in_device_order(tensors)]
    if devices and torch.cuda.device_count() == len(devices):
        torch.cuda.set_rng_state_all(devices)


def in_device_order(names: Iterable[str]) -> list[str]:
    """Return those that are of a device's random state, by the number of the device."""
    return sorted((name for name in names if name.startswith(DEVICE)), key=lambda name: int(name.removeprefix(DEVICE)))


def _under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items() if isinstance(value, Tensor)}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
