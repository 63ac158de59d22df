"""A process that helps another one to train: it computes its share of each step, and writes nothing.

It reads a request from its standard input and writes lines of JSON to its standard output. When the input ends, so does the
process: the one that it helps has ended.
"""

import json
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.params import Params, parse_params
from bigstep.data.store import Store
from bigstep.errors import DivergedError, ExitCode, LostProcessError, OtherProcessError, OutOfMemoryError, UserError
from bigstep.runs.checkpoint_files import load_latest
from bigstep.runs.marked_batches import open_batches
from bigstep.runtime.device import choose_device
from bigstep.runtime.environment import guard_libraries
from bigstep.runtime.failed_allocation import failed_allocation_line
from bigstep.runtime.process_group import is_lost_connection, join_group, leave_group
from bigstep.training.loop import train_epochs
from bigstep.training.setup import build_training
from bigstep.training.shares import check_same_start
from bigstep.training.snapshot import restore_snapshot
from bigstep.training.validation import is_recalibrated, recalibrate_best

__all__ = ["HelperRequest", "main"]


@dataclass(frozen=True)
class HelperRequest:
    """What a helper trains, as plain values."""

    rank: int
    count: int
    """Of processes."""
    folder: str
    """Where they meet."""
    sections: dict[str, Any]
    """Those of params.yaml that a training reads, with what was chosen."""
    batch: dict[str, Any]
    prepared: str
    weights: str | None
    checkpoints: str
    marker: str
    step_bytes: int

    @property
    def params(self) -> Params:
        """The configuration."""
        return parse_params(self.sections)


def main() -> int:
    """Help until the training has ended, or its first process has."""
    guard_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the process that is helped decides
    answers = _own_output()
    request = HelperRequest(**json.loads(sys.stdin.readline() or "{}"))
    threading.Thread(target=_watch_input, name="bigstep-lifeline", daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: _write(answers, "stop"))
    try:
        params = request.params
        _write(answers, "ready")
        _train(request, params, join_group(Path(request.folder), request.rank, request.count, choose_device(params.hardware)))
        leave_group()
    except (OtherProcessError, LostProcessError):  # the first process finds out which
        return ExitCode.FAILED
    except UserError as error:
        _write(answers, "error", text=str(error), code=int(error.exit_code), memory=isinstance(error, OutOfMemoryError))
        return error.exit_code
    except (RuntimeError, MemoryError) as error:
        line = failed_allocation_line(error)
        if line is not None:
            _write(answers, "error", text=line, code=int(OutOfMemoryError.exit_code), memory=True)
        elif not is_lost_connection(error):  # else another process has ended
            traceback.print_exc()
        return ExitCode.FAILED
    return ExitCode.OK


def _train(request: HelperRequest, params: Params, group: Any) -> None:
    store, batch = Store(Path(request.prepared)), BatchSizes(**request.batch)
    weights = None if request.weights is None else Path(request.weights)
    state = build_training(store, batch, params, weights=weights, group=group)
    found = load_latest(Path(request.checkpoints))
    if found is not None:
        restore_snapshot(state, found[0], micro_batch_size=batch.micro_batch_size)
    check_same_start(state)
    batches = open_batches(store, params, batch, state, Path(request.marker), request.step_bytes)
    try:
        with suppress(DivergedError):  # the process that is helped raises the same
            for _ in train_epochs(state, params.train, store, batches):
                pass
    finally:
        batches.clear()
    if is_recalibrated(params.model) and state.best is not None:
        recalibrate_best(state, store)


def _own_output() -> TextIO:
    """Keep the standard output for answers; what else is printed goes nowhere, since the first process prints the same."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with Path(os.devnull).open("w", encoding="utf-8") as nothing:
        os.dup2(nothing.fileno(), 1)
    return answers


def _write(answers: TextIO, kind: str, **values: Any) -> None:
    with suppress(OSError):  # the process that is helped has ended
        answers.write(json.dumps({"kind": kind, **values}) + "\n")
        answers.flush()


def _watch_input() -> None:
    sys.stdin.read()
    for child in psutil.Process().children(recursive=True):  # that load images
        with suppress(psutil.Error):
            child.kill()
    os._exit(ExitCode.FAILED)


if __name__ == "__main__":
    raise SystemExit(main())
