"""The former place of :mod:`bigstep.optuna_mlflow.callback`; it stays until version 0.3."""

import warnings

from bigstep.optuna_mlflow.callback import MLflowCallback, parent_run, run_of

__all__ = ["MLflowCallback", "parent_run", "run_of"]

warnings.warn("bigstep.search.mlflow_callback is now bigstep.optuna_mlflow.callback", DeprecationWarning, stacklevel=2)
