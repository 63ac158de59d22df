"""The run that `mlflow run` starts before our code: it is used if an experiment was named for it."""

import os

__all__ = ["given_run", "pointing_run"]

UNNAMED = "0"  # id of MLflow's experiment Default, which a run belongs to if none is named
DEFAULT = "Default"


def given_run(experiment: str) -> str | None:
    """Return the run of `mlflow run` to write to.

    Args:
        experiment: that runs belong to otherwise, tracking.experiment.

    Returns:
        Its id; None if there is no such run, or no experiment was named for it.
    """
    return None if _is_unnamed(experiment) else os.environ.get("MLFLOW_RUN_ID")


def pointing_run(experiment: str) -> str | None:
    """Return the run of `mlflow run` that is not written to and only points to the one that is."""
    return os.environ.get("MLFLOW_RUN_ID") if _is_unnamed(experiment) else None


def _is_unnamed(experiment: str) -> bool:
    return os.environ.get("MLFLOW_EXPERIMENT_ID") == UNNAMED and experiment != DEFAULT
