"""The name of a process, and whether it can be seen from another PID namespace."""

import subprocess
import sys
import warnings
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from bigstep.runtime import process_identity
from bigstep.runtime.process_identity import is_alive, process_name
from bigstep.search.storage import open_storage, open_study
from bigstep.search.trial_queue import TrialQueue

APART = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def _python(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*APART, sys.executable, *arguments], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


@pytest.fixture
def namespaces() -> None:
    if sys.platform != "linux" or subprocess.run([*APART, "true"], check=False, capture_output=True).returncode:
        warnings.warn("PID namespaces are NOT tested here: unshare is missing or not allowed", stacklevel=1)
        pytest.skip("unshare --pid must be allowed for this test")


def test_a_name_without_a_namespace_is_judged_as_before() -> None:
    assert is_alive(process_name()) is True
    older = process_name().rpartition(" ")[0]
    assert is_alive(older) is True
    host, boot, number, started = older.split(" ")
    assert is_alive(f"{host} {boot} {number} {int(started) + 1}") is False
    assert is_alive(f"elsewhere {boot} {number} {started}") is None


def test_without_proc_a_living_process_lives_and_a_killed_one_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS; a process of the same id and another start may be the one that is meant, after the clock was set."""
    monkeypatch.setattr(process_identity, "PROC", tmp_path / "proc")
    assert is_alive(process_name()) is True
    code = (
        "from pathlib import Path; from bigstep.runtime import process_identity as made; made.PROC = Path('/nothing'); "
        "print(made.process_name(), flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert is_alive(name) is True
        host, boot, number, started, namespace = name.split(" ")
        assert (boot, number, namespace) == ("-", str(process.pid), "-")
        assert is_alive(f"{host} {boot} {number} {float(started) + 3600:.2f} {namespace}") is None
        assert is_alive(f"{host} {boot} {number}  {namespace}") is None, "the name that an earlier version wrote"
        process.kill()
        process.wait()
        assert is_alive(name) is False
    assert is_alive(f"elsewhere {boot} {number} {started} {namespace}") is None


@pytest.mark.usefixtures("namespaces")
def test_a_process_of_another_pid_namespace_cannot_be_judged_from_here_nor_we_from_there() -> None:
    code = "from bigstep.runtime.process_identity import *; print(process_name(), flush=1); print(is_alive(input()), flush=1)"
    with _python("-c", code) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert is_alive(process.stdout.readline().strip()) is None
        process.stdin.write(f"{process_name()}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "None\n"


@pytest.mark.usefixtures("namespaces")
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_trial_of_a_worker_in_another_pid_namespace_is_not_taken_from_it(tmp_path: Path) -> None:
    address = str(tmp_path / "study.journal")
    with _python(str(Path(__file__).with_name("studying.py")), address, "1", "hold") as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "took 0\n"
        ledger = TrialQueue(open_study(open_storage(address), "study", ["minimize"]), 1, 10)
        assert ledger.reclaim_dead() == []
        output = worker.communicate(timeout=60)[0]
    assert output == "count 1\n"
    assert [trial.state for trial in optuna.load_study(study_name="study", storage=open_storage(address)).trials] == [
        TrialState.COMPLETE
    ]
