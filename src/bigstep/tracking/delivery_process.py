"""The delivery of a spool in a process of its own, which imports MLflow on another core while this one imports torch."""

import json
import logging
import subprocess
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, final

from bigstep.runtime.child_process import die_with_parent, end_module, read_answer, start_module
from bigstep.tracking import courier
from bigstep.tracking.delivery import Deliverer
from bigstep.tracking.spool import SpoolReader

__all__ = ["DeliveryProcess", "ProcessDelivery", "start_delivery"]

STALL_SECONDS = 630.0  # without an answer; the process itself gives up before


@final
class DeliveryProcess:
    """A process that imports what delivers a spool, and then waits for one."""

    def __init__(self, *, expects_model: bool) -> None:
        """Start the process.

        Args:
            expects_model: whether a model will be logged.
        """
        self.expects_model = expects_model
        # it ends with this process, whatever ends it
        self._process = start_module(courier.__name__, stdout=subprocess.PIPE, preexec_fn=die_with_parent)
        self._answers: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._listener = threading.Thread(target=self._listen, name="bigstep-answers", daemon=True)
        self._listener.start()

    def write(self, **values: object) -> None:
        """Send a line; nothing happens if the process has ended."""
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # it has ended, or was closed here
            self._process.stdin.write(json.dumps(values) + "\n")
            self._process.stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """Wait for an answer; None if the process has ended, or gives none for ``seconds``."""
        with suppress(Empty):
            answer = self._answers.get(timeout=seconds)
            if answer is None:
                self._answers.put(None)  # for the next one who asks
            return answer
        return None

    def close(self) -> None:
        """End the process."""
        end_module(self._process, self._listener)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = read_answer(line)
            if "log" in answer:
                logging.getLogger(answer["logger"]).log(answer["level"], "%s", answer["log"])
            elif "done" in answer:
                self._answers.put(answer)
        self._answers.put(None)


def start_delivery(*, expects_model: bool) -> DeliveryProcess | None:
    """Start a :class:`DeliveryProcess`; None where the system starts no process: a thread delivers then."""
    try:
        return DeliveryProcess(expects_model=expects_model)
    except OSError:
        return None


@final
class ProcessDelivery:
    """The delivery of one spool by a :class:`DeliveryProcess`, and by a thread of this process if that one has ended."""

    def __init__(self, spool: SpoolReader, process: Deliverer, *, imports_early: bool = False) -> None:
        """Deliver ``spool`` by ``process``.

        Args:
            spool: what to deliver.
            process: that delivers.
            imports_early: whether it imports what a model's export needs beforehand, torch first of all. That takes seconds,
                by about which it slows down a training that uses all cores.
        """
        self.problem: str | None = None
        self._spool, self._process = spool, process
        self._imports_early = imports_early

    def start(self, wait_seconds: float = 0.0) -> None:
        """Start delivering; nothing is waited for."""
        del wait_seconds
        self._process.write(folder=str(self._spool.folder.resolve()), expects_model=self._imports_early)

    def wake(self) -> None:
        """Deliver what was just logged at once, while this process works on."""
        self._process.write(patience=None)

    def flush(self, patience: float = 20.0) -> bool:
        """Deliver everything; False where nothing could be delivered for ``patience`` seconds."""
        self._process.write(patience=patience)
        answer = self._process.answer(STALL_SECONDS)
        if answer is None:
            return self._flush_here(patience)
        self.problem = answer["problem"]
        return bool(answer["done"])

    def _flush_here(self, patience: float) -> bool:
        from bigstep.tracking.spool_delivery import SpoolDelivery

        self._process.close()  # two must not deliver the same spool
        delivery = SpoolDelivery(self._spool)
        delivery.start()
        done = delivery.flush(patience)
        self.problem = delivery.problem
        return done
