"""The faults of tests/faults on what people use otherwise: a plain torch loop, DVC and MLflow, each as it comes.

python benchmarks/stock_faults.py RESULTS: reads what `make faults` counted, measures the stock tools, and writes the table of
docs/reliability.md.
"""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- table: written by `make faults` -->", "<!-- end of table -->"
PLAIN = """
import hashlib, os, sys, time
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
images, labels = (torch.tensor(item) for item in load_digits(return_X_y=True))
images = images.float() / 16
if "NAN" in os.environ:
    images[5, 3] = float("nan")
width = int(os.environ.get("WIDTH", 64))
model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=float(os.environ.get("LR", 1e-3)))
workers = int(os.environ.get("WORKERS", 0))
loader = DataLoader(TensorDataset(images, labels), batch_size=16, shuffle=True, num_workers=workers)
first = 0
if os.path.exists("ckpt.pt"):
    state = torch.load("ckpt.pt")
    model.load_state_dict(state["model"]); optimizer.load_state_dict(state["optimizer"]); first = state["epoch"] + 1
    print("resumed at epoch", first, flush=True)
for epoch in range(first, int(os.environ.get("EPOCHS", 4))):
    for step, (x, y) in enumerate(loader):
        loss = nn.functional.cross_entropy(model(x), y) / 4
        loss.backward()
        if step % 4 == 3:
            optimizer.step(); optimizer.zero_grad()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, "ckpt.pt")
    print("epoch", epoch, float(loss), flush=True)
bits = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
print("sha", hashlib.sha256(bits).hexdigest(), "nan", any(bool(p.isnan().any()) for p in model.parameters()))
"""


class Folder:
    """A folder to run the stock tools in."""

    def __init__(self, root: Path) -> None:
        """Put the plain loop there."""
        self.root = root
        (root / "plain.py").write_text(PLAIN, encoding="utf-8")

    def run(self, *command: str, timeout: float = 120, **extra: str) -> tuple[int, str]:
        """Run a command; -1 where it took longer."""
        environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1", **extra}
        environment["DVC_SITE_CACHE_DIR"] = str(self.root / "site")
        try:
            done = subprocess.run(
                command, cwd=self.root, env=environment, text=True, capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return -1, ""
        return done.returncode, done.stdout + done.stderr

    def plain(self, **extra: str) -> tuple[int, str]:
        """Run the plain loop."""
        return self.run(sys.executable, "plain.py", **extra)

    def start_plain(self, **extra: str) -> "subprocess.Popen[str]":
        """Begin the plain loop."""
        environment = {**os.environ, **extra}
        command = [sys.executable, "plain.py"]
        return subprocess.Popen(command, cwd=self.root, env=environment, text=True, stdout=subprocess.PIPE)


def _until(process: "subprocess.Popen[str]", start: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return


def _sha(output: str) -> str:
    return output.partition("sha ")[2][:12]


def _last(output: str) -> str:
    return output.strip().splitlines()[-1][:110] if output.strip() else ""


def killed(folder: Folder) -> str:
    """Rows 1 and 31: killed in an epoch, started again."""
    _, expected = folder.plain()
    (folder.root / "ckpt.pt").unlink()
    process = folder.start_plain()
    _until(process, "epoch 1")
    process.kill()
    process.communicate()
    _, again = folder.plain()
    same = _sha(again) == _sha(expected)
    return f"plain loop: goes on from the last epoch; the same weights: {'yes' if same else 'no'}"


def half_saved(folder: Folder) -> str:
    """Row 2: killed while `torch.save` writes over the one checkpoint."""
    path, lost = folder.root / "ckpt.pt", 0
    for _ in range(5):
        path.unlink(missing_ok=True)
        process = folder.start_plain(WIDTH="60000", EPOCHS="3")
        _until(process, "epoch 0")
        full = path.stat().st_size
        while process.poll() is None and path.stat().st_size == full:
            time.sleep(0.0005)
        process.kill()
        process.communicate()
        lost += "resumed" not in folder.plain(WIDTH="60000", EPOCHS="1")[1]
    return f"plain loop: the checkpoint lost in {lost} of 5"


def stopped(folder: Folder) -> str:
    """Row 5: SIGTERM."""
    process = folder.start_plain(EPOCHS="50")
    _until(process, "epoch 1")
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    return f"plain loop: exit {process.returncode}, the epoch is lost"


def damaged(folder: Folder) -> str:
    """Rows 7 and 8: a byte flipped, or the file cut."""
    folder.plain(EPOCHS="1")
    path = folder.root / "ckpt.pt"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    code, output = folder.plain(EPOCHS="2")
    first = "loads it, and trains on" if code == 0 else f"{_last(output)}"
    path.write_bytes(whole[: len(whole) // 2])
    code, output = folder.plain(EPOCHS="2")
    return f"plain loop: flipped: {first}; cut: exit {code}, nothing to fall back to"


def full_disk(folder: Folder) -> str:
    """Row 10: the disk is full when a checkpoint is written over the last one."""
    folder.plain(EPOCHS="1", WIDTH="20000")
    size = (folder.root / "ckpt.pt").stat().st_size // 1024 // 2
    code, _ = folder.run("bash", "-c", f"ulimit -f {size}; {sys.executable} plain.py", WIDTH="20000", EPOCHS="3")
    again, _ = folder.plain(WIDTH="20000", EPOCHS="3")
    return f"plain loop: exit {code}; the old checkpoint {'still loads' if again == 0 else 'is gone too'}"


def not_finite(folder: Folder) -> str:
    """Rows 13 and 14: NaN in one sample."""
    code, output = folder.plain(NAN="1")
    return f"plain loop: exit {code}, weights NaN: {'yes' if 'nan True' in output else 'no'}"


def diverged(folder: Folder) -> str:
    """Row 15: a learning rate of 1e9."""
    code, output = folder.plain(LR="1e38")
    return f"plain loop: exit {code}, weights NaN: {'yes' if 'nan True' in output else 'no'}"


def dead_worker(folder: Folder) -> str:
    """Row 40: a loader process is killed."""
    process = folder.start_plain(WORKERS="1", EPOCHS="50")
    _until(process, "epoch 0")
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout.split()
    for number in found:
        os.kill(int(number), signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=30)
    process.kill()
    return f"plain loop: exit {process.returncode}, the epoch is lost"


def _dvc_project(folder: Folder) -> Path:
    folder.run("git", "init", "-q")
    folder.run("dvc", "init", "-q")
    (folder.root / "dvc.yaml").write_text(
        "stages:\n  a:\n    cmd: echo 12345678 > out.txt\n    outs:\n    - out.txt\n", "utf-8"
    )
    folder.run("dvc", "repro", "-q")
    return next(path for path in (folder.root / ".dvc/cache/files/md5").rglob("*") if path.is_file())


def rotten(folder: Folder) -> str:
    """Row 32: a cache object with other bytes."""
    victim = _dvc_project(folder)
    victim.chmod(0o644)
    victim.write_bytes(b"12345679\n")
    victim.chmod(0o444)
    (folder.root / "out.txt").unlink()
    code, output = folder.run("dvc", "checkout")
    status = folder.run("dvc", "status")[1]
    wrong = (folder.root / "out.txt").read_bytes() == b"12345679\n"
    return (
        f"DVC: checkout exit {code}, {'hands out the wrong bytes' if wrong else 'refuses'}; status: {_last(status or output)}"
    )


def torn(folder: Folder) -> str:
    """Row 33: a torn rwlock."""
    _dvc_project(folder)
    (folder.root / ".dvc/tmp/rwlock").write_text('{"write": {', encoding="utf-8")
    codes = [folder.run("dvc", "repro", "-f")[0] for _ in range(2)]
    return f"DVC: every `dvc repro` ends with exit {codes[0]} until the file is deleted by hand"


def bomb(folder: Folder) -> str:
    """Row 34: a pickle that runs a command."""
    canary = folder.root / "canary"
    code = f"import os, torch\nclass B:\n    def __reduce__(self): return os.system, ('touch {canary}',)\n"
    code += "torch.save(B(), 'b.pt')\n"
    folder.run(sys.executable, "-c", code)
    folder.run(sys.executable, "-c", "import torch; torch.load('b.pt')")
    default = canary.exists()
    folder.run(sys.executable, "-c", "import torch; torch.load('b.pt', weights_only=False)")
    shared = Path("/var/tmp/dvc")  # noqa: S108 # what is judged here
    mode = oct(shared.stat().st_mode & 0o777) if shared.exists() else "not there"
    return (
        f"torch.load: {'runs' if default else 'blocks'} it, with weights_only=False "
        f"{'runs' if canary.exists() else 'blocks'} it; DVC's default site cache has mode {mode}"
    )


def no_server(folder: Folder) -> str:
    """Row 28: MLflow's server is gone."""
    code = "import mlflow, time; t = time.time(); mlflow.set_tracking_uri('http://127.0.0.1:9'); mlflow.start_run()"
    started = time.monotonic()
    result, _ = folder.run(sys.executable, "-c", code, timeout=60)
    waited = time.monotonic() - started
    return f"MLflow: the training {'waits, still after' if result == -1 else 'ends with an exception after'} {waited:.0f} s"


def locked(folder: Folder) -> str:
    """Row 27: MLflow's database is locked for 25 s."""
    uri = f"sqlite:///{folder.root / 'm.db'}"
    begin = f"import mlflow; mlflow.set_tracking_uri({uri!r}); mlflow.set_experiment('x')"
    folder.run(sys.executable, "-c", begin)
    connection = sqlite3.connect(folder.root / "m.db")
    connection.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    code, _ = folder.run(sys.executable, "-c", begin + "; mlflow.start_run(); mlflow.log_metric('a', 1)", timeout=60)
    connection.rollback()
    return f"MLflow: held up for {time.monotonic() - started:.0f} s, then {'an exception' if code else 'goes on'}"


def open_door(folder: Folder) -> str:
    """Row 35: Host headers of other machines, to MLflow's own defaults."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = ["--backend-store-uri", f"sqlite:///{folder.root / 'm.db'}", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *where],
        cwd=folder.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    found = {}
    try:
        for name in ("evil.com", "192.168.1.7"):
            found[name] = _status(port, name)
    finally:
        server.terminate()
        server.wait(30)
    return "MLflow's defaults: " + ", ".join(f"Host {name}: {status}" for name, status in found.items())


def _status(port: int, host: str) -> int:
    address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
    for _ in range(300):
        try:
            with urllib.request.urlopen(urllib.request.Request(address, headers={"Host": host}), timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            time.sleep(0.2)
    return 0


STOCK: dict[str, Callable[[Folder], str]] = {
    "1, 31": killed,
    "2": half_saved,
    "5": stopped,
    "7, 8": damaged,
    "10": full_disk,
    "13, 14": not_finite,
    "15": diverged,
    "27": locked,
    "28": no_server,
    "32": rotten,
    "33": torn,
    "34": bomb,
    "35": open_door,
    "40": dead_worker,
}


def measure(row: str) -> str:
    """Give what the stock tool does under the fault of a row, in words."""
    with tempfile.TemporaryDirectory() as scratch:
        return STOCK[row](Folder(Path(scratch)))


def count(lines: list[str]) -> dict[str, dict[str, Any]]:
    """Count rounds, passes and notes of each row; a round, even one run again, passes where all that it told of is good."""
    rounds: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in map(json.loads, lines):
        rounds.setdefault((line["row"], line["title"], line["test"]), []).append(line)
    rows: dict[str, dict[str, Any]] = {}
    for (row, title, _), told in rounds.items():
        item = rows.setdefault(row, {"title": title, "rounds": 0, "passes": 0, "notes": Counter()})
        item["rounds"] += 1
        item["passes"] += all(line["passed"] for line in told)
        item["notes"].update(line["note"] for line in told[-1:] if line["note"])
    return rows


def main() -> None:
    """Write the table."""
    results = count(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())
    lines = ["| row | fault | rounds | passes | stock tools under the same fault |", "| --- | --- | ---: | ---: | --- |"]
    for row in sorted(results, key=lambda name: int("".join(filter(str.isdigit, name.partition(",")[0])))):
        found = measure(row) if row in STOCK else ""
        item = results[row]
        lines.append(f"| {row} | {item['title']} | {item['rounds']} | {item['passes']} | {found} |")
        sys.stdout.write(lines[-1] + "\n")
        sys.stdout.flush()
    page = PAGE.read_text(encoding="utf-8")
    head, tail = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    PAGE.write_text("\n".join([head, *lines, tail]), encoding="utf-8")


if __name__ == "__main__":
    main()
