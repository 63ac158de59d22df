"""A callback for Optuna 5 that tells MLflow of a study: one run for the study, one below it for each trial.

>>> study.optimize(objective, n_trials=20, callbacks=[MLflowCallback(tracking_uri="sqlite:///mlflow.db")])  # doctest: +SKIP

Optuna's own callback is deprecated. This one sends a trial's whole history in one message, links trial and run both ways,
tells pruned trials from failed ones, belongs to the study rather than to the process (a second process, or a later start,
goes on below the same run), and never ends a study: what could not be told is told with the next trial.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import optuna
from optuna.trial import FrozenTrial, TrialState

from bigstep.console import console
from bigstep.search.storage import alone_with
from bigstep.tracking.base import Metric
from bigstep.tracking.database import open_client, open_experiment
from bigstep.tracking.mlflow_tracker import MlflowTracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["RUN_ID", "MLflowCallback", "parent_run", "trial_tags"]

RUN_ID = "mlflow_run_id"  # attribute of the study and of a trial
STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "FINISHED", TrialState.FAIL: "FAILED"}


def parent_run(client: "MlflowClient", experiment_id: str, study: optuna.Study) -> str:
    """Give the run of the whole study, which the first of all processes begins."""
    with alone_with(study._storage):  # noqa: SLF001 # Optuna gives it by no other way
        known = study.user_attrs.get(RUN_ID)
        if known is not None and _is_there(client, known):
            return str(known)
        tags = {"optuna.study": study.study_name, "bigstep.kind": "search"}
        found = str(client.create_run(experiment_id, tags=tags, run_name=study.study_name).info.run_id)
        study.set_user_attr(RUN_ID, found)
        return found


def trial_tags(study: optuna.Study, trial: FrozenTrial, parent: str) -> dict[str, str]:
    """Give the tags that tie a trial's run to its study and to the study's run."""
    suffix = {TrialState.PRUNED: ", pruned", TrialState.FAIL: ", failed"}.get(trial.state, "")
    return {
        "mlflow.parentRunId": parent,
        "mlflow.runName": f"trial {trial.number}{suffix}",
        "optuna.study": study.study_name,
        "optuna.trial_number": str(trial.number),
        "optuna.trial_key": f"{parent}/{trial.number}",
        "optuna.state": trial.state.name,
    }


@final
class MLflowCallback:
    """Tells MLflow of each trial that ends; give it to ``study.optimize`` or call it after ``study.tell``.

    Args:
        tracking_uri: of MLflow's store.
        experiment: name of the experiment, created where there is none.
        metric_names: of the objectives, in order.
    """

    def __init__(self, tracking_uri: str, experiment: str = "optuna", metric_names: Sequence[str] = ("value",)) -> None:
        """Nothing is connected to yet."""
        self._uri, self._experiment, self._metric_names = tracking_uri, experiment, tuple(metric_names)
        self._told: set[int] = set()

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tell of all trials that have ended and are not told; an MLflow that does not answer is tried with the next."""
        del trial
        try:
            self.catch_up(study)
        except Exception as error:  # noqa: BLE001 # whatever is wrong with the server, the study goes on
            line = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            console.print(f"MLflow does not answer ({line}); the study goes on, and the trial is told with the next")

    def catch_up(self, study: optuna.Study) -> None:
        """Tell of all trials that have ended and are not told yet.

        Raises:
            Exception: MLflow's, where it does not answer.
        """
        waiting = [trial for trial in study.get_trials(deepcopy=False) if self._is_new(trial)]
        if not waiting:
            return
        client = open_client(self._uri)
        experiment_id = open_experiment(client, self._uri, self._experiment)
        parent = parent_run(client, experiment_id, study)
        for trial in waiting:
            self._tell(client, experiment_id, parent, study, trial)
            self._told.add(trial.number)

    def _is_new(self, trial: FrozenTrial) -> bool:
        return trial.state.is_finished() and trial.number not in self._told

    def _tell(self, client: "MlflowClient", experiment_id: str, parent: str, study: optuna.Study, trial: FrozenTrial) -> None:
        tags = trial_tags(study, trial, parent)
        text = f"tags.`optuna.trial_key` = '{tags['optuna.trial_key']}'"
        known = client.search_runs([experiment_id], text, max_results=1)
        if known and known[0].info.status != "RUNNING":
            return
        started = _milliseconds(trial.datetime_start)
        run = known[0] if known else client.create_run(experiment_id, start_time=started, tags=tags)
        tracker = MlflowTracker(client, self._uri, run.info.run_id)
        tracker.log_params(trial.params)
        tracker.log_metrics(self._metrics(trial))
        tracker.set_tags({name: str(value) for name, value in trial.user_attrs.items()})
        client.set_terminated(run.info.run_id, STATUS[trial.state], end_time=_milliseconds(trial.datetime_complete))

    def _metrics(self, trial: FrozenTrial) -> list[Metric]:
        """Give values, history and constraints; what is not finite is left out, since MLflow would store it as 0."""
        at = _milliseconds(trial.datetime_complete)
        name = self._metric_names[0]
        rows = [Metric(f"intermediate_{name}", value, step, at) for step, value in sorted(trial.intermediate_values.items())]
        values = dict(zip(self._metric_names, trial.values or (), strict=False))
        constraints = {f"constraint_{key}": value for key, value in trial.constraints.items()}
        return rows + [Metric(key, float(value), 0, at) for key, value in {**values, **constraints}.items()]


def _is_there(client: "MlflowClient", run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False


def _milliseconds(moment: Any) -> int:
    return 0 if moment is None else int(moment.timestamp() * 1000)
