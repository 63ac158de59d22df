"""What a run costs beyond its training: `dvc repro -f` on digits against importing torch, torchvision and MLflow.

A copy of this checkout runs in a folder of its own, and one of another checkout beside it if ``--against`` names it. Every
round does each thing once, in turns, so that a busy machine hits all of them; the medians of the rounds are printed, and the
ratio of each round's own figures is what counts. The training's own seconds are those from the first optimizer step to the last
validation, by the times of the run's metrics. Seconds of the processor (user and system) say more than the clock where others
work beside.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = {"base": "import torch, torchvision, mlflow", "torch": "import torch, torchvision"}
TITLES = {
    "base": "`import torch, torchvision, mlflow`, s",
    "base_cpu": "the same, s of the processor",
    "whole": "`dvc repro -f`, s",
    "whole_cpu": "the same, s of the processor",
    "training": "of it the training's own, s",
    "ratio": "**beyond the training / importing (at most 2.5)**",
    "torch": "`import torch, torchvision`, s",
    "first": "first optimizer step, from the start of stage train, s",
    "first_ratio": "**first step / importing (at most 1.5)**",
    "help": "`bigstep --help`, s",
    "nothing": "`dvc repro` with nothing to do, s",
}


def main() -> None:
    """Print one row for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="root of another checkout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        roots = [ROOT, *([options.against] if options.against else [])]
        projects = [copy_checkout(root, Path(scratch, f"project{number}")) for number, root in enumerate(roots)]
        for project in projects:
            one_round(project)  # creates the database, and fills the disk's cache
        rounds = [[one_round(project) for project in projects] for _ in range(options.rounds)]
    print(f"| medians of {options.rounds} rounds, {os.cpu_count()} cores | this checkout |{' the other |' * (len(roots) - 1)}")
    print(f"|---|{'---|' * len(roots)}")
    for name, title in TITLES.items():
        medians = [statistics.median(figures[number][name] for figures in rounds) for number in range(len(roots))]
        print(f"| {title} | {' | '.join(f'{value:.2f}' for value in medians)} |")


def copy_checkout(root: Path, target: Path) -> Path:
    """Copy the files of ``root`` that git knows or would add, into a git repository of their own."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target / name)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "copy"]):
        subprocess.run(["git", *command], cwd=target, check=True)
    return target


def one_round(project: Path) -> dict[str, float]:
    """Return every figure, measured once."""
    before = children_seconds()
    figures = {"base": seconds_of([sys.executable, "-c", IMPORTS["base"]], project)}
    figures["base_cpu"] = children_seconds() - before
    figures["torch"] = seconds_of([sys.executable, "-c", IMPORTS["torch"]], project)
    figures["help"] = seconds_of([sys.executable, "-m", "bigstep.cli", "--help"], project)
    before = children_seconds()
    figures["whole"], started = whole_run(project)
    figures["whole_cpu"] = children_seconds() - before
    first, last = times_of_training(project)
    figures["nothing"] = seconds_of([sys.executable, "-m", "dvc", "repro"], project)
    figures["training"], figures["first"] = last - first, first - started
    figures["ratio"] = (figures["whole"] - figures["training"]) / figures["base"]
    figures["first_ratio"] = figures["first"] / figures["torch"]
    return figures


def children_seconds() -> float:
    """Return the processor's seconds of all processes that were started here and have ended, with theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds_of(command: Sequence[str], folder: Path) -> float:
    """Return how long a command takes."""
    started = time.perf_counter()
    subprocess.run(
        command, cwd=folder, env=environment(folder), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - started


def whole_run(project: Path) -> tuple[float, float]:
    """Return how long `dvc repro -f` takes, and when (``time.time()``) it started stage train."""
    begun, started, lines = time.perf_counter(), 0.0, []
    command = [sys.executable, "-u", "-m", "dvc", "repro", "-f"]
    process = subprocess.Popen(
        command, cwd=project, env=environment(project), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if "Running stage 'train'" in line:
            started = time.time()
    assert process.wait() == 0, "".join(lines)
    return time.perf_counter() - begun, started


def times_of_training(project: Path) -> tuple[float, float]:
    """Return when the newest run's first optimizer step and its last validation ended, by ``time.time()``."""
    journal = max((project / ".bigstep" / "spools").glob("*/journal.jsonl"), key=lambda path: path.stat().st_mtime)
    entries = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    rows = [row for entry in entries if entry["entry"] == "metrics" for row in entry["rows"]]
    first = min(row[3] for row in rows if row[0] == "step_loss")
    return first / 1000, max(row[3] for row in rows if row[0] == "val_loss") / 1000


def environment(project: Path) -> dict[str, str]:
    """Return an environment in which DVC's stages run this Python and the copy's code."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_", "BIGSTEP_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {**kept, **quiet, "PATH": path, "PYTHONPATH": str(project / "src")}


if __name__ == "__main__":
    main()
