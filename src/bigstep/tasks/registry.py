"""The task of a store or of a model, by its name."""

from collections.abc import Sequence

from bigstep.tasks.classification import Classification
from bigstep.tasks.multilabel import MultiLabel
from bigstep.tasks.regression import Regression
from bigstep.tasks.targets import MULTILABEL, REGRESSION
from bigstep.tasks.task import Task

__all__ = ["task_of"]


def task_of(name: str, names: Sequence[str], mean: Sequence[float] = (), std: Sequence[float] = ()) -> Task:
    """Return the task ``name`` with these names of its outputs.

    Args:
        name: as in a manifest or in model.json.
        names: of the outputs.
        mean: of the targets, for regression.
        std: the same.
    """
    if name == REGRESSION:
        return Regression(tuple(names), tuple(mean), tuple(std))
    return MultiLabel(tuple(names)) if name == MULTILABEL else Classification(tuple(names))
