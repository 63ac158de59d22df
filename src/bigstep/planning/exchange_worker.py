"""One of the processes that measure together what a step of several processes takes; it may die of too little memory."""

import json
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from bigstep.atomic_files import write_json
from bigstep.config.hardware import HardwareConfig
from bigstep.config.train import TrainConfig
from bigstep.errors import ExitCode, LostProcessError, OutOfMemoryError
from bigstep.planning.exchange import ExchangeCost, ExchangeRequest
from bigstep.planning.measure_worker import build_measured_training, made_up_batch, measured_step, read_request
from bigstep.runtime.device import choose_device, set_threads
from bigstep.runtime.environment import guard_libraries
from bigstep.runtime.process_group import join_group, leave_group
from bigstep.step.gradient_sum import GradientSum
from bigstep.step.process_group import Processes
from bigstep.training.out_of_memory_guard import MemoryExhaustedError
from bigstep.training.transaction import apply_update

__all__ = ["main"]

ROUNDS = 7
STEP_SECONDS = 0.3  # of each measured step, by its number of micro-batches
MOST = 16  # micro-batches in a measured step


def main() -> int:
    """Read a request from standard input, and measure together with the other processes; the first one writes the result."""
    guard_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the process that asked ends this one
    content = json.load(sys.stdin)
    request = ExchangeRequest(**{**content, "training": read_request(content["training"])})
    hardware: HardwareConfig = request.training.section(HardwareConfig)
    set_threads(hardware, request.processes)
    group = join_group(Path(request.folder), request.rank, request.processes, choose_device(hardware))
    try:
        found = _measure(request, Processes(group))
    except (OutOfMemoryError, MemoryExhaustedError, LostProcessError):
        return ExitCode.FAILED
    if request.rank == 0:
        write_json(asdict(found), Path(request.folder) / "found.json")
    leave_group()
    return ExitCode.OK


def _measure(request: ExchangeRequest, processes: Processes) -> ExchangeCost:
    train: TrainConfig = request.training.section(TrainConfig)
    (size,) = request.training.sizes
    state = build_measured_training(request.training, train)
    state.accumulator.micro_batch_size = size
    images, labels = made_up_batch(request.training, MOST * size)
    device = state.classifier.mean.device
    parameters = list(state.classifier.parameters())
    gradients, agreement = GradientSum(parameters).vector(), torch.zeros(len(parameters), dtype=torch.float64, device=device)

    def exchange() -> None:
        processes.add_up(agreement)
        processes.add_up(gradients)

    def compute(count: int) -> Callable[[], None]:
        return lambda: measured_step(state, train, images[: count * size], labels[: count * size], size)

    def together(function: Callable[[], object]) -> float:
        """Return the seconds until the last process has done it, all having started at once."""
        processes.add_up(torch.zeros(1, device=device))
        own = torch.zeros(processes.count, dtype=torch.float64, device=device)
        own[processes.rank] = _seconds(function, device)
        return float(processes.add_up(own).max())

    together(compute(1))  # memory is taken, kernels are chosen
    count = max(2, min(MOST, int(STEP_SECONDS / together(compute(1)))))
    update = statistics.median(together(lambda: apply_update(state)) for _ in range(3))
    steps, sums = zip(*[(together(compute(count)), together(exchange)) for _ in range(ROUNDS)], strict=True)
    micro_batch = max(statistics.median(steps) - update, 1e-9) / count
    num_bytes = gradients.numel() * gradients.element_size()
    return ExchangeCost(processes.count, size, micro_batch, statistics.median(sums), num_bytes)


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


if __name__ == "__main__":
    raise SystemExit(main())
