import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bigstep.runtime.stop_signals import Signals, StopRequestedError

LOOKS = """
import sys
from bigstep.runtime.stop_signals import Signals, StopRequestedError
signals = Signals()
try:
    with signals.watched(), signals.deferred():
        print("ready", flush=True)
        sys.stdin.readline()
        print("still there", flush=True)
        signals.raise_if_received()
except StopRequestedError as stop:
    raise SystemExit(stop.exit_code)
"""
THREE = """
import signal
from bigstep.runtime.stop_signals import Signals
now = 100.0
signals = Signals(lambda: now)
with signals.watched(), signals.deferred():
    for now in (100.0, 100.1, 100.9):
        signal.raise_signal(signal.SIGTERM)
        print(now, flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_ends_at_the_next_safe_point(number: signal.Signals, code: int) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", LOOKS], text=True, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate("\n", timeout=5)[0] == "still there\n"
    assert process.returncode == code


def test_a_second_signal_ends_at_once_and_the_same_one_passed_on_is_no_second() -> None:
    finished = subprocess.run([sys.executable, "-c", THREE], stdout=subprocess.PIPE, text=True, check=False)
    assert finished.returncode == 143
    assert finished.stdout == "100.0\n100.1\n"


def test_outside_of_a_step_the_signal_ends_the_work_where_it_is() -> None:
    signals = Signals()
    with pytest.raises(StopRequestedError) as caught, signals.watched():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_stop_asked_for_by_time_comes_at_the_next_safe_point() -> None:
    now = 100.0
    signals = Signals(lambda: now)
    signals.stop_after(2.0)
    assert not signals.is_stopping()
    now = 102.0
    signals.raise_if_received()  # no checkpoint was written since
    assert signals.is_stopping()
    with pytest.raises(StopRequestedError, match=r"stopped by hardware\.max_time") as caught:
        signals.raise_if_received()
    assert caught.value.exit_code == 124


def test_a_stage_ends_with_the_dvc_that_started_it(tmp_path: Path) -> None:
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, sys.argv[1]]); print(p.pid, flush=True); p.wait()"
    script = tmp_path / "stage.py"
    script.write_text(
        "import signal, time\nfrom bigstep.runtime.parent_watchdog import exit_with_parent\n"
        "from bigstep.runtime.stop_signals import Signals\n"
        "def sleep(seconds):\n    print('looked', flush=True)\n    time.sleep(seconds / 10)\n"
        "signals = Signals()\nwith signals.watched():\n    exit_with_parent(signals, sleep)\n    signal.pause()\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "DVC_STAGE": "train", "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    assert [parent.stdout.readline() for _ in range(3)] == ["looked\n"] * 3, "with its parent alive it stays"
    parent.kill()
    parent.wait()
    child.wait(10)
    parent.stdout.close()
