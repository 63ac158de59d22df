"""A saved view of MLflow's page of runs: scores and the main parameters as columns, under "Views" and behind a link.

MLflow 3.17 keeps such a view in a tag of the experiment; an older one ignores it.
"""

import json
import logging
import time
from typing import TYPE_CHECKING

from bigstep.tracking.database import open_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["open_viewed_experiment", "saved_view", "viewed_experiments"]

log = logging.getLogger(__name__)

NAME, KEY = "Scores first", "scores"
TAG = f"mlflow.sharedViewState.{KEY}"
OFFERED = "bigstep.view"  # tag of an experiment that got the view once: one that was deleted does not come back
METRICS = ("test_accuracy", "test_macro_f1", "test_mae", "test_r2", "best_val_loss", "training_seconds")  # of every task
PARAMS = ("train.learning_rate", "train.effective_batch_size", "train.epochs", "train.seed", "model.name")
TAGS = ("bigstep.micro_batch_size", "bigstep.accumulation_steps")


def saved_view() -> dict[str, str]:
    """Return the tags of an experiment with the view; columns that no run has are not shown."""
    named = (("metrics", METRICS), ("params", PARAMS), ("tags", TAGS))
    columns = [f"{kind}.`{name}`" for kind, names in named for name in names]
    state = {"selectedColumns": columns, "columnOrder": ["attributes.`Run Name`", "runDateAndNestInfo", *columns]}
    now = int(1000 * time.time())
    view = {"name": NAME, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    return {TAG: json.dumps(view), OFFERED: KEY}


def open_viewed_experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """Return the id of the experiment ``name``; a new one has the view, and one that never had it gets it.

    Other views stay as they are, and a store that keeps no tags of experiments is used without.
    """
    from mlflow.exceptions import MlflowException

    view = saved_view()
    experiment_id = open_experiment(client, uri, name, view)
    try:
        known = client.get_experiment(experiment_id).tags
        if OFFERED not in known:
            for tag in view.keys() - known.keys():
                client.set_experiment_tag(experiment_id, tag, view[tag])
    except MlflowException as error:
        log.debug("%s has no view of its runs: %s", name, error)
    return experiment_id


def viewed_experiments(client: "MlflowClient", host: str) -> list[tuple[str, str]]:
    """Return the name of each experiment that has the view, and the address of its page at ``host`` (``http://name:port``)."""
    found = client.search_experiments(filter_string=f"tags.`{TAG}` LIKE '%'")
    return [(item.name, f"{host}/#/experiments/{item.experiment_id}/runs?viewStateShareKey={KEY}") for item in found]
