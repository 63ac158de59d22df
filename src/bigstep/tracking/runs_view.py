"""A saved view of MLflow's page of runs: scores and the main parameters as columns, under "Views" and behind a link.

MLflow 3.17 keeps such a view in a tag of the experiment; an older one ignores it.
"""

import json
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["saved_view", "viewed_experiments"]

NAME, KEY = "Scores first", "scores"
TAG = f"mlflow.sharedViewState.{KEY}"
METRICS = ("test_accuracy", "test_macro_f1", "test_mae", "test_r2", "best_val_loss", "training_seconds")  # of every task
PARAMS = ("train.learning_rate", "train.effective_batch_size", "train.epochs", "train.seed", "model.name")
TAGS = ("bigstep.micro_batch_size", "bigstep.accumulation_steps")


def saved_view() -> dict[str, str]:
    """Return the tag of an experiment that holds the view; columns that no run has are not shown."""
    named = (("metrics", METRICS), ("params", PARAMS), ("tags", TAGS))
    columns = [f"{kind}.`{name}`" for kind, names in named for name in names]
    state = {"selectedColumns": columns, "columnOrder": ["attributes.`Run Name`", "runDateAndNestInfo", *columns]}
    now = int(1000 * time.time())
    return {TAG: json.dumps({"name": NAME, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})}


def viewed_experiments(client: "MlflowClient", host: str) -> list[tuple[str, str]]:
    """Return the name of each experiment that has the view, and the address of its page at ``host`` (``http://name:port``)."""
    found = client.search_experiments(filter_string=f"tags.`{TAG}` LIKE '%'")
    return [(item.name, f"{host}/#/experiments/{item.experiment_id}/runs?viewStateShareKey={KEY}") for item in found]
