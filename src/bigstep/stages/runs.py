"""The MLflow run of a stage: found or begun, and ended truthfully."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bigstep.stages.attempts import begin_stage
from bigstep.stages.entry import Stage
from bigstep.tracking.base import Metric
from bigstep.tracking.database import tracking_uri
from bigstep.tracking.mlflow_tracker import MlflowTracker, git_tags, open_run

__all__ = ["produced_by", "stage_run", "timed"]


@contextmanager
def stage_run(stage: Stage, experiment: str) -> Iterator[MlflowTracker]:
    """Open the run of the stage's attempt, or that of ``mlflow run``; it ends FINISHED, FAILED or KILLED with the block."""
    attempt = begin_stage(stage.project.attempts, stage.key, stage.name, os.environ.get("MLFLOW_RUN_ID"))
    tracker = open_run(tracking_uri(stage.project.root), run_id=attempt.run_id, experiment=experiment)
    begin_stage(stage.project.attempts, stage.key, stage.name, tracker.run_id)
    try:
        tracker.log_params(stage.flat)
        tracker.set_tags({**git_tags(stage.project.root), "bigstep.attempt": f"{stage.key}.{attempt.number}"})
        yield tracker
    except KeyboardInterrupt:
        tracker.finish("KILLED")
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish("FINISHED")


def produced_by(tracker: MlflowTracker, weights_sha256: str) -> str | None:
    """Give the latest run that trained these weights: this one, or an earlier one whose model DVC took from its cache."""
    if tracker.client.get_run(tracker.run_id).data.tags.get("bigstep.weights_sha256") == weights_sha256:
        return tracker.run_id
    experiments = [item.experiment_id for item in tracker.client.search_experiments()]
    query = f"tags.`bigstep.weights_sha256` = '{weights_sha256}'"
    found = tracker.client.search_runs(experiments, query, order_by=["attributes.start_time DESC"], max_results=1)
    return str(found[0].info.run_id) if found else None


def timed(values: Mapping[str, float], step: int) -> list[Metric]:
    """Give values as metrics of this moment."""
    now = int(time.time() * 1000)
    return [Metric(key, value, step, now) for key, value in values.items()]
