"""Where studies are kept: opened by many at once, torn by kills, and never losing what was whole."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from bigstep.config.params import parse_params
from bigstep.data.store import Store
from bigstep.errors import ProjectError
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.stop_signals import Signals
from bigstep.search import storage
from bigstep.search import trial_queue as ledgers
from bigstep.search.patience import patiently
from bigstep.search.request import SearchRequest
from bigstep.search.storage import absolute_address, open_storage, open_study
from bigstep.search.studies import storage_address, study_address
from bigstep.search.trial_queue import TrialQueue, counts_toward_budget
from bigstep.search.workers.worker import Worker
from postgres import postgres
from waiting import Clock

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
WORKER = Path(__file__).with_name("studying.py")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as address:
        yield address


def _worker(address: str, budget: int, *modes: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(WORKER), address, str(budget), *modes]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, **pipes)


def _start_at_once(address: str, budget: int) -> list["subprocess.Popen[str]"]:
    """Start four workers that have imported everything, so that they meet in the storage."""
    workers = [_worker(address, budget, "wait") for _ in range(4)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    return workers


def _finish(workers: list["subprocess.Popen[str]"]) -> int:
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), "\n".join(outputs)[-3000:]
    return sum(int(output.split()[-1]) for output in outputs)


def _study(address: str) -> optuna.Study:
    return open_study(open_storage(address), "study", ["minimize"])


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_four_workers_that_start_on_nothing_share_a_budget(kind: str, tmp_path: Path) -> None:
    address = str(tmp_path / "a" / "study.journal") if kind == "journal" else f"sqlite:///{tmp_path / 'study.db'}"
    assert _finish(_start_at_once(address, 24)) == 24
    states = [trial.state for trial in _study(address).get_trials()]
    assert states.count(TrialState.COMPLETE) == 24
    assert TrialState.RUNNING not in states


def test_four_workers_on_postgresql_do_two_hundred_trials(server: str) -> None:
    assert _finish(_start_at_once(server, 200)) == 200
    study = _study(server)
    trials = study.get_trials()
    study._storage.remove_session()
    study._storage._backend.engine.dispose()
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 200
    assert not [trial for trial in trials if not trial.state.is_finished()]
    assert [trial.number for trial in trials] == list(range(len(trials)))


def test_a_journal_torn_at_any_byte_of_its_last_line_loses_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = _study(str(path))
    for _ in range(3):
        study.tell(study.ask(), 1.0)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for cut in range(1, len(lines[-1])):
        path.write_bytes(content[:-cut])
        found = _study(str(path))
        assert len(found.trials) == 3
        assert [trial.state for trial in found.trials[:2]] == [TrialState.COMPLETE] * 2
        found.ask()
        assert len(_study(str(path)).trials) == 4


def test_a_torn_line_that_something_wrote_on_after_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = _study(str(path))
    study.tell(study.ask(), 1.0)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:9] + lines[-1])
    assert [trial.value for trial in _study(str(path)).trials] == [1.0]
    assert path.with_name("study.journal.torn").exists()


def test_the_lock_of_a_killed_holder_costs_no_waiting(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    _study(str(path))
    code = (
        "import sys; from pathlib import Path; from bigstep.search.storage import RepairingLock; "
        "RepairingLock(Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
        holder.wait()
    begun = time.monotonic()
    _study(str(path)).ask()
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("postgresql://me:hidden@127.0.0.1:1/study", "search.storage: expected an answer from postgresql"),
        ("nosuch://me:hidden@x/y", "search.storage: expected an answer from nosuch"),
        ("{tmp}/text.journal", "search.storage: expected a journal of Optuna, got "),
    ],
)
def test_what_is_no_storage_is_one_line_without_a_password(
    address: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "START_SECONDS", 0.0)  # to wait for a database that is starting
    (tmp_path / "text.journal").write_text("hello\nworld\n", encoding="utf-8")
    with pytest.raises(ProjectError, match=text) as caught:
        open_storage(address.format(tmp=tmp_path))
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "text.journal").read_text(encoding="utf-8") == "hello\nworld\n"


def test_a_study_keeps_its_directions(tmp_path: Path) -> None:
    _study(str(tmp_path / "s.journal"))
    with pytest.raises(ProjectError, match="study study: expected directions maximize, got minimize"):
        open_study(open_storage(str(tmp_path / "s.journal")), "study", ["maximize"])


def test_a_killed_workers_trial_is_retried_once_and_the_budget_holds(tmp_path: Path) -> None:
    address = str(tmp_path / "study.journal")
    worker = _worker(address, 3, "hold")
    assert worker.stdout is not None
    assert worker.stdout.readline() == "took 0\n"
    worker.kill()
    worker.communicate()
    first = _study(address).trials[0]
    assert _finish([_worker(address, 3)]) == 3
    trials = _study(address).get_trials()
    assert trials[0].state == TrialState.FAIL
    again = [trial for trial in trials if trial.user_attrs.get("origin") == 0]
    assert [trial.params for trial in again] == [first.params]
    assert len(counts_toward_budget(trials)) == 3


def test_a_stopped_worker_is_given_up_by_its_signs_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 29 and 30: as on another machine, of whose processes nothing is known."""
    address = str(tmp_path / "study.journal")
    monkeypatch.setattr(ledgers, "is_alive", dict[str, bool]().get)
    worker = _worker(address, 1, "hold")
    assert worker.stdout is not None
    worker.stdout.readline()
    os.kill(worker.pid, signal.SIGSTOP)
    clock = Clock()
    ledger = TrialQueue(_study(address), 1, 10, clock)
    assert ledger.reclaim_dead() == []
    for hours in (1, -1):
        monkeypatch.setattr(time, "time", lambda hours=hours: 1.7e9 + 3600 * hours)
        assert ledger.reclaim_dead() == []
    clock.now += ledgers.PATIENCE
    assert ledger.reclaim_dead() == []
    clock.now += 1.0
    assert ledger.reclaim_dead() == [0]
    assert ledger.reclaim_dead() == []
    mine = ledger.take(None)
    assert mine is not None
    ledger.study.tell(mine, 0.5)
    os.kill(worker.pid, signal.SIGCONT)
    output = worker.communicate(timeout=60)[0]
    assert "Cannot tell a FAIL trial" in output or "already finished" in output, output[-500:]
    assert [trial.value for trial in ledger.trials() if trial.state == TrialState.COMPLETE] == [0.5]


def test_a_relative_database_lies_in_the_project_wherever_a_command_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers run in the project's folder."""
    (tmp_path / "a folder").mkdir()
    monkeypatch.chdir(tmp_path / "a folder")
    address = study_address(ProjectPaths(tmp_path), parse_params({"search": {"storage": "sqlite:///study.db?timeout=9"}}))
    assert address == storage_address(ProjectPaths(tmp_path), "sqlite:///study.db?timeout=9")
    assert address.endswith("?timeout=9")
    _study(address)
    assert [path.name for path in tmp_path.rglob("*.db")] == ["study.db"]
    assert (tmp_path / "study.db").exists()
    for same in ("sqlite://", "sqlite:///:memory:", "sqlite:////a/study.db", "postgresql://me:secret@host/study", "://x"):
        assert absolute_address(same, tmp_path) == same


def test_a_value_that_a_database_refuses_is_no_outage_and_is_retried_once(server: str, digits: Store, tmp_path: Path) -> None:
    """PostgreSQL's column of steps has 32 bits."""
    request = SearchRequest(str(tmp_path), str(digits.paths.root), {}, server, "", "e", "", "", "", None, math.inf)
    worker, clock = Worker(request, Signals()), Clock()
    for _ in range(2):
        trial = worker.first.take(worker._sampler)
        assert trial is not None
        worker.space.suggest(trial)
        too_far = partial(trial.report, 0.5, 2**31)
        with pytest.raises(ProjectError, match="integer out of range; let its user write there, or choose another storage"):
            patiently(too_far, server, clock=clock, sleep=clock.sleep)
        with pytest.raises(ProjectError, match="integer out of range") as caught:
            worker._hold(worker.first, trial, too_far)
        assert "secret" not in str(caught.value)
    assert clock.now == 100.0, "it waited"
    assert [trial.state for trial in worker.first.trials()] == [TrialState.FAIL] * 2
    for ledger in (worker.first, worker.again):
        ledger.study._storage.remove_session()
        ledger.study._storage._backend.engine.dispose()
