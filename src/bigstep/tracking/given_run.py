"""The run that `mlflow run` begins before any code of ours: written to where somebody named its experiment."""

import os

__all__ = ["given_run", "pointing_run"]

UNNAMED = "0"  # id of MLflow's experiment Default, which a run belongs to where nobody names one
DEFAULT = "Default"


def given_run(experiment: str) -> str | None:
    """Return the run of `mlflow run` to write to.

    Args:
        experiment: that runs belong to otherwise, tracking.experiment.

    Returns:
        Its id; None where there is none, or where nobody named its experiment.
    """
    return None if _is_unnamed(experiment) else os.environ.get("MLFLOW_RUN_ID")


def pointing_run(experiment: str) -> str | None:
    """Return the run of `mlflow run` that is not written to and only points to the one that is."""
    return os.environ.get("MLFLOW_RUN_ID") if _is_unnamed(experiment) else None


def _is_unnamed(experiment: str) -> bool:
    return os.environ.get("MLFLOW_EXPERIMENT_ID") == UNNAMED and experiment != DEFAULT
