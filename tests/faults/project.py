"""A project under test: start it, hurt it, look at how it ended."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bigstep.config.yaml_files import apply_overrides, parse_overrides, read_yaml, write_yaml

BIN = Path(sys.executable).parent
STRIKE = Path(__file__).with_name("strike")
TIMED = ("images_per_second", "peak_memory_bytes", "training_seconds")  # of the clock and the machine, not of the training
FILES = ("results/train/model.safetensors", "results/train/metrics.json", "results/train/history.csv", "dvc.lock")
JUDGED = ("results/evaluate/metrics.json", "results/evaluate/predictions.csv", "results/evaluate/card.md")


@dataclass(frozen=True)
class EndState:
    """What must not differ: the bytes of files, and the history of the run as (key, step, value)."""

    files: dict[str, str]
    metrics: list[tuple[str, int, float]]


class Project:
    """A copy of the project in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def set(self, *texts: str) -> None:
        write_yaml(apply_overrides(read_yaml(self.root / "params.yaml"), parse_overrides(texts)), self.root / "params.yaml")

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_", "BIGSTEP_"))}
        own = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1", "COLUMNS": "200"}
        return {**kept, **own, "DVC_SITE_CACHE_DIR": str(self.root / ".bigstep" / "dvc"), **extra}

    def run(self, *command: str, code: int | None = 0, timeout: float = 300, **extra: str) -> str:
        finished = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment(**extra),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
        assert code is None or finished.returncode == code, finished.stdout[-4000:]
        return finished.stdout

    def bigstep(self, *arguments: str, code: int | None = 0, **extra: str) -> str:
        return self.run("bigstep", *arguments, code=code, PYTHONPATH=str(self.root / "src"), **extra)

    def start(self, *command: str, **extra: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command or ("dvc", "repro"),
            cwd=self.root,
            env=self.environment(**extra),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run_while(self, progress: Callable[[], int], *command: str, patience: float = 120) -> str:
        """Run a command to its end, however long it takes, while ``progress`` grows within each ``patience`` seconds."""
        process = self.start(*command, PYTHONPATH=str(self.root / "src"))
        best, since = progress(), time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):  # what was read so far is kept
                output, _ = process.communicate(timeout=5)
                assert process.returncode == 0, output[-4000:]
                return output
            now = progress()
            if now > best:
                best, since = now, time.monotonic()
            if time.monotonic() - since > patience:
                os.killpg(process.pid, signal.SIGKILL)
                raise AssertionError(f"no progress beyond {best} in {patience} s:\n{process.communicate()[0][-4000:]}")

    def until(self, process: "subprocess.Popen[str]", sign: Callable[[str], bool]) -> list[str]:
        """Read lines until one that ``sign`` takes."""
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if sign(line):
                return lines
        raise AssertionError("the process ended before the sign:\n" + "".join(lines)[-3000:])

    def strike(
        self, event: str, pattern: str, number: int = 1, action: str = "kill", command: tuple[str, ...] = ("dvc", "repro")
    ) -> str:
        """Run a command in which the process that causes the event is struck; the strike must have happened."""
        mark = self.root / ".struck"
        mark.unlink(missing_ok=True)
        struck = {"STRIKE": f"{event}|{pattern}|{number}|{action}", "STRIKE_MARK": str(mark)}
        output = self.run(*command, code=None, PYTHONPATH=str(STRIKE), **struck)
        assert mark.exists(), f"no {event} of {pattern}:\n{output[-2000:]}"
        return output

    def finish(self, *stage: str) -> str:
        """Run `dvc repro` to its end; where a file of DVC's own is torn, `bigstep doctor --fix` may come first."""
        output = self.run("dvc", "repro", *stage, code=None)
        if "Use `dvc push`" not in output and "up to date" not in output:
            repaired = self.bigstep("doctor", "--fix", code=None)
            assert "is damaged" in repaired, output[-3000:] + repaired
            output = repaired + self.run("dvc", "repro", *stage)
        assert "Traceback" not in output
        return output

    def processes(self, wait: float = 10) -> list[psutil.Process]:
        """Return the processes that work in this project, after ``wait`` seconds for those that are about to end."""
        deadline = time.monotonic() + wait
        while True:
            found = [item for item in psutil.process_iter() if self._is_mine(item)]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            own = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            return own and Path(process.cwd()).is_relative_to(self.root)
        except (psutil.Error, OSError):
            return False

    def runs(self) -> list[Any]:
        """Return the runs of the project's history, oldest first."""
        import mlflow

        client = mlflow.MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")
        experiments = [item.experiment_id for item in client.search_experiments()]
        return list(reversed(client.search_runs(experiments, order_by=["attributes.start_time DESC"])))

    def history(self, run_id: str) -> list[tuple[str, int, float]]:
        """Return every metric of a run as it stands there, doubles included."""
        import mlflow

        client = mlflow.MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")
        keys = [key for key in client.get_run(run_id).data.metrics if key not in TIMED]
        return sorted((key, item.step, item.value) for key in keys for item in client.get_metric_history(run_id, key))

    def end_state(self) -> EndState:
        """Return what the project ended in, after training or after evaluating."""
        names = [*FILES, *(name for name in JUDGED if (self.root / name).exists())]
        files = {name: hashlib.sha256((self.root / name).read_bytes()).hexdigest() for name in names}
        assert not [run for run in self.runs() if run.info.status == "RUNNING"]
        last = self.runs()[-1]
        assert last.info.status == "FINISHED"
        return EndState(files, self.history(last.info.run_id))

    def checkpoints(self) -> list[Path]:
        return sorted((self.root / ".bigstep" / "checkpoints").glob("*/step-*"))


def kill_group(process: "subprocess.Popen[str]", number: int = signal.SIGKILL) -> None:
    os.killpg(process.pid, number)
    process.wait(30)
    if process.stdout is not None:
        process.stdout.close()
