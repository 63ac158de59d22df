"""Write docs/pictures: a report, MLflow's runs and Optuna's dashboard of a project made for it; `make screenshots`.

It runs `bigstep init`, `repro` and a small search on digits (minutes), and needs Chromium.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from bigstep.runtime.local_port import free_port
from dvc_dependencies import ROOT

PICTURES = ROOT / "docs" / "pictures"
SEARCH = ("search", "--trials", "6", "--workers", "1", "--set", "train.epochs=4", "--set", "search.confirm_seeds=1")
COLOURS = 128
WAIT_SECONDS = 120


def bigstep(project: Path, *arguments: str) -> None:
    """Run a command of bigstep in a folder."""
    subprocess.run([sys.executable, "-m", "bigstep.cli", *arguments], cwd=project, check=True, env=_environment())


@contextmanager
def served(project: Path, command: str) -> Iterator[str]:
    """Run ``bigstep mlflow`` or ``bigstep dashboard``, and yield its address once it answers."""
    port = free_port(5300)
    call = [sys.executable, "-m", "bigstep.cli", command, "--port", str(port)]
    process = subprocess.Popen(call, cwd=project, env=_environment(), stdout=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{port}/")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def take(address: str, name: str, height: int) -> None:
    """Write a screenshot, with few colours so that the file is small.

    Args:
        address: of the page.
        name: of the file in docs/pictures.
        height: of the window, in pixels; it is 1280 wide.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("Chromium must be there for screenshots: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        picture = Path(profile) / "page.png"
        command = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size=1280,{height}",
            "--virtual-time-budget=20000", "--blink-settings=preferredColorScheme=1", f"--user-data-dir={profile}/user",
            f"--screenshot={picture}",
        ]  # fmt: skip
        subprocess.run([*command, address], check=True, capture_output=True, timeout=180)
        PICTURES.mkdir(exist_ok=True)
        with Image.open(picture) as image:
            image.convert("RGB").quantize(COLOURS).save(PICTURES / name, optimize=True)


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def _wait(address: str) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()  # noqa: S310 # of this machine
            return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def main() -> None:
    """Make the project and its pictures."""
    with tempfile.TemporaryDirectory(prefix="bigstep-screenshots-") as scratch:
        bigstep(Path(scratch), "init", "digits")
        project = Path(scratch) / "digits"
        bigstep(project, "repro")
        bigstep(project, *SEARCH)
        take((project / "results" / "evaluate" / "report.html").as_uri(), "report.png", 1000)
        with served(project, "mlflow") as address:
            take(f"{address}/#/experiments/1/runs", "mlflow.png", 760)
        with served(project, "dashboard") as address:
            take(f"{address}/dashboard/studies/0", "optuna.png", 1000)


if __name__ == "__main__":
    main()
