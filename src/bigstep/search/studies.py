"""The studies of a search: where they are stored, and what they were started with."""

import warnings

import optuna

from bigstep.config.former_keys import new_values
from bigstep.config.params import Params, flatten
from bigstep.config.search import OBJECTIVES
from bigstep.console import console
from bigstep.data.store import Store
from bigstep.errors import ConfigError
from bigstep.project.paths import ProjectPaths
from bigstep.runs.code_digest import digest_code
from bigstep.search.space import EXPONENTS, Space
from bigstep.search.storage import absolute_address, open_storage, open_study
from bigstep.search.trial_queue import TrialQueue

__all__ = [
    "ASKS",
    "CODE",
    "PARAMETERS",
    "check_same",
    "confirmation_study_name",
    "open_ledgers",
    "storage_address",
    "study_address",
]
ASKS = 10  # times the budget: infeasible trials are cheap, but must end
PARAMETERS, CODE = "bigstep.parameters", "bigstep.code"  # attributes of a study


def confirmation_study_name(study: str) -> str:
    """Return the name of the study of retrained configurations."""
    return f"{study}-again"


def open_ledgers(params: Params, address: str) -> tuple[TrialQueue, TrialQueue]:
    """Open the study and that of retrained configurations, and create them if they do not exist."""
    search, storage = params.search, open_storage(address)
    directions = [OBJECTIVES[name] for name in search.objectives]
    first = open_study(storage, search.study, directions)
    again = open_study(storage, confirmation_study_name(search.study), directions[:1])
    for study, names in ((first, search.objectives), (again, search.objectives[:1])):
        if study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(list(names))
    pruning = search.pruner == "median" and len(directions) == 1
    first.pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_min_trials=4) if pruning else optuna.pruners.NopPruner()
    return TrialQueue(first, search.trials, ASKS * search.trials), TrialQueue(again, 0, 0)


def study_address(project: ProjectPaths, params: Params) -> str:
    """Return where the study is stored: a path, or the address of a database."""
    given = params.search.storage
    return str(project.search / f"{params.search.study}.journal") if given is None else storage_address(project, given)


def storage_address(project: ProjectPaths, given: str) -> str:
    """Return a storage's path or address, where what is relative counts from the project."""
    return absolute_address(given, project.root) if "://" in given else str(project.resolve(given))


def check_same(study: optuna.Study, params: Params, space: Space, store: Store) -> None:
    """Check that a study's trials are comparable: all parameters that affect training and are not searched must be the same.

    Raises:
        ConfigError: a parameter has changed.
    """
    free = {"train.learning_rate", "train.effective_batch_size", *space.dimensions}
    learning = {name: str(value) for name, value in flatten(params).items() if name.split(".")[0] in ("data", "model", "train")}
    fixed = {name: value for name, value in learning.items() if name not in free}
    fixed |= {"search.objective": str(params.search.objectives), "search.epochs": str(params.search.epochs)}
    fixed |= {"search.parameters": ", ".join(sorted(space.dimensions)), "data": store.manifest.digest}
    recorded = study.user_attrs.get(PARAMETERS)
    if recorded is not None and any(name in str(recorded.get("search.parameters")) for name in EXPONENTS):
        raise ConfigError(
            f"search.study: expected a study of plain batch sizes, got {study.study_name}, in exponents (of an earlier "
            f"version); choose another name (--warm-start {study.study_name} in the same search.storage tries its best trials)"
        )
    if recorded is None:
        study.set_user_attr(PARAMETERS, fixed)
        study.set_user_attr(CODE, digest_code(*params.training_code))
        return
    known = new_values(recorded)
    changed = [f"{name} (was {known.get(name)})" for name in {**fixed, **known} if fixed.get(name) != known.get(name)]
    if changed:
        raise ConfigError(
            "search.study: expected the parameters that the study was started with, got changed "
            f"{', '.join(sorted(changed)[:4])}; choose another name"
        )
    if study.user_attrs.get(CODE) != digest_code(*params.training_code):
        console.print("WARNING: the training code has changed since this study was started; its trials may not be comparable")
