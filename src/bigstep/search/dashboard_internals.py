"""Every private name of optuna-dashboard that bigstep uses, each with its reason; tests/test_internals.py tries them all."""

from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from bigstep.optuna_mlflow.optuna_internals import storage_of, trial_id_of

__all__ = ["CONSTRAINTS", "note_of", "open_ended"]

CONSTRAINTS = "constraints"  # system attribute that optuna-dashboard 0.21 reads; Optuna's set_constraint writes others


def open_ended(study: optuna.Study, trial: FrozenTrial) -> Any:
    """Return what optuna-dashboard takes for a trial, for one that has ended: it reads these three attributes, one private."""
    return SimpleNamespace(storage=storage_of(study), study=study, _trial_id=trial_id_of(trial))


def note_of(subject: Any) -> str:
    """Return the note of a trial, empty if it has none: optuna-dashboard can write one publicly, and not read it."""
    from optuna_dashboard._note import get_note

    return str(get_note(subject))
