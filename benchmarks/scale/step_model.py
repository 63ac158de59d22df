"""How long a step takes in several processes, and from which number of micro-batches on the exchange hardly counts.

    python benchmarks/scale/step_model.py             the table of docs/scale.md, and the check against published figures
    python benchmarks/scale/step_model.py --measure   steps of two processes on this machine against the model (minutes, quiet)

A step of A micro-batches takes T(A) = A t + E, with t the seconds of a micro-batch in the slowest process and E those of the
sums, of which up to 2/3 t may be hidden behind the last backward pass (DistributedDataParallel does that, bigstep does not).
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BANDWIDTH_SHARE = 0.92  # of a link that NCCL's ring reaches, by its own tuning table
HOP_SECONDS = 50e-6  # of TCP
HIDDEN_SHARE = 2 / 3  # of a micro-batch: its backward pass


@dataclass(frozen=True)
class Cluster:
    """Processes of one GPU each, and the link between them."""

    processes: int
    bytes_per_second: float


def exchange_seconds(num_bytes: float, cluster: Cluster) -> float:
    """Return the seconds of a ring's all-reduce: each process sends 2 (W - 1) / W of the bytes, in 2 (W - 1) hops."""
    count = cluster.processes
    sent = 2 * (count - 1) / count * num_bytes
    return sent / (cluster.bytes_per_second * BANDWIDTH_SHARE) + 2 * (count - 1) * HOP_SECONDS


def step_seconds(micro_batches: int, micro_seconds: float, exchange: float, *, hides: bool = False) -> float:
    """Return the seconds of a step."""
    hidden = min(exchange, HIDDEN_SHARE * micro_seconds) if hides else 0.0
    return micro_batches * micro_seconds + exchange - hidden


def least_micro_batches(share: float, micro_seconds: float, exchange: float) -> int:
    """Return the least A at which computing takes ``share`` of a step."""
    needed = share / (1 - share) * exchange / micro_seconds
    return max(1, -int(-needed // 1))


def best_micro_batches(noise_scale: float, samples: int, micro_seconds: float, exchange: float) -> float:
    """Return the A with the shortest time to a target, sqrt(noise scale / (W m) E / t): below 1 accumulating does not pay.

    The number of steps is taken to grow as 1 + noise scale / B (McCandlish et al., arXiv 1812.06162), with B = W m A.
    """
    return float((noise_scale / samples * exchange / micro_seconds) ** 0.5)


def check_published() -> tuple[tuple[float, float], ...]:
    """Predict the samples a second of pull request 1659 of timm, which adds gradient accumulation; each with what it published.

    maxvit_large_tf_384 (212 million parameters), three nodes with a GPU each, 10 Gb/s, 8 samples a micro-batch, by
    DistributedDataParallel. The seconds of a micro-batch are those of three GPUs in one node with 32 micro-batches: 59.5
    samples a second.
    """
    samples, micro_seconds = 3 * 8, 3 * 8 / 59.5
    exchange = exchange_seconds(4 * 212e6, Cluster(3, 10e9 / 8))
    published = {1: 21.6, 32: 57.1}
    return tuple(
        (samples * count / step_seconds(count, micro_seconds, exchange, hides=True), rate) for count, rate in published.items()
    )


def table() -> list[str]:
    """Return the lines of the table: ResNet-50, 25.6 million parameters, 64 samples of 26 ms a micro-batch (A100, 16 bits)."""
    links = {"200 Gb/s": 25e9, "25 Gb/s": 25e9 / 8, "10 Gb/s": 10e9 / 8, "1 Gb/s": 1e9 / 8}
    sizes, micro_seconds, noise_scale = (1, 4, 16, 64), 0.026, 32_000
    header = " | ".join(f"A = {size}" for size in sizes)
    lines = [
        f"| link | processes | exchange, ms | {header} | A for 90 % | best A at a noise scale of {noise_scale:,} |",
        f"| --- | ---: | ---: | {'---: | ' * len(sizes)}---: | ---: |",
    ]
    for link, speed in links.items():
        for count in (2, 8, 64):
            exchange = exchange_seconds(4 * 25.6e6, Cluster(count, speed))
            shares = (size * micro_seconds / step_seconds(size, micro_seconds, exchange) for size in sizes)
            best = best_micro_batches(noise_scale, count * 64, micro_seconds, exchange)
            row = " | ".join(f"{share:.0%}" for share in shares)
            least = least_micro_batches(0.9, micro_seconds, exchange)
            lines.append(f"| {link} | {count} | {exchange * 1000:,.1f} | {row} | {least} | {best:.1f} |")
    return lines


ROUNDS, WIDTH, MICRO, PIXELS = 21, 32, 32, 28
MEASURED = (1, 2, 4, 8, 16)


def _network() -> Any:
    import torch

    from bigstep.config.model import ModelConfig
    from bigstep.models.building import InputShape, build_network

    torch.manual_seed(0)
    return build_network(ModelConfig(width=WIDTH), InputShape(1, PIXELS, 10)).train()


def _step(micro_batches: int, group: object = None) -> Callable[[], None]:
    """Return a function that takes a step, shared ones with the weight of the whole effective batch, as a training does."""
    import torch

    from bigstep import Accumulator, losses

    model, size = _network(), micro_batches * MICRO
    inputs = torch.rand(size, 1, PIXELS, PIXELS) if size else None
    targets = torch.randint(0, 10, (size,)) if size else None
    loss = losses.CrossEntropy()
    accumulator = Accumulator(model, loss, micro_batch_size=MICRO, seed=0, self_check=False, group=group)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    known: dict[str, Any] = {} if group is None else {"weight": 2.0 * size, "sizes": (size, size)}

    def run() -> None:
        accumulator.backward(inputs, targets, step=0, **known)
        optimizer.step()
        optimizer.zero_grad()

    return run


def _exchange(group: object) -> Callable[[], None]:
    """Return a function that does what only a shared step does: its sums, and copying the gradients there and back."""
    import torch

    from bigstep.step.gradient_sum import GradientSum

    sums, parameters = _step(0, group), list(_network().parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    gradients = GradientSum(parameters)

    def run() -> None:
        flat = gradients.vector()
        gradients.fill(flat)
        sums()
        gradients.replace(flat, gradients.present())

    return run


def _seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _process(rank: int, folder: str) -> None:
    """Measure, in turns: shared steps, steps of each process by itself, their sums, and steps of one while the other waits.

    What both do at the same time counts as long as the slower one takes: the other waits for it in the next sum. The sums are
    measured right after both have computed, as in a step: by then caches and threads are those of the passes.
    """
    import torch
    import torch.distributed as dist

    from bigstep.runtime.heap import keep_heap
    from bigstep.step.process_group import Processes

    torch.set_num_threads(1)
    keep_heap()  # as a training does
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    shared = {count: _step(count, dist.group.WORLD) for count in MEASURED}
    alone = {count: _step(2 * count) for count in MEASURED}
    both = {count: _step(count) for count in MEASURED}  # each by itself, beside the other: what memory both share costs
    exchange, processes = _exchange(dist.group.WORLD), Processes(dist.group.WORLD)
    found: dict[str, list[float]] = {}

    def note(name: str, run: Callable[[], None]) -> None:
        dist.barrier()
        own = torch.zeros(2, dtype=torch.float64)
        own[rank] = _seconds(run)
        found.setdefault(name, []).append(float(processes.add_up(own).max()))

    for _ in range(ROUNDS):
        for count in MEASURED:
            note(f"shared {count}", shared[count])
            note(f"both {count}", both[count])
            note("exchange", exchange)
            dist.barrier()
            if rank == 0:
                found.setdefault(f"alone {count}", []).append(_seconds(alone[count]))
            dist.barrier()
    if rank == 0:
        medians = {name: statistics.median(times[len(times) // ROUNDS :]) for name, times in found.items()}
        (Path(folder) / "found.json").write_text(json.dumps(medians), encoding="utf-8")
    dist.destroy_process_group()


def measure() -> list[str]:
    """Return the lines of the measured table: two processes of one thread against one process of one thread."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, args=(folder,), nprocs=2)
        found = json.loads((Path(folder) / "found.json").read_text(encoding="utf-8"))
    slope = (found["both 16"] - found["both 1"]) / 15  # of a micro-batch; what a step costs besides is in the rest
    rest = found["both 1"] - slope + found["exchange"]
    lines = [
        "| A in each process | two processes, ms | by the model, ms | difference | one process, 2 A, ms | two are faster by | "
        "two that share nothing |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for count in MEASURED:
        model, real, one = count * slope + rest, found[f"shared {count}"], found[f"alone {count}"]
        numbers = f"{real * 1000:.1f} | {model * 1000:.1f} | {model / real - 1:+.1%} | {one * 1000:.1f} | {one / real:.2f}"
        lines.append(f"| {count} | {numbers} | {one / found[f'both {count}']:.2f} |")
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure steps of two processes on this machine")
    lines = measure() if parser.parse_args().measure else table()
    for predicted, published in check_published():
        sys.stderr.write(f"timm 1659: predicted {predicted:.1f} samples/s, published {published:.1f}\n")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
