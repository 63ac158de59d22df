"""The run that `mlflow run` starts before our code: it is used if an experiment was named for it."""

from bigstep.runtime.environment import GIVEN_EXPERIMENT, GIVEN_RUN, read_variable

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
    return None if _is_unnamed(experiment) else read_variable(GIVEN_RUN) or None


def pointing_run(experiment: str) -> str | None:
    """Return the run of `mlflow run` that is not written to and only points to the one that is."""
    return (read_variable(GIVEN_RUN) or None) if _is_unnamed(experiment) else None


def _is_unnamed(experiment: str) -> bool:
    return read_variable(GIVEN_EXPERIMENT) == UNNAMED and experiment != DEFAULT
