"""Write docs/pictures: a report, MLflow's runs and Optuna's dashboard of a project made for it; `make screenshots`.

What these pages must show is checked, and so are the pages of a run, of a model's version, and of a trial.

It runs `bigstep init`, `repro` and a small search on digits (minutes), and needs Chromium.
"""

import html
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

import mlflow
from PIL import Image

from bigstep.runtime.local_port import free_port
from dvc_dependencies import ROOT

PICTURES = ROOT / "docs" / "pictures"
SEARCH = ("search", "--trials", "6", "--workers", "1", "--set", "train.epochs=4", "--set", "search.confirm_seeds=1")
MODEL = "bigstep-digits"
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


def take(address: str, name: str | None, height: int, *texts: str) -> None:
    """Check that a page shows ``texts``, and write a screenshot, with few colours so that the file is small.

    Args:
        address: of the page.
        name: of the file in docs/pictures; None: the page is only checked.
        height: of the window, in pixels; it is 1280 wide.
        texts: what the page must show.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("Chromium must be there for screenshots: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        picture = Path(profile) / "page.png"
        command = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size=1280,{height}",
            "--virtual-time-budget=20000", "--blink-settings=preferredColorScheme=1", f"--user-data-dir={profile}/user",
            f"--screenshot={picture}", "--dump-dom",
        ]  # fmt: skip
        shown = html.unescape(
            subprocess.run([*command, address], check=True, capture_output=True, text=True, timeout=180).stdout
        )
        missing = [text for text in texts if text not in shown]
        if missing:
            raise SystemExit(f"{address}: expected the page to show {missing}, got none of them")
        if name is None:
            return
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
        take((project / "results" / "evaluate" / "report.html").as_uri(), "report.png", 1000, "Worst mistakes", "Parameters")
        with served(project, "mlflow") as address:
            take_mlflow(project, address)
        with served(project, "dashboard") as address:
            take(f"{address}/dashboard/studies/0", "optuna.png", 1000, "Importance of what is searched")
            planned = ("learning_rate", "effective_batch_size", "accumulation_steps", "micro_batch_size")
            take(f"{address}/dashboard/studies/0/trials?numbers=0", None, 1400, *planned)


def take_mlflow(project: Path, address: str) -> None:
    """Check the pages of the runs, of a run, and of a model's version."""
    client = mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    version = client.get_model_version_by_alias(MODEL, "champion")
    run = client.get_run(version.run_id)
    place = f"{address}/#/experiments/{run.info.experiment_id}/runs"
    take(f"{place}?viewStateShareKey=scores", "mlflow.png", 760, "small_cnn, B 64, lr 0.004", "Scores first", "test_accuracy")
    take(f"{place}/{version.run_id}", None, 1400, "test_accuracy", "best_val_loss", "small_cnn, B 64, lr 0.004")
    take(f"{address}/#/models/{MODEL}/versions/{version.version}", None, 1400, "Intended use", "champion")


if __name__ == "__main__":
    main()
