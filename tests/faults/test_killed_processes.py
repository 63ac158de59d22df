"""Rows 51 and 52: one of several processes, their stage or `dvc` is hurt, again and again on the way to one result.

A round is one start that is hurt; the next one resumes. Five rounds share a project, and what it ends in is compared once.
"""

import contextlib
import logging
import pickle
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from conftest import Shared
from faults.project import EndState, Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # pipes of processes that are killed
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]
ROADS, STRIKES = 20, 5
VICTIMS = ("a process", "the stage", "dvc")
SETTINGS = (
    "train.precision=float64",
    "train.effective_batch_size=24",
    "train.mixup_alpha=0.3",
    "model.width=8",
    "model.dropout=0.2",
    "hardware.memory_budget=none",
)
EPOCHS = 3  # of the prepared project
HELPER, STAGE = "bigstep.runs.helper", "pipelines/train.py"
SIGN = "processes share each effective batch"
PATIENCE = 300.0  # seconds, for what a busy machine takes its time for


@dataclass(frozen=True)
class Undisturbed:
    """What a training in several processes ends in that nothing happens to, and the seconds of a step."""

    state: EndState
    rows: list[list[float]]
    num_steps: int
    seconds: float


@pytest.fixture(scope="session")
def undisturbed_in(prepared: Path, shared: Shared) -> Callable[[int], Undisturbed]:
    """Return that of a number of processes; it is trained when it is first asked for."""

    def make(count: int, folder: Path) -> None:
        project = Project(folder / "project")
        shutil.copytree(prepared, project.root, symlinks=True)
        project.set(*SETTINGS, f"hardware.processes={count}")
        start = Start(project, "dvc", "repro", "train")
        start.until(lambda: SIGN in start.output)
        started = time.monotonic()
        start.until(lambda: f"epoch {EPOCHS}/" in start.output)
        seconds = time.monotonic() - started
        start.finish()
        assert start.process.returncode == 0, start.output
        state = project.end_state()
        num_steps = max(step for _, step, _ in state.metrics)
        found = Undisturbed(state, _rows(project), num_steps, seconds / num_steps)
        (folder / "state").write_bytes(pickle.dumps(found))

    def get(count: int) -> Undisturbed:
        folder = shared(f"in {count} processes", lambda folder: make(count, folder))
        found: Undisturbed = pickle.loads((folder / "state").read_bytes())  # written above
        return found

    return get


class Start:
    """A command of a project that runs, and what it has printed so far."""

    def __init__(self, project: Project, *command: str) -> None:
        self.process = project.start(*command, PYTHONPATH=str(project.root / "src"))
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._lines.extend(self.process.stdout)

    def until(self, sign: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not sign() and self.process.poll() is None:
            assert time.monotonic() < deadline, self.output[-3000:]
            time.sleep(0.02)
        if self.process.poll() is not None:
            self.finish()
        assert sign(), self.output[-3000:]

    def below(self, word: str) -> list[psutil.Process]:
        found = []
        with contextlib.suppress(psutil.Error):  # the command has ended
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):  # or one below it
                    found += [child] if word in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE else []
        return found

    def finish(self) -> None:
        """Wait for the end, and for that of all processes that print here."""
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        if self.process.stdout is not None:
            self.process.stdout.close()


def _rows(project: Project) -> list[list[float]]:
    lines = (project.root / "results" / "train" / "history.csv").read_text(encoding="utf-8").splitlines()[1:]
    return [[float(value) for value in line.split(",")] for line in lines]


def _newest_step(project: Project) -> int | None:
    checkpoints = project.checkpoints()
    return int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else None


def _moments(draw: random.Random, expected: Undisturbed) -> list[float]:
    """Draw the step at which each start is hurt, or minus the seconds after its first process was there."""
    steps = sorted(draw.uniform(0, expected.num_steps) for _ in range(STRIKES))
    return [-draw.uniform(0, 2) if draw.random() < 0.15 else step for step in steps]


def _hurt(start: Start, before: int | None, moment: float, expected: Undisturbed, strike: Callable[[], None]) -> bool:
    """Strike at about that step, where training goes on from step ``before``; return whether it had not ended before."""
    if moment < 0:
        start.until(lambda: start.below(HELPER) or SIGN in start.output)
        time.sleep(-moment)
    else:
        start.until(lambda: SIGN in start.output)
        time.sleep(max(0.0, moment - (before or 0)) * expected.seconds)
    struck = bool(start.below(HELPER))
    if struck:
        try:
            strike()
        except (ProcessLookupError, psutil.NoSuchProcess, IndexError):  # it ended in this instant
            struck = False
    since = time.monotonic()
    start.finish()
    logging.getLogger(__name__).info("step %.0f: all ended %.1f s later", moment, time.monotonic() - since)
    return struck


def _kill(start: Start, victim: str, draw: random.Random) -> None:
    if victim == "dvc":
        start.process.kill()
    elif victim == "the stage":
        start.below(STAGE)[-1].kill()
    else:
        draw.choice(start.below(HELPER)).kill()


@pytest.mark.fault(
    51, "SIGKILL at a random moment of one of two or three processes, of the stage, or of `dvc`", rounds=ROADS, rare=True
)
def test_kills_leave_no_process_and_the_same_command_the_same_bytes(
    round_number: int,
    project: Project,
    undisturbed_in: Callable[[int], Undisturbed],
    record_property: Callable[[str, object], None],
) -> None:
    draw, hit = random.Random(6000 + round_number), list[str]()
    record_property("note", hit)
    count, changes = 2 + round_number % 2, round_number % 4 == 3  # every fourth time another number resumes
    expected = undisturbed_in(count)
    project.set(*SETTINGS, f"hardware.processes={count}")
    victims = draw.sample([*VICTIMS, *draw.choices(VICTIMS, k=STRIKES - len(VICTIMS))], STRIKES)
    for victim, moment in zip(victims, _moments(draw, expected), strict=True):
        before, start = _newest_step(project), Start(project, "dvc", "repro", "train")
        if not _hurt(start, before, moment, expected, partial(_kill, start, victim, draw)):
            break
        hit.append(victim)
        assert not project.processes(5)
        assert (_newest_step(project) or 0) >= (before or 0)
        if victim == "a process":
            assert "expected it to train to the end, got SIGKILL; run the same command to resume" in start.output
            assert "Traceback" not in start.output
        count = 5 - count if changes else count
        project.set(f"hardware.processes={count}")
    assert not project.processes(5)
    _assert_ends_as_undisturbed(project, expected, same=not changes)


@pytest.mark.fault(52, "SIGTERM at a random moment to one of two or three processes", rounds=ROADS, rare=True)
def test_one_process_that_is_stopped_stops_all_with_a_checkpoint(
    round_number: int,
    project: Project,
    undisturbed_in: Callable[[int], Undisturbed],
    record_property: Callable[[str, object], None],
) -> None:
    draw, hit = random.Random(7000 + round_number), list[str]()
    record_property("note", hit)
    count = 2 + round_number % 2
    expected = undisturbed_in(count)
    project.set(*SETTINGS, f"hardware.processes={count}")
    for moment in _moments(draw, expected):
        before, start = _newest_step(project), Start(project, "bigstep", "train")
        struck = _hurt(start, before, abs(moment), expected, partial(_stop_one, start, draw))
        assert not project.processes(5)
        assert "Traceback" not in start.output
        if not struck or start.process.returncode == 0:  # it came too late
            break
        hit.append(f"{count} processes")
        assert start.process.returncode == 143, start.output
        assert "stopped by SIGTERM" in start.output
        assert [run.info.status for run in project.runs()] == ["KILLED"]
        assert (_newest_step(project) or 0) >= (before or 0)
    _assert_ends_as_undisturbed(project, expected, same=True)


def _stop_one(start: Start, draw: random.Random) -> None:
    draw.choice(start.below(HELPER)).send_signal(signal.SIGTERM)


def _assert_ends_as_undisturbed(project: Project, expected: Undisturbed, *, same: bool) -> None:
    """Resume to the end; check for one run with each value once, and for the same bytes, or numbers up to rounding."""
    step = _newest_step(project)
    output = project.finish("train")
    assert step is None or f"resuming from the checkpoint of step {step}, " in output
    (run,) = project.runs()
    assert run.info.status == "FINISHED"
    found = project.end_state()
    assert [(key, step) for key, step, _ in found.metrics] == [(key, step) for key, step, _ in expected.state.metrics]
    assert found == expected.state or not same, output[-3000:]
    for mine, theirs in zip(_rows(project), expected.rows, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-10, abs=1e-10)
