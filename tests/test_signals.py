import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigstep.runtime.stop_signals import Signals, StopRequestedError

CODE = """
import sys, time
from bigstep.runtime.stop_signals import Signals, StopRequestedError
signals = Signals()
try:
    with signals.watched(), signals.deferred():
        print("ready", flush=True)
        end = time.monotonic() + float(sys.argv[1])
        while time.monotonic() < end:
            time.sleep(0.01)
            if sys.argv[2] == "look":
                signals.raise_if_received()
except StopRequestedError as stop:
    raise SystemExit(stop.exit_code)
"""


def _start(seconds: float, look: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", CODE, str(seconds), look], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_ends_at_the_next_safe_point(number: signal.Signals, code: int) -> None:
    process = _start(30, "look")
    process.send_signal(number)
    assert process.wait(5) == code


def test_a_second_signal_ends_at_once_and_the_same_one_passed_on_is_no_second() -> None:
    process = _start(30, "never")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.8)
    assert process.poll() is None
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 143
    assert time.monotonic() - started < 1


def test_outside_of_a_step_the_signal_ends_the_work_where_it_is() -> None:
    signals = Signals()
    with pytest.raises(StopRequestedError) as caught, signals.watched():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_stage_ends_with_the_dvc_that_started_it(tmp_path: Path) -> None:
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, sys.argv[1]]); print(p.pid, flush=True); p.wait()"
    script = tmp_path / "stage.py"
    script.write_text(
        "import time\nfrom bigstep.runtime.parent_watchdog import exit_with_parent\n"
        "from bigstep.runtime.stop_signals import Signals\n"
        "signals = Signals()\nwith signals.watched():\n    exit_with_parent(signals)\n    time.sleep(60)\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "DVC_STAGE": "train", "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.stdout.close()
    time.sleep(2)
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(child)


def _runs(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
