"""A process that delivers a run's spool to MLflow: importing MLflow takes seconds, and needs no other core than its own.

It reads lines of JSON from its standard input and answers with such lines. When the input ends, so does the process: the one
that it delivers for has ended, and the next start sends the rest.
"""

import json
import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO, final

from bigstep.runtime.environment import guard_libraries

__all__ = ["main"]


def main() -> None:
    """Import what a delivery needs, then deliver the spool that is named, until the input ends."""
    guard_libraries()
    for number in (signal.SIGINT, signal.SIGTERM):  # both reach a whole group: the process that is delivered for decides
        signal.signal(number, signal.SIG_IGN)
    answers = _Answers()
    lines: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_read_input, args=(lines,), name="bigstep-lifeline", daemon=True).start()
    _send_log(answers)
    _import_early()

    from bigstep.tracking.spool import SpoolReader
    from bigstep.tracking.spool_delivery import SpoolDelivery

    given = lines.get()
    delivery = SpoolDelivery(SpoolReader(Path(given["folder"])), at_once=True, expects_model=given["expects_model"])
    delivery.start()
    while True:
        patience = lines.get()["patience"]
        if patience is None:
            delivery.wake()
        else:
            answers.write(done=delivery.flush(patience), problem=delivery.problem)


def _import_early() -> None:
    """Import what takes seconds; whatever is wrong shows when it is used."""
    with suppress(Exception):
        import mlflow
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 # of the default store; lazily imported by MLflow


@final
class _Answers:
    def __init__(self) -> None:
        """Keep the standard output for answers; what libraries print goes to the standard error."""
        self._file: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._lock = threading.Lock()
        os.dup2(2, 1)

    def write(self, **values: Any) -> None:
        with self._lock, suppress(OSError):  # the process that is delivered for has ended
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()


@final
class _AnswerHandler(logging.Handler):
    def __init__(self, answers: _Answers) -> None:
        super().__init__()
        self._answers = answers

    def emit(self, record: logging.LogRecord) -> None:
        self._answers.write(log=record.getMessage(), logger=record.name, level=record.levelno)


def _send_log(answers: _Answers) -> None:
    logger = logging.getLogger("bigstep")
    logger.setLevel(logging.INFO)
    logger.addHandler(_AnswerHandler(answers))
    logger.propagate = False


def _read_input(lines: "SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        lines.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()
