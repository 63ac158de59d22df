"""The MLflow run of a stage's attempt."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from bigstep.config.data import short_source
from bigstep.config.params import Params
from bigstep.project.attempts import note_run, read_attempt
from bigstep.runs.tracked_run import deliver_others, tracked_run
from bigstep.runtime.device import has_spare_core
from bigstep.stages.stage_runner import Stage
from bigstep.tracking.database import tracking_uri
from bigstep.tracking.delivery import Delivery
from bigstep.tracking.delivery_process import ProcessDelivery
from bigstep.tracking.given_run import given_run, pointing_run
from bigstep.tracking.mlflow_tracker import git_tags
from bigstep.tracking.spool import SpoolReader
from bigstep.tracking.spool_delivery import SpoolDelivery
from bigstep.tracking.spool_tracker import SpoolTracker

__all__ = ["run_title", "stage_run"]


def run_title(params: Params) -> str:
    """Name a run by what distinguishes it: model, effective batch size, learning rate, and the seed if it is not 0."""
    train, name = params.train, short_source(params.model.name)
    seed = f", seed {train.seed}" if train.seed else ""
    return f"{name}, B {params.batch.effective_batch_size}, lr {train.learning_rate:g}{seed}"


@contextmanager
def stage_run(stage: Stage, experiment: str) -> Iterator[SpoolTracker]:
    """Track the run of the stage's attempt, or that of ``mlflow run`` if its experiment was named.

    The block starts at once: importing MLflow and opening its store take seconds, and are done beside it.
    """
    root, attempt = stage.project.root, read_attempt(stage.project.attempts, stage.key)
    assert attempt is not None
    name = f"{stage.key}.{attempt.number}"
    folder, given, pointing = stage.project.spools / name, given_run(experiment), pointing_run(experiment)
    tags = {**git_tags(root), "bigstep.attempt": name, "bigstep.stage": stage.name}
    if given is None and not (folder / "journal.jsonl").exists():  # a name that a person gives later stays
        tags["mlflow.runName"] = run_title(stage.params)
    with tracked_run(
        folder,
        tracking_uri(root),
        experiment,
        params=stage.flat,
        tags=tags,
        given=given,
        wait_seconds=0,
        delivery=_delivery(stage),
    ) as tracked:
        if pointing is not None:
            tracked.tracker.point_from(pointing)
        yield tracked.tracker
    note_run(stage.project.attempts, stage.key, tracked.run_id())
    if tracked.delivered:
        deliver_others(stage.project.spools, folder)
        if stage.name == "evaluate":
            shutil.rmtree(folder / "files", ignore_errors=True)


def _delivery(stage: Stage) -> Callable[[SpoolReader], Delivery]:
    if stage.delivery is not None:
        early = stage.delivery.expects_model and has_spare_core(stage.params)
        return partial(ProcessDelivery, process=stage.delivery, imports_early=early)
    return partial(SpoolDelivery, expects_model=stage.name == "train")
