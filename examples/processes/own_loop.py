"""A loop of your own in several processes: as many samples in each as it likes, and the result of one process.

    python examples/processes/own_loop.py

On one machine with several GPUs or on many machines, start the processes as you do today (torchrun, Slurm), with the backend
`nccl` and the model on the process's own device; the loop stays as it is.
"""

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from bigstep import Accumulator, losses

SHARES = (5, 0, 11)  # samples of each process; the second one has none
MICRO = (2, 1, 4)  # the most that each has memory for
STEPS = 20


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the effective batch of a step."""
    draw = torch.Generator().manual_seed(step)
    inputs = torch.randn(sum(SHARES), 16, generator=draw, dtype=torch.float64)
    return inputs, (inputs[:, :4].sum(dim=1) > 0).long()


def train(rank: int | None) -> list[torch.Tensor]:
    """Train in one of several processes, or (None) in one; return the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 2)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    group = None if rank is None else dist.group.WORLD
    micro = sum(SHARES) if rank is None else MICRO[rank]
    accumulator = Accumulator(model, losses.CrossEntropy(), micro_batch_size=micro, seed=0, group=group)
    for step in range(STEPS):
        inputs, targets = batch(step)
        if rank is not None:
            start = sum(SHARES[:rank])
            own = slice(start, start + SHARES[rank])
            inputs, targets = (inputs[own], targets[own]) if SHARES[rank] else (None, None)
        accumulator.backward(inputs, targets, step=step)
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


def run(rank: int, port: int) -> None:
    """Train as one of the processes, and compare with one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(SHARES))
    pairs = zip(train(rank), train(None), strict=True)
    worst = max(float((found - expected).abs().max()) for found, expected in pairs)
    if rank == 0:
        print(f"{len(SHARES)} processes with {SHARES} samples: weights after {STEPS} steps are off by {worst:.1e} at most")
    dist.destroy_process_group()
    if worst > 1e-10:
        raise SystemExit(f"expected the weights of one process, got some that are off by {worst:.1e}")


def main() -> None:
    """Start the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run, args=(port,), nprocs=len(SHARES))


if __name__ == "__main__":
    main()
