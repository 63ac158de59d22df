"""What a loop of plain torch, and one of Lightning, do under the faults of training."""

import contextlib
import os
import signal
import subprocess
import sys
import time

from sandbox import Folder, last, sha, until

__all__ = [
    "damaged",
    "dead_worker",
    "diverged",
    "full_disk",
    "half_saved",
    "killed",
    "not_finite",
    "stopped",
]


def killed(folder: Folder) -> str:
    """Rows 1 and 31: killed in an epoch, started again."""
    found = []
    for name, loop, kept in (("plain loop", "plain.py", "ckpt.pt"), ("Lightning", "lightning_loop.py", "kept/last.ckpt")):
        expected = folder.run(sys.executable, loop)[1]
        for path in (folder.root / kept).parent.glob("*.ckpt" if "/" in kept else kept):
            path.unlink()
        process = folder.start(loop)
        until(process, "epoch 1")
        process.kill()
        process.communicate()
        again = folder.run(sys.executable, loop)[1]
        first = again.partition("epoch ")[2][:1]
        found.append(f"{name}: restarts at epoch {first}; same weights: {'yes' if sha(again) == sha(expected) else 'no'}")
    return "; ".join(found)


def half_saved(folder: Folder) -> str:
    """Row 2: killed while `torch.save` writes over the one checkpoint."""
    path, lost = folder.root / "ckpt.pt", 0
    for _ in range(5):
        path.unlink(missing_ok=True)
        process = folder.start("plain.py", WIDTH="60000", EPOCHS="3")
        until(process, "epoch 0")
        full = path.stat().st_size
        while process.poll() is None and path.stat().st_size == full:
            time.sleep(0.0005)
        process.kill()
        process.communicate()
        lost += "resumed" not in folder.plain(WIDTH="60000", EPOCHS="1")[1]
    return f"plain loop: checkpoint lost in {lost} of 5"


def stopped(folder: Folder) -> str:
    """Row 5: SIGTERM."""
    found = []
    for name, loop, kept in (("plain loop", "plain.py", "ckpt.pt"), ("Lightning", "lightning_loop.py", "kept/last.ckpt")):
        process = folder.start(loop, EPOCHS="500")
        until(process, "epoch 1")
        time.sleep(0.05)
        stopped = time.time()
        process.send_signal(signal.SIGTERM)
        process.communicate()
        is_saved = (folder.root / kept).stat().st_mtime > stopped
        found.append(f"{name}: exit {process.returncode}, checkpoint written: {'yes' if is_saved else 'no'}")
    return "; ".join(found)


def damaged(folder: Folder) -> str:
    """Rows 7 and 8: a byte flipped, or the file cut."""
    folder.plain(EPOCHS="1")
    path = folder.root / "ckpt.pt"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    code, output = folder.plain(EPOCHS="2")
    first = "loads it and continues" if code == 0 else f"{last(output)}"
    path.write_bytes(whole[: len(whole) // 2])
    code, output = folder.plain(EPOCHS="2")
    return f"plain loop: flipped: {first}; truncated: exit {code}, no older checkpoint"


def full_disk(folder: Folder) -> str:
    """Row 10: the disk is full when a checkpoint is written over the last one."""
    folder.plain(EPOCHS="1", WIDTH="20000")
    size = (folder.root / "ckpt.pt").stat().st_size // 1024 // 2
    code, _ = folder.run("bash", "-c", f"ulimit -f {size}; {sys.executable} plain.py", WIDTH="20000", EPOCHS="3")
    again, _ = folder.plain(WIDTH="20000", EPOCHS="3")
    return f"plain loop: exit {code}; the old checkpoint {'still loads' if again == 0 else 'is lost too'}"


def not_finite(folder: Folder) -> str:
    """Rows 13 and 14: NaN in one sample."""
    found = []
    for name, loop in (("plain loop", "plain.py"), ("Lightning", "lightning_loop.py")):
        code, output = folder.run(sys.executable, loop, NAN="1")
        found.append(f"{name}: exit {code}, weights NaN: {'yes' if 'nan True' in output else 'no'}")
    return "; ".join(found)


def diverged(folder: Folder) -> str:
    """Row 15: a learning rate of 1e9."""
    code, output = folder.plain(LR="1e9")
    return f"plain loop: exit {code}, weights NaN: {'yes' if 'nan True' in output else 'no'}"


def dead_worker(folder: Folder) -> str:
    """Row 40: a loader process is killed."""
    process = folder.start("plain.py", WORKERS="1", EPOCHS="50")
    until(process, "epoch 0")
    found: list[str] = []
    while not found and process.poll() is None:
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout.split()
    for number in found:
        os.kill(int(number), signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=60)
    waits = process.poll() is None
    process.kill()
    return f"plain loop: {'hangs' if waits else f'exit {process.wait()}'}"
