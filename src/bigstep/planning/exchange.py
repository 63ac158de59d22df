"""What a step of several processes takes, and from which number of micro-batches on accumulating pays.

A step of A micro-batches in each process takes A t + E: t is the time of a micro-batch beside the other processes, E that of
the sums over all of them (docs/scale.md).
"""

import json
import math
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bigstep.atomic_files import read_record, write_json
from bigstep.config.params import Params
from bigstep.console import console, format_bytes
from bigstep.data.store import Store
from bigstep.errors import ProjectError
from bigstep.planning.measure import MeasuredData, MeasurementRequest, plain_sections
from bigstep.planning.plan import plan_folder
from bigstep.planning.throughput import PlannedSlicing, ThroughputCurve
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.child_process import die_with_parent, start_module

__all__ = ["ExchangeCost", "ExchangeRequest", "LoggedNoise", "describe", "find_exchange"]

LONGEST_SECONDS = 300.0  # a measurement takes about ten, most of them to start the processes


@dataclass(frozen=True)
class ExchangeRequest:
    """What one of the processes measures: a training, its number among them, and the folder where they meet."""

    training: MeasurementRequest
    rank: int
    processes: int
    folder: str


@dataclass(frozen=True)
class ExchangeCost:
    """What was measured of a step of several processes."""

    processes: int
    micro_batch_size: int
    micro_batch_seconds: float
    """t, while all processes compute."""
    exchange_seconds: float
    """E: the agreement and the sum of all gradients."""
    gradient_bytes: int
    """That each process adds to the sum."""

    def best_accumulation(self, noise_scale: float) -> float:
        """Return the number of micro-batches in each process with the shortest time to a target: A* of docs/scale.md."""
        samples = self.processes * self.micro_batch_size
        return math.sqrt(noise_scale / samples * self.exchange_seconds / self.micro_batch_seconds)

    @property
    def least_noise_scale(self) -> float:
        """The noise scale in samples above which accumulating pays: there A* is 1."""
        return self.processes * self.micro_batch_size * self.micro_batch_seconds / self.exchange_seconds


@dataclass(frozen=True)
class LoggedNoise:
    """A gradient noise scale in samples, and the name of the run that logged it."""

    noise_scale: float
    run: str


def find_exchange(
    project: ProjectPaths,
    params: Params,
    store: Store,
    processes: int,
    chosen: tuple[ThroughputCurve, PlannedSlicing],
    *,
    remeasure: bool = False,
) -> ExchangeCost:
    """Return what was measured of steps of this slicing in ``processes`` processes, or measure it.

    Raises:
        ProjectError: the processes cannot run side by side.
    """
    curve, slicing = chosen
    size = min(slicing.micro_batch_size, -(-slicing.effective_batch_size // processes))  # no share is larger
    path = plan_folder(project, params, store) / f"exchange-{processes}-{size}-{curve.memory_format}.json"
    if not remeasure:
        try:
            return read_record(ExchangeCost, path)
        except (OSError, ValueError):
            pass
    console.print(f"measuring {params.model.name} in {processes} processes ...")
    changes = {"hardware": {"memory_format": curve.memory_format}}
    training = MeasurementRequest(plain_sections(params, changes), MeasuredData.of(store), until=0.0, sizes=(size,))
    found = _measured(training, processes)
    write_json(asdict(found), path)
    return found


def _measured(training: MeasurementRequest, count: int) -> ExchangeCost:
    with tempfile.TemporaryDirectory(prefix="bigstep-") as folder:
        first, processes = ExchangeRequest(training, 0, count, folder), []
        try:
            processes += [_started(replace(first, rank=rank)) for rank in range(count)]
            _wait(processes, training.sizes[0])
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return read_record(ExchangeCost, Path(folder) / "found.json")


def _started(request: ExchangeRequest) -> "subprocess.Popen[str]":
    process = start_module("bigstep.planning.exchange_worker", stdout=subprocess.DEVNULL, preexec_fn=die_with_parent)
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(asdict(request)))
        process.stdin.close()
    except BrokenPipeError:
        pass  # it has ended, which is noticed below
    return process


def _wait(processes: "list[subprocess.Popen[str]]", size: int) -> None:
    deadline, codes = time.monotonic() + LONGEST_SECONDS, [process.poll() for process in processes]
    while None in codes and not any(codes) and time.monotonic() < deadline:
        time.sleep(0.05)
        codes = [process.poll() for process in processes]
    if None in codes or any(codes):
        raise ProjectError(
            f"hardware.processes: expected {len(processes)} processes to run micro-batches of {size} side by side, got one "
            "that ended or took too long; write fewer, or lower hardware.micro_batch_size"
        )


def describe(cost: ExchangeCost, noise: LoggedNoise | None, accumulation_steps: int) -> str:
    """Write what was measured, and whether accumulating pays.

    Args:
        cost: of this training.
        noise: of an earlier run; None: unknown.
        accumulation_steps: micro-batches in each process, as configured.
    """
    share = cost.exchange_seconds / (accumulation_steps * cost.micro_batch_seconds + cost.exchange_seconds)
    lines = (
        f"{cost.processes} processes: a micro-batch of {cost.micro_batch_size} takes t = {cost.micro_batch_seconds * 1000:.2f} "
        f"ms in each, the sums of a step ({format_bytes(cost.gradient_bytes)}) E = {cost.exchange_seconds * 1000:.2f} ms: "
        f"{share:.0%} of a step with {accumulation_steps} micro-batches in each\n"
    )
    if noise is None:
        return lines + (
            f"accumulating pays where the gradient noise scale is above {cost.least_noise_scale:,.0f} samples; no run of this "
            "model on this data has logged one"
        )
    best = cost.best_accumulation(noise.noise_scale)
    answer = "accumulating pays" if best > 1 else "accumulating does not pay"
    size = max(1, round(best)) * cost.processes * cost.micro_batch_size
    return lines + (
        f"{answer}: with the gradient noise scale of {noise.noise_scale:,.0f} samples (run {noise.run}) the time to a target "
        f"is least at A* = {best:.2g} micro-batches in each, an effective batch of about {size:,}"
    )
