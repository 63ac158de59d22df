"""Start the processes that help this one to train, and end with them.

This process has number 0: it alone has the console, MLflow, checkpoints and outputs, and decides when the training stops. The
helpers hold nothing that is not in the checkpoint, so they are ended without notice.
"""

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, final

from bigstep.console import console
from bigstep.errors import LostProcessError, OtherProcessError, OutOfMemoryError, ProjectError, UserError
from bigstep.runs import helper as helper_module
from bigstep.runs.helper import HelperRequest
from bigstep.runs.low_memory_marker import mark_path
from bigstep.runs.training_run import TrainingJob
from bigstep.runtime.child_process import die_with_parent, end_module, read_answer, start_module
from bigstep.runtime.device import choose_device, count_processes
from bigstep.runtime.process_group import is_lost_connection, join_group, leave_group
from bigstep.runtime.stop_signals import Signals

__all__ = ["helper_request", "training_group"]

LAST_WORDS_SECONDS = 5.0  # that a process which failed may take to say why
SECTIONS = ("model", "train", "hardware", "tracking")  # of params.yaml, that a training reads


def helper_request(job: TrainingJob, weights: Path | None) -> HelperRequest:
    """Describe a training for its helpers; ``weights`` is the file of model.weights."""
    params = job.params
    sections = {name: getattr(params, name).model_dump(mode="json") for name in SECTIONS}
    return HelperRequest(
        rank=0,
        count=count_processes(params),
        folder="",
        sections=sections,
        batch=asdict(job.batch),
        prepared=str(job.store.paths.root.resolve()),
        weights=None if weights is None else str(weights.resolve()),
        checkpoints=str(job.checkpoints.folder.resolve()),
        marker=str(job.marker.resolve()),
        step_bytes=job.step_bytes,
    )


@contextmanager
def training_group(request: HelperRequest, signals: Signals) -> Iterator[Any]:
    """Start the helpers, and give the group of torch.distributed that they form with this process; None without helpers.

    Raises:
        ProjectError: a helper was killed.
        UserError: a helper failed, with its line and exit code.
    """
    if request.count == 1:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="bigstep-") as folder:
        helpers = _Helpers(replace(request, folder=folder), signals)
        try:
            helpers.wait_until_ready()
            device = choose_device(request.params.hardware)
            group = helpers.while_they_live(partial(join_group, Path(folder), 0, request.count, device))
            console.print(f"{request.count} processes share each effective batch")
            try:
                yield group
            finally:
                leave_group()
        except (OtherProcessError, LostProcessError, RuntimeError) as error:  # else this process ends the helpers
            is_theirs = not isinstance(error, RuntimeError) or is_lost_connection(error)
            problem = helpers.problem() if is_theirs else None
            if problem is None:
                raise
            raise problem from None
        finally:
            helpers.end()


@final
class _Helper:
    def __init__(self, request: HelperRequest, signals: Signals) -> None:
        self.rank = request.rank
        self.mark = mark_path(Path(request.marker), request.rank)
        self.is_ready = threading.Event()
        self.error: UserError | None = None
        # they end with this process, whatever ends it
        self.process: subprocess.Popen[str] = start_module(
            helper_module.__name__, stdout=subprocess.PIPE, preexec_fn=die_with_parent
        )
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(asdict(request)) + "\n")
            self.process.stdin.flush()  # it stays open: its end is that of this process
        self._signals = signals
        self._listener = threading.Thread(target=self._listen, name=f"bigstep-helper-{self.rank}", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            answer = read_answer(line)
            kind = answer.get("kind")
            if kind == "ready":
                self.is_ready.set()
            elif kind == "stop" and self._signals.received is None:
                os.kill(os.getpid(), signal.SIGTERM)
            elif kind == "error":
                self.error = (OutOfMemoryError if answer["memory"] else UserError)(answer["text"])
                self.error.exit_code = answer["code"]
        self.is_ready.set()  # it has ended: there is nothing to wait for

    def problem(self) -> UserError | None:
        """Return what ended the process, if it has ended otherwise than well."""
        code = self.process.poll()
        if code is None or code == 0:
            return None
        self._listener.join(1.0)
        if self.error is not None:
            return self.error
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return ProjectError(f"process {self.rank}: expected it to train to the end, got {how}; run the same command to resume")

    def end(self) -> None:
        """Close its input, which ends it wherever it is: it may wait for a step that is not taken."""
        lives = self.process.poll() is None
        end_module(self.process, self._listener)
        if lives:
            self.mark.unlink(missing_ok=True)  # it has not died of too little memory


@final
class _Helpers:
    def __init__(self, request: HelperRequest, signals: Signals) -> None:
        self._all: list[_Helper] = []
        try:
            for rank in range(1, request.count):
                self._all.append(_Helper(replace(request, rank=rank), signals))
        except BaseException:
            self.end()
            raise

    def wait_until_ready(self) -> None:
        for helper in self._all:
            while not helper.is_ready.wait(0.5):
                pass
            helper.is_ready.clear()
            if (problem := helper.problem()) is not None:
                raise problem

    def while_they_live(self, function: Callable[[], Any]) -> Any:
        """Call a function that waits for the helpers, in a thread that is left behind where one of them ends instead."""
        answer: Future[Any] = Future()

        def call() -> None:
            try:
                answer.set_result(function())
            except BaseException as error:  # noqa: BLE001 # raised by the thread that waits
                answer.set_exception(error)

        threading.Thread(target=call, name="bigstep-meeting", daemon=True).start()
        while not wait([answer], timeout=0.05).done:
            if any(helper.process.poll() is not None for helper in self._all):
                raise OtherProcessError("a process ended before the training started")
        return answer.result()

    def problem(self) -> UserError | None:
        """Return what ended a helper, if one has ended: its own line, else that it was killed, else its exit code."""
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while not any(helper.process.poll() for helper in self._all) and time.monotonic() < deadline:
            time.sleep(0.05)
        failed = sorted((helper for helper in self._all if helper.process.poll()), key=_blame)
        return failed[0].problem() if failed else None

    def end(self) -> None:
        for helper in self._all:
            helper.end()


def _blame(helper: _Helper) -> tuple[bool, int]:
    return helper.error is None, int(helper.process.returncode)
