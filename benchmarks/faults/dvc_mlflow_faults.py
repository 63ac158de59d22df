"""What DVC, MLflow and pickles do under the faults of data and of history, each as it comes."""

import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from sandbox import Folder, last

__all__ = [
    "bomb",
    "locked",
    "no_server",
    "open_door",
    "rotten",
    "torn",
]


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
    return f"DVC: checkout exit {code}, {'wrong bytes' if wrong else 'refuses'}; status: {last(status or output)}"


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
    return f"MLflow: the training {'still waits after' if result == -1 else 'ends with an exception after'} {waited:.0f} s"


def locked(folder: Folder) -> str:
    """Row 27: MLflow's database is locked for 25 s."""
    uri = f"sqlite:///{folder.root / 'm.db'}"
    setup = f"import mlflow; mlflow.set_tracking_uri({uri!r}); mlflow.set_experiment('x')"
    folder.run(sys.executable, "-c", setup)
    connection = sqlite3.connect(folder.root / "m.db")
    connection.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    code, _ = folder.run(sys.executable, "-c", setup + "; mlflow.start_run(); mlflow.log_metric('a', 1)", timeout=60)
    connection.rollback()
    return f"MLflow: blocked for {time.monotonic() - started:.0f} s, then {'an exception' if code else 'continues'}"


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
