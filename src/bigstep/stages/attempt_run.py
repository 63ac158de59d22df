"""The MLflow run of a stage's attempt."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from bigstep.project.attempts import note_run, read_attempt
from bigstep.runs.tracked_run import deliver_others, tracked_run
from bigstep.stages.stage_runner import Stage
from bigstep.tracking.database import tracking_uri
from bigstep.tracking.given_run import given_run, pointing_run
from bigstep.tracking.mlflow_tracker import git_tags
from bigstep.tracking.spool import prune_spools
from bigstep.tracking.spool_tracker import SpoolTracker

__all__ = ["stage_run"]


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
    with tracked_run(
        folder,
        tracking_uri(root),
        experiment,
        params=stage.flat,
        tags=tags,
        given=given,
        wait_seconds=0,
        expects_model=stage.name == "train",
    ) as tracked:
        if pointing is not None:
            tracked.tracker.point_from(pointing)
        yield tracked.tracker
    note_run(stage.project.attempts, stage.key, tracked.run_id())
    if tracked.delivered:
        deliver_others(stage.project.spools, folder)
        if stage.name == "evaluate":
            shutil.rmtree(folder / "files", ignore_errors=True)
            prune_spools(stage.project.spools)
