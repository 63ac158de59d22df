"""FSDP2 below the accumulator: each process holds a part of every weight, and the gradient is that of the whole batch.

    python examples/processes/fsdp2.py

FSDP2 averages gradients over the processes, so the weight of the whole effective batch is divided by their number. Each process
must run the same number of micro-batches: FSDP2 communicates in each of them. (`group=` needs neither, and communicates once.)
"""

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from bigstep import Accumulator, losses

PROCESSES, SAMPLES, MICRO = 2, 24, 4


def build() -> nn.Sequential:
    """Return a network, the same in each process."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Dropout(0.2)) for _ in range(3)]
    return nn.Sequential(*layers, nn.Linear(32, 10)).double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the samples of an effective batch, the same in each process."""
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 32, generator=draw, dtype=torch.float64)
    return inputs, torch.randint(0, 10, (SAMPLES,), generator=draw)


def whole_gradient() -> list[torch.Tensor]:
    """Return the gradient in one process and one pass."""
    model = build()
    Accumulator(model, losses.CrossEntropy(), micro_batch_size=SAMPLES, seed=0).backward(*batch())
    return [parameter.grad for parameter in model.parameters()]


def run(rank: int, port: int) -> None:
    """Compute this process's share, and compare the gradient with that of one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)
    model, mesh = build(), init_device_mesh("cpu", (PROCESSES,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    inputs, targets = batch()
    loss = losses.CrossEntropy()
    own = slice(rank * SAMPLES // PROCESSES, (rank + 1) * SAMPLES // PROCESSES)
    accumulator = Accumulator(model, loss, micro_batch_size=MICRO, seed=0, self_check=False)
    accumulator.backward(
        inputs[own],
        targets[own],
        step=0,
        weight=loss.weight(targets) / PROCESSES,
        positions=torch.arange(SAMPLES)[own],
    )
    pairs = zip(model.parameters(), whole_gradient(), strict=True)
    worst = max(float((parameter.grad.full_tensor() - whole).abs().max()) for parameter, whole in pairs)
    if rank == 0:
        print(f"{PROCESSES} processes, each with a part of every weight: off by {worst:.1e} at most")
    dist.destroy_process_group()
    if worst > 1e-12:
        raise SystemExit(f"expected the gradient of the whole batch, got one that is off by {worst:.1e}")


def main() -> None:
    """Start the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run, args=(port,), nprocs=PROCESSES)


if __name__ == "__main__":
    main()
