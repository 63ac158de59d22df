"""An MLflow run: found or started, written through a spool on disk, and ended truthfully."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bigstep.console import console
from bigstep.errors import ProjectError
from bigstep.runtime.process_identity import process_name
from bigstep.runtime.stop_signals import StopRequestedError
from bigstep.tracking.dead_runs import PROCESS
from bigstep.tracking.delivery import Delivery
from bigstep.tracking.spool import Spool, SpoolReader, spool_lock, unfinished_spools
from bigstep.tracking.spool_delivery import SpoolDelivery
from bigstep.tracking.spool_tracker import SpoolTracker
from bigstep.tracking.tracker import Metric

__all__ = ["TrackedRun", "as_metrics_now", "deliver_others", "tracked_run"]

FIRST_ROUND = 15.0  # seconds to wait for a run to start; a slower server is not waited for
LAST_ROUND = 5.0  # seconds, for a stage that has to stop
LOCK_SECONDS = 30.0  # to wait for a process that delivers what an earlier start left; `bigstep status` looks for an instant


@dataclass
class TrackedRun:
    """A run, its tracker, the status it is to end with, and whether MLflow has received everything."""

    tracker: SpoolTracker
    status: str = "FINISHED"
    delivered: bool = False
    run_id: Callable[[], str | None] = lambda: None
    """Returns the run's id, once there is one."""


@contextmanager
def tracked_run(
    folder: Path,
    uri: str,
    experiment: str,
    *,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    given: str | None = None,
    wait_seconds: float = FIRST_ROUND,
    delivery: Callable[[SpoolReader], Delivery] = SpoolDelivery,
) -> Iterator[TrackedRun]:
    """Track a run through the spool in ``folder``; it ends FINISHED, FAILED or KILLED with the block.

    Args:
        folder: of the spool; the run of an earlier start is continued.
        uri: of the tracking store.
        experiment: of a new run.
        params: to note.
        tags: to set.
        given: a run to write to instead of the spool's own.
        wait_seconds: at most, for the run to start. Whatever is logged meanwhile is on disk and arrives when MLflow answers.
        delivery: what sends the spool to MLflow.

    Raises:
        ProjectError: another process writes to this run.
    """
    with _own_spool(folder) as spool:
        spool.begin(uri, experiment)
        courier = delivery(spool)
        tracker = SpoolTracker(spool, courier.wake)
        if given is not None:
            if spool.sent.run_id not in (None, given):
                _end_former(spool, tracker)
            tracker.continue_run(given)
        tracker.log_params(params)
        tracker.set_tags({**tags, PROCESS: process_name()})
        courier.start(wait_seconds)
        tracked = TrackedRun(tracker, run_id=lambda: spool.sent.run_id)
        try:
            yield tracked
        except (KeyboardInterrupt, StopRequestedError):
            tracker.finish("KILLED")
            courier.flush(LAST_ROUND)
            raise
        except BaseException:
            tracker.finish("FAILED")
            _drain(courier)
            raise
        tracker.finish(tracked.status)
        tracked.delivered = _drain(courier)


@contextmanager
def _own_spool(folder: Path) -> Iterator[Spool]:
    """Open the spool in ``folder`` for this process alone; nothing can be written to it after the block."""
    with spool_lock(folder, LOCK_SECONDS) as alone:
        if not alone:
            raise ProjectError(
                f"run {folder.name}: expected no other process to write to it, got one that holds {folder.name}.lock; "
                "wait for it, or stop it"
            )
        with closing(Spool(folder)) as spool:
            yield spool


def _end_former(spool: Spool, tracker: SpoolTracker) -> None:
    """Return the run of a killed `mlflow run` the rest of its history before another run takes it over."""
    last = spool.last()
    if last is not None and last["entry"] != "finish":
        tracker.finish("KILLED")
    courier = SpoolDelivery(spool)
    courier.start()
    courier.flush(LAST_ROUND)


def deliver_others(folder: Path, own: Path | None = None) -> list[str]:
    """Deliver what earlier attempts left in their spools; runs whose process was killed end as KILLED.

    Returns:
        The names of the spools that were delivered.
    """
    done, refused = [], set[tuple[str, str]]()
    for path in unfinished_spools(folder):
        if path == own:
            continue
        with spool_lock(path) as alone:
            if not alone:
                continue
            with closing(Spool(path)) as spool:
                last = spool.last()
                if last is not None and last["entry"] != "finish":
                    SpoolTracker(spool).finish("KILLED")
                if spool.origin is None or (spool.origin.uri, spool.origin.experiment) in refused:
                    continue
                courier = SpoolDelivery(spool)
                courier.start()
                if courier.flush(LAST_ROUND):
                    done.append(path.name)
                elif courier.waits_for_user:
                    refused.add((spool.origin.uri, spool.origin.experiment))
                else:
                    break
    return done


def _drain(courier: Delivery) -> bool:
    if courier.flush():
        return True
    console.print(
        f"{courier.problem or 'MLflow does not answer'}; the history of this run waits on disk, and is sent at the next start, "
        "or by `bigstep doctor --fix`"
    )
    return False


def as_metrics_now(values: Mapping[str, float], step: int) -> list[Metric]:
    """Return values as metrics of this moment."""
    now = int(time.time() * 1000)
    return [Metric(key, value, step, now) for key, value in values.items()]
