"""What torchrun with a plain loop of DistributedDataParallel does under the faults of rows 50 to 52 of docs/reliability.md.

    python benchmarks/faults/torchrun_faults.py          the table of docs/scale.md (minutes)

The loop is that of the tutorials: a checkpoint after each epoch, from which the same command continues. Each fault comes in the
second epoch, without restarts, torchrun's default, and with `--max-restarts 3`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from sandbox import Folder

__all__ = ["killed", "memory", "stopped"]

LOOP = """
import hashlib, os, time
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
with open(f"pid {rank}", "w") as file:
    file.write(str(os.getpid()))
torch.manual_seed(0)
images, labels = (torch.tensor(item) for item in load_digits(return_X_y=True))
data = TensorDataset(images.float() / 16, labels)
model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
sampler = DistributedSampler(data, seed=0)
loader = DataLoader(data, batch_size=48 // dist.get_world_size(), sampler=sampler)
first = 0
if os.path.exists("ckpt.pt"):
    state = torch.load("ckpt.pt")
    model.module.load_state_dict(state["model"]); optimizer.load_state_dict(state["optimizer"]); first = state["epoch"] + 1
for epoch in range(first, 4):
    sampler.set_epoch(epoch)
    for step, (x, y) in enumerate(loader):
        output = model(x)
        if rank == 1 and (epoch, step) == (1, 8) and "MEMORY" in os.environ and not os.path.exists("failed once"):
            open("failed once", "w").close()
            torch.empty(1 << 56, dtype=torch.uint8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(output, y).backward()
        optimizer.step()
        if rank == 0:
            print("step", epoch, step, flush=True)
        time.sleep(0.02)
    if rank == 0:
        torch.save({"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, "ckpt.pt")
    dist.barrier()
if rank == 0:
    bits = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    print("sha", hashlib.sha256(bits).hexdigest(), flush=True)
dist.destroy_process_group()
"""
PATIENCE = 120.0  # seconds, after which it is said to hang


@dataclass
class Run:
    """A folder with the loop, in which torchrun is started and hurt."""

    root: Path
    processes: int
    restarts: int

    def start(self, **extra: str) -> "subprocess.Popen[str]":
        """Start torchrun."""
        (self.root / "loop.py").write_text(LOOP, encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        command += [f"--max-restarts={self.restarts}", "loop.py"]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **extra}
        return subprocess.Popen(
            command, cwd=self.root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def to_the_end(self) -> str:
        """Run torchrun, and return what it printed."""
        process = self.start()
        return process.communicate(timeout=600)[0]

    def ranks(self) -> list[psutil.Process]:
        """Return the processes of the loop that live."""
        found = []
        for path in self.root.glob("pid *"):
            with contextlib.suppress(psutil.Error, ValueError):
                process = psutil.Process(int(path.read_text(encoding="utf-8")))
                if process.status() != psutil.STATUS_ZOMBIE and "loop.py" in process.cmdline():
                    found.append(process)
        return found


def sha(output: str) -> str:
    """Return the digest of the weights that the loop printed last; empty without one."""
    return output.rpartition("sha ")[2][:64] if "sha " in output else ""


def steps(output: str) -> list[tuple[int, int]]:
    """Return the (epoch, step) of each line."""
    words = (line.split() for line in output.splitlines() if line.startswith("step "))
    return [(int(epoch), int(step)) for _, epoch, step in words]


Strike = Callable[[Run, "subprocess.Popen[str]"], None]
FAULTS: dict[str, Strike | None] = {
    "memory runs out in one process": None,  # the loop does it
    "SIGKILL of one process": lambda run, _: _send(run, signal.SIGKILL),
    "SIGKILL of the command": lambda _, process: process.kill(),
    "SIGTERM to one process": lambda run, _: _send(run, signal.SIGTERM),
}


def _send(run: Run, number: int) -> None:
    os.kill(int((run.root / "pid 1").read_text(encoding="utf-8")), number)


def disturbed(run: Run, strike: Strike | None) -> tuple[str, "subprocess.Popen[str]", float]:
    """Run the loop, strike in the second epoch, and return what it printed, the process, and the seconds until it ended."""
    process = run.start(**({"MEMORY": "1"} if strike is None else {}))
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    deadline = time.monotonic() + PATIENCE
    while not any(line.startswith("step 1 8") for line in lines) and process.poll() is None and time.monotonic() < deadline:
        if strike is None and (run.root / "failed once").exists():
            break
        time.sleep(0.01)
    started = time.monotonic()
    if strike is not None:
        strike(run, process)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    seconds = time.monotonic() - started
    time.sleep(5)
    return "".join(lines), process, seconds


def judged(fault: str, processes: int, restarts: int, expected: str) -> str:
    """Return what happened, in words."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), processes, restarts)
        output, process, seconds = disturbed(run, FAULTS[fault])
        left = run.ranks()
        hangs = process.poll() is None
        found = [f"hangs for more than {PATIENCE:.0f} s" if hangs else f"exit {process.returncode} after {seconds:.0f} s"]
        if left:
            found.append(f"{len(left)} processes left after 5 s")
        process.kill()
        process.wait()
        for item in left:
            with contextlib.suppress(psutil.Error):
                item.kill()
        if sha(output):
            done = steps(output)
            again = len(done) - len(set(done))
            found.append(f"{again} steps computed again; same weights: {'yes' if sha(output) == expected else 'no'}")
            return ", ".join(found)
        lost = sum(epoch == 1 for epoch, _ in steps(output))
        rest = run.to_the_end()
        same = "yes" if sha(rest) == expected else "no"
        return ", ".join(found) + f"; the same command repeats {lost} steps; same weights: {same}"


def undisturbed(processes: int) -> str:
    """Return the digest of the weights that a run ends with that nothing happens to; a second run has the same."""
    found = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            found.append(sha(Run(Path(folder), processes, 0).to_the_end()))
    assert found[0]
    assert found[0] == found[1]
    return found[0]


def _row(*faults: str) -> str:
    expected = undisturbed(2)
    return "torchrun + DDP: " + "; ".join(f"{fault}: {judged(fault, 2, 0, expected)}" for fault in faults)


def memory(folder: Folder) -> str:
    """Row 50: one of two processes has too little memory."""
    del folder
    return _row("memory runs out in one process")


def killed(folder: Folder) -> str:
    """Row 51: one of two processes is killed, or torchrun itself."""
    del folder
    return _row("SIGKILL of one process", "SIGKILL of the command")


def stopped(folder: Folder) -> str:
    """Row 52: one of two processes is asked to stop."""
    del folder
    return _row("SIGTERM to one process")


def main() -> None:
    """Print the table."""
    print("| fault | processes | torchrun + DDP | with `--max-restarts 3` |\n| --- | ---: | --- | --- |", flush=True)
    for processes in (2, 3):
        expected = undisturbed(processes)
        for fault in FAULTS:
            cells = " | ".join(judged(fault, processes, restarts, expected) for restarts in (0, 3))
            print(f"| {fault} | {processes} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
