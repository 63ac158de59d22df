"""What becomes of a search whose workers are killed, or end before they read what to do."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from bigstep.config.params import parse_params
from bigstep.search.request import SearchRequest
from bigstep.search.trial_queue import TrialQueue
from bigstep.search.workers import supervisor
from bigstep.search.workers.supervisor import watch_workers

KILLED = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
ENDED = "import sys; sys.stdin.read()"
FAILED = "raise SystemExit('no such storage')"


def _watch(state: Path, monkeypatch: pytest.MonkeyPatch, *programs: str, note: str = "") -> int:
    """Run workers that are these programs, the last one again and again."""
    left = list(programs)

    def start(module: str, **options: Any) -> "subprocess.Popen[str]":
        del module
        code = left.pop(0) if len(left) > 1 else left[0]
        return subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, text=True, **options)

    monkeypatch.setattr(supervisor, "start_module", start)
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.05)
    ledgers = tuple(TrialQueue(optuna.create_study(), 1, 10) for _ in range(2))
    content = {"model": {"name": "custom/model/net.py:Net", "options": {"note": note}}}
    request = SearchRequest(os.fspath(state), "", content, "", "", "e", "", "", "", None, math.inf)
    return watch_workers(request, parse_params({}), ledgers, state, 2 if len(programs) > 1 else 1)  # type: ignore[arg-type]


def test_a_worker_that_is_killed_again_and_again_is_named_and_the_others_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _watch(tmp_path, monkeypatch, ENDED, KILLED) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("worker 1 was killed (SIGKILL); restarting it") == 2
    assert "worker 1 was killed (SIGKILL) 3 times in a row within 20 s of its start; it is not restarted" in printed


def test_a_search_whose_only_worker_is_killed_again_and_again_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _watch(tmp_path, monkeypatch, KILLED) == 1
    assert "it is not restarted" in " ".join(capsys.readouterr().out.split())


def test_a_worker_that_ends_before_it_reads_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _watch(tmp_path, monkeypatch, FAILED, note="x" * 2**20) == 1
    assert "worker 0 failed: no such storage" in " ".join(capsys.readouterr().out.split())
