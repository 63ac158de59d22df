"""How much of the time is useful when a training is killed again and again: `bigstep train`, every 15, 60 and 300 s.

Each case trains in two git clones of this checkout at once, with one thread each: in one piece, and killed (SIGKILL to the
group, S seconds after each start). The share is the seconds of the training in one piece over the seconds until the killed one
has ended, so that what is computed again, the starts of DVC, Python and torch, and the checkpoints all count as waste.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MODEL = Path("results", "train", "model.safetensors")
EPOCHS_PER_SECOND = 3.0  # of the default digits on one core, about; it decides nothing but the length of the cases
KILLS = 3  # at least, in a case


def main() -> None:
    """Print one row for each number of seconds between kills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=float, nargs="*", default=[15.0, 60.0, 300.0])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for every in options.every:
            print(_case(Path(scratch, f"{every:.0f}"), every), flush=True)


def _case(folder: Path, every: float) -> str:
    epochs = round(every * (KILLS - 0.5) * EPOCHS_PER_SECOND)
    whole, killed = _clone(folder / "whole", epochs), _clone(folder / "killed", epochs)
    with ThreadPoolExecutor() as pool:
        in_one_piece = pool.submit(_train, whole, None)
        kills, started = 0, time.monotonic()
        while _train(killed, every) is None:
            kills += 1
        seconds = time.monotonic() - started
        output = in_one_piece.result()
    found = re.search(r"trained in ([\d.]+) s", output or "")
    assert found is not None, output
    training = float(found[1])
    same = "yes" if (whole / MODEL).read_bytes() == (killed / MODEL).read_bytes() else "NO"
    return f"| {every:.0f} s | {kills} | {training:.0f} s | {seconds:.0f} s | {training / seconds:.0%} | {same} |"


def _clone(folder: Path, epochs: int) -> Path:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    params = folder / "params.yaml"
    text = params.read_text(encoding="utf-8")
    text = text.replace("epochs: 20 ", f"epochs: {epochs} ").replace("threads: null", "threads: 1")
    params.write_text(text, encoding="utf-8")
    return folder


def _train(folder: Path, every: float | None) -> str | None:
    """Return what the command printed; None where it was killed after ``every`` seconds."""
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bigstep.cli", "train"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder / "src"), "PATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(every)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None
        output.seek(0)
        text = output.read()
    if code:
        raise SystemExit(text)
    return text


if __name__ == "__main__":
    main()
