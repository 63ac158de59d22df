"""From a spool to MLflow: in order, in the background, without delaying the training.

A thread delivers what is light while the stage works; models wait until the stage has ended, unless the thread is that of
another process. If the server is down, slow, locked or full, it is retried at longer and longer intervals; what could not be
sent stays in the spool for the next start.
"""

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from bigstep.errors import UserError
from bigstep.runtime.import_lock import import_lock
from bigstep.tracking.database import without_login
from bigstep.tracking.mlflow_tracker import MODEL_URI_TAG, MlflowTracker, open_run
from bigstep.tracking.model_registry import describe_version, log_scores, produced_by, promote
from bigstep.tracking.spool import Sent, SpoolReader
from bigstep.tracking.tracker import CHAMPION_TAG, DatasetRecord, Metric, ModelProgram, ModelRecord

__all__ = ["SpoolDelivery", "deliver"]

log = logging.getLogger(__name__)
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "INVALID_STATE")  # of MLflow; trying again is no use
DEFERRED_ENTRIES = ("model", "promote", "finish")  # wait until the stage has ended
ABOUT_OTHERS = {"continues": MlflowTracker.take_over, "pointer": MlflowTracker.point_from}
INTERVAL, LONGEST, LONGEST_DRAINING = 1.0, 60.0, 5.0  # seconds between two tries
PATIENCE, STALL_TIMEOUT_SECONDS = 20.0, 600.0  # seconds without anything delivered: after an error, and without one
USER_PATIENCE = 2.0  # after an error that waiting does not mend


def deliver(tracker: MlflowTracker, entry: dict[str, Any], folder: Path) -> None:  # one branch a kind
    """Send one entry of the spool in ``folder``; sending it twice changes nothing."""
    kind = entry["entry"]
    if kind == "params":
        tracker.log_params(entry["values"])
    elif kind == "metrics":
        tracker.log_metrics([Metric(key, value, step, timestamp) for key, value, step, timestamp in entry["rows"]])
    elif kind == "tags":
        tracker.set_tags(entry["values"])
    elif kind == "dataset":
        tracker.log_dataset(DatasetRecord(**entry["values"]))
    elif kind == "file":
        tracker.log_file(folder / entry["path"], entry["folder"])
    elif kind == "model":
        _deliver_model(tracker, entry, folder)
    elif kind == "promote":
        _promote(tracker, entry["name"], entry["weights_sha256"], entry.get("card", ""))
    elif kind in ABOUT_OTHERS:
        ABOUT_OTHERS[kind](tracker, entry["run_id"])
    elif kind == "finish":
        tracker.finish(entry["status"])


def preload_model() -> None:
    """Import what the delivery of a model needs, torch first of all; a run without one is delivered without torch."""
    with import_lock:
        from bigstep.models.torch_internals import preload_export
        from bigstep.tracking import exporting  # noqa: F401

        preload_export()


def _deliver_model(tracker: MlflowTracker, entry: dict[str, Any], folder: Path) -> None:
    known = tracker.client.get_run(tracker.run_id).data.tags
    weights = "bigstep.weights_sha256"
    if MODEL_URI_TAG in known and known.get(weights) == entry["tags"].get(weights):
        return
    if not (folder / entry["path"]).exists():
        return  # sent long ago, and deleted since
    given, record = entry.get("program"), ModelRecord(folder, entry["example"], tuple(entry["classes"]), entry["tags"])
    if given is not None:
        shape = tuple(given["sample_shape"])
        tracker.log_program(record, ModelProgram(**{**given, "path": folder / given["path"], "sample_shape": shape}))
        return
    with import_lock:
        from bigstep.tracking.exporting import export_model
    with tempfile.TemporaryDirectory(prefix="bigstep-export-") as scratch:
        tracker.log_program(record, export_model(folder / entry["path"], entry["example"], Path(scratch)))


def _promote(tracker: MlflowTracker, name: str, weights_sha256: str, card: str) -> None:
    trained_in = produced_by(tracker.client, tracker.run_id, weights_sha256)
    if trained_in is None:
        return
    if trained_in != tracker.run_id:
        tracker.set_tags({"bigstep.trained_in": trained_in})
    log_scores(tracker.client, tracker.run_id, trained_in)
    metric = tracker.client.get_run(trained_in).data.tags.get(CHAMPION_TAG, "val_loss")
    promotion = promote(tracker.client, trained_in, name, metric=metric, smaller_is_better=True)
    if promotion is not None:
        describe_version(tracker.client, promotion, card)
        role = "champion" if promotion.is_champion else "challenger"
        log.info("MLflow model %s version %s is %s: %s", promotion.name, promotion.version, role, promotion.reason)
        tracker.set_tags({"bigstep.model_version": promotion.version, "bigstep.model_role": role})


@final
class SpoolDelivery:
    """Delivers one spool on its own thread: light entries while the stage works, all of them in :meth:`drain`."""

    def __init__(
        self,
        spool: SpoolReader,
        *,
        expects_model: bool = False,
        at_once: bool = False,
        clock: Callable[[], float] = time.monotonic,
        interval: float = INTERVAL,
    ) -> None:
        """Deliver ``spool``, which has a run, to it, or to a new one.

        Args:
            spool: what to deliver.
            expects_model: whether a model will come, so that what its export imports is imported while nothing waits for it.
            at_once: deliver models too while the stage works.
            clock: seconds, by which :meth:`flush` loses patience.
            interval: seconds between two tries.
        """
        self.spool = spool
        self._clock, self._interval = clock, interval
        self.problem: str | None = None
        self.waits_for_user = False
        """Whether the problem is one that the user has to mend."""
        self._tracker: MlflowTracker | None = None
        self._draining = self._warned = False
        self._at_once = at_once
        self._expects_model = expects_model
        self._wake, self._told, self._done = threading.Event(), threading.Event(), threading.Event()
        self._moved = clock()
        self._thread = threading.Thread(target=self._work, name="bigstep-courier", daemon=True)

    def start(self, wait_seconds: float = 0.0) -> None:
        """Start delivering; waits at most ``wait_seconds`` for the first round."""
        self._thread.start()
        self._told.wait(wait_seconds)

    def wake(self) -> None:
        """Look for new entries now, not only when the interval has passed."""
        self._wake.set()

    def flush(self, patience: float = PATIENCE) -> bool:
        """Deliver everything; False where nothing could be delivered for ``patience`` seconds: the rest stays in the spool."""
        self._moved, self._draining = self._clock(), True
        self._wake.set()
        while not self._done.wait(0.1):
            if self._clock() - self._moved > self._limit(patience):
                return False
        return True

    def _limit(self, patience: float) -> float:
        if self.problem is None:
            return STALL_TIMEOUT_SECONDS
        return min(patience, USER_PATIENCE) if self.waits_for_user else patience

    def _work(self) -> None:
        pause = self._interval
        while not (self._deliver() and self._draining and self.spool.is_delivered()):
            self._told.set()
            if self.problem is None:
                pause, self._warned = self._interval, False
                self._preload()
            else:
                self._warn()
                pause = min(2 * pause, LONGEST_DRAINING if self._draining else LONGEST)
            self._wake.wait(pause)
            self._wake.clear()
        self._done.set()

    def _preload(self) -> None:
        if self._expects_model and not self._draining:
            self._expects_model = False
            with contextlib.suppress(Exception):  # whatever is wrong shows when the model is delivered
                preload_model()

    def _warn(self) -> None:
        if not self._warned:
            log.warning("%s; training continues, metrics are queued on disk", self.problem)
        self._warned = True

    def _deliver(self) -> bool:
        """Deliver up to the end, or up to something heavy; False after an error, which is kept in ``problem``."""
        try:
            if not self.spool.is_delivered():
                tracker = self._open()
                for entry, offset in self.spool.batches(self.spool.sent.offset):
                    if entry["entry"] in DEFERRED_ENTRIES and not (self._draining or self._at_once):
                        break
                    self._deliver_entry(tracker, entry)
                    self.spool.sent = Sent(tracker.run_id, offset)
                    self._moved = self._clock()
        except Exception as error:  # noqa: BLE001 # whatever is wrong with the server, the stage continues
            self._tracker, self.waits_for_user = None, isinstance(error, UserError)
            cause = f"{type(error).__name__}: {without_login(str(error))}".splitlines()[0][:200]
            self.problem = str(error) if self.waits_for_user else f"MLflow is unreachable ({cause})"
            return False
        self.problem = None
        return True

    def _deliver_entry(self, tracker: MlflowTracker, entry: dict[str, Any]) -> None:
        """Deliver one entry; one that MLflow refuses is moved to a separate file, so that it does not block the next ones."""
        try:
            deliver(tracker, entry, self.spool.folder)
        except Exception as error:
            if getattr(error, "error_code", None) not in REFUSALS or not tracker.is_there():
                raise
            self.spool.set_aside(entry, str(error))
            reason = without_login(str(error)).splitlines()[0][:200]
            log.warning("MLflow refused an entry (%s): %s; it is kept in %s", entry["entry"], reason, self.spool.refused)

    def _open(self) -> MlflowTracker:
        """Open the run; if it is not the one used so far, everything is sent again."""
        if self._tracker is None:
            known, origin = self.spool.sent, self.spool.origin
            assert origin is not None
            self._tracker = open_run(origin.uri, run_id=known.run_id, experiment=origin.experiment, key=origin.key)
            if self._tracker.run_id != known.run_id:
                self.spool.sent = Sent(self._tracker.run_id, 0)
        return self._tracker
