"""The runs of a study in MLflow: one for the study, and one below it for each trial, found again by their tags."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from bigstep.optuna_mlflow.study_identity import id_of, storage_identity, storage_of, study_key
from bigstep.optuna_mlflow.study_lock import study_lock
from bigstep.optuna_mlflow.trial_mapping import (
    ENDED,
    NUMBER,
    PARENT,
    RUN_ID,
    STATE,
    TAG_LENGTH,
    begin_tags,
    describe_trial,
    milliseconds,
    mlflow_texts,
)
from bigstep.tracking.tracker import Metric, split_params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = [
    "create_run",
    "find_run",
    "is_told",
    "link_trial",
    "note_link",
    "parent_run",
    "run_of",
    "runs_below",
    "tell_parent",
    "tell_trial",
]

METRICS, TEXTS = 800, 100  # in a message: MLflow takes 1000 entries, of them 100 parameters and 100 tags


def parent_run(client: "MlflowClient", experiment_id: str, study: optuna.Study) -> str:
    """Return the run of the whole study, which the first of all processes starts; its id is the study's attribute.

    The run of a process that was killed before the study knew of it is found by its tags, and used.
    """
    known = study.user_attrs.get(RUN_ID)
    if known is not None and _is_parent(client, known, study):
        return str(known)
    with study_lock(storage_of(study)):
        known = study.user_attrs.get(RUN_ID)
        if known is not None and _is_parent(client, known, study):
            return str(known)
        found = _orphan(client, experiment_id, study) or _begin_parent(client, experiment_id, study)
        study.set_user_attr(RUN_ID, found)
        return found


def link_trial(storage: BaseStorage, trial_id: int, run_id: str) -> bool:
    """Record a trial's run in its attributes; False if it has ended, since Optuna then accepts no attributes."""
    try:
        storage.set_trial_user_attr(trial_id, RUN_ID, run_id)
    except optuna.exceptions.UpdateFinishedTrialError:
        return False
    return True


def note_link(study: optuna.Study, trial: FrozenTrial, run_id: str) -> None:
    """Record the run of a trial that has ended, in the study."""
    storage_of(study).set_study_system_attr(id_of(study), _link(trial), run_id)


def run_of(study: optuna.Study, trial: FrozenTrial) -> str | None:
    """Return the id of a trial's run: its attribute, else the one recorded in the study after it ended; None: not logged."""
    linked = storage_of(study).get_study_system_attrs(id_of(study)).get(_link(trial), trial.user_attrs.get(RUN_ID))
    return None if linked is None else str(linked)


def find_run(client: "MlflowClient", experiment_id: str, parent: str, trial: FrozenTrial) -> "Run | None":
    """Find the run of a trial; None: it has none."""
    return next(runs_below(client, experiment_id, parent, f" AND tags.`{NUMBER}` = '{trial.number}'"), None)


def create_run(client: "MlflowClient", experiment_id: str, parent: str, study: optuna.Study, trial: FrozenTrial) -> "Run":
    """Start the run of a trial."""
    own = begin_tags(trial, study, parent)
    return client.create_run(experiment_id, start_time=milliseconds(trial.datetime_start), tags=own)


def runs_below(client: "MlflowClient", experiment_id: str, parent: str, more: str = "") -> Iterator["Run"]:
    """Yield the runs below the study's, page by page; ``more`` is added to the filter."""
    page = None
    while True:
        found = client.search_runs([experiment_id], f"tags.`{PARENT}` = '{parent}'{more}", page_token=page)
        yield from found
        page = found.token
        if not page:
            return


def is_told(run: "Run") -> bool:
    """Return whether the end of a trial was logged to its run."""
    return run.data.tags.get(STATE) in {state.name for state in ENDED} and run.info.status != "RUNNING"


def tell_trial(
    client: "MlflowClient", experiment_id: str, parent: str, study: optuna.Study, trial: FrozenTrial, metrics: list[Metric]
) -> str:
    """Log a trial to its run, unless it was; what a killed process logged in part is logged again, and is there once."""
    run = find_run(client, experiment_id, parent, trial) or create_run(client, experiment_id, parent, study, trial)
    run_id = str(run.info.run_id)
    if is_told(run):
        return run_id
    params, tags = describe_trial(trial, study, parent)
    new, changed = split_params(params, run.data.params)
    _send(client, run_id, metrics, new, {**tags, **changed})
    status = "FAILED" if trial.state == TrialState.FAIL else "FINISHED"
    client.set_terminated(run_id, status, end_time=milliseconds(trial.datetime_complete))
    return run_id


def _send(
    client: "MlflowClient", run_id: str, metrics: list[Metric], params: Mapping[str, str], tags: Mapping[str, str]
) -> None:
    """Send everything, in one message if it fits; the state, which says that it is all there, goes last."""
    from mlflow.entities import Metric as MlflowMetric
    from mlflow.entities import Param, RunTag

    rows = [MlflowMetric(item.key, item.value, item.timestamp, item.step) for item in metrics]
    pairs = sorted(tags.items(), key=lambda pair: pair[0] == STATE)
    texts = [Param(*pair) for pair in params.items()], [RunTag(*pair) for pair in pairs]
    count = max(-(-len(rows) // METRICS), *(-(-len(part) // TEXTS) for part in texts))
    for part in range(count):
        last = count - 1 - part  # tags are counted from the end
        end = len(pairs) - last * TEXTS
        client.log_batch(
            run_id,
            metrics=rows[part * METRICS : (part + 1) * METRICS],
            params=texts[0][part * TEXTS : (part + 1) * TEXTS],
            tags=texts[1][max(0, end - TEXTS) : max(0, end)],
        )


def tell_parent(client: "MlflowClient", parent: str, study: optuna.Study) -> None:
    """Log the best trials, and that the study has ended as far as is known: Optuna does not notify callbacks."""
    best = study.best_trials
    tags = {"optuna.best_trials": ", ".join(str(trial.number) for trial in best)}
    if len(study.directions) == 1 and best:
        tags["optuna.best_value"] = repr(best[0].value)
    _send(client, parent, [], {}, mlflow_texts(tags, TAG_LENGTH))
    client.set_terminated(parent, "FINISHED")


def _is_parent(client: "MlflowClient", run_id: str, study: optuna.Study) -> bool:
    """Return whether the run exists, and this study's: a copied study has the attributes of the one it was copied from."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False  # the store is another one, or was deleted
        raise
    return bool(run.info.lifecycle_stage == "active" and run.data.tags.get("optuna.study") == study.study_name[:TAG_LENGTH])


def _begin_parent(client: "MlflowClient", experiment_id: str, study: optuna.Study) -> str:
    identity = storage_identity(storage_of(study))
    tags = {"optuna.study": study.study_name, "optuna.directions": ", ".join(item.name.lower() for item in study.directions)}
    if identity is not None:
        tags |= {"optuna.storage": identity, "optuna.study_key": study_key(identity, study)}
    return str(client.create_run(experiment_id, tags=mlflow_texts(tags, TAG_LENGTH), run_name=study.study_name).info.run_id)


def _orphan(client: "MlflowClient", experiment_id: str, study: optuna.Study) -> str | None:
    """Find a run that was started for this study and not used; one that has runs below it is a deleted study's."""
    identity = storage_identity(storage_of(study))
    if identity is None:
        return None
    text = f"tags.`optuna.study_key` = '{study_key(identity, study)}' AND attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment_id], text):
        if next(runs_below(client, experiment_id, run.info.run_id), None) is None:
            return str(run.info.run_id)
    return None


def _link(trial: FrozenTrial) -> str:
    return f"{RUN_ID}:{trial.number}"
