"""A callback for Optuna 5 that logs a study to MLflow: one run for the study, and a child run for each trial.

::

    study.optimize(objective, n_trials=20, callbacks=[MLflowCallback("sqlite:///mlflow.db")])

Optuna's own is deprecated. This one belongs to the study and not to the process: a second process, and a later start,
continue the same run. A trial's history is one message; sending a trial twice changes nothing; and an unreachable MLflow
ends no study: what was not logged is logged later.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, final

import optuna
from optuna.trial import FrozenTrial

from bigstep.optuna_mlflow.optuna_internals import storage_of, storage_place, trial_id_of
from bigstep.optuna_mlflow.study_runs import (
    create_run,
    find_run,
    is_told,
    link_trial,
    note_link,
    parent_run,
    run_of,
    runs_below,
    tell_parent,
    tell_trial,
)
from bigstep.optuna_mlflow.trial_mapping import ENDED, NUMBER, RUN_ID, describe_trial, objective_names, trial_metrics
from bigstep.tracking.database import open_client, open_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["RUN_ID", "MLflowCallback", "describe_trial", "link_trial", "parent_run", "run_of"]

log = logging.getLogger(__name__)
LONGEST = 60.0  # seconds between two tries of a server that does not answer
SETTLED = 60.0  # seconds after which a trial that another process ended is not being logged by that one


@final
class MLflowCallback:
    """Logs each trial that ends to MLflow: pass it to ``study.optimize``, or call it after ``study.tell``.

    Any number of threads and processes may work on the study, each process with its own callback.

    Args:
        tracking_uri: of MLflow's store; None takes the one that MLflow is set to. How often a server that does
            not answer is tried is MLflow's setting: ``MLFLOW_HTTP_REQUEST_MAX_RETRIES=2`` keeps the study from waiting minutes.
        experiment: its name, which is created if missing; None uses the name of the study.
        metric_names: of the objectives. With one name and several objectives they are ``name_0``, ``name_1``, ...; the names
            of ``study.set_metric_names`` replace the default.
        intermediate_name: of what a trial reports while it runs.
        clock: seconds, by which the pauses are counted after MLflow did not answer.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        metric_names: Sequence[str] = ("value",),
        *,
        intermediate_name: str = "intermediate_value",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is connected to before the first trial."""
        self._clock = clock
        self._uri, self._experiment, self._intermediate_name = tracking_uri, experiment, intermediate_name
        self._metric_names = tuple(metric_names)
        self._lock = threading.RLock()
        self._client: MlflowClient | None = None
        self._places: dict[tuple[str, str | None], tuple[str, str]] = {}
        self._missed: dict[str, set[int]] = {}
        self._pause, self._again_at = 0.0, 0.0

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Log a trial that has ended, and those that could not be logged before.

        Raises:
            ValueError: the trial has not ended.
            ConfigError: the metrics' names are not as many as the objectives.
            ProjectError: the study's storage is of a kind that cannot be locked.
        """
        if trial.state not in ENDED:
            raise ValueError(
                f"trial: expected a finished trial, got trial {trial.number} in state {trial.state.name}; call study.tell first"
            )
        names = objective_names(study, self._metric_names)
        storage_place(storage_of(study))
        with self._lock:
            missed = self._missed.setdefault(study.study_name, set())
            missed.add(trial.number)
            if self._clock() >= self._again_at:
                others = [item for item in _ended(study) if item.number in missed] if len(missed) > 1 else [trial]
                self._tell(study, others, names)

    def begin(self, trial: optuna.Trial) -> str | None:
        """Start the run of a trial while it runs, so that the objective can log to it, and the trial knows its id.

        Returns:
            The run's id; None if MLflow is unreachable: the trial is logged when it has ended.

        Raises:
            ProjectError: the study's storage is of a kind that cannot be locked.
        """
        study = trial.study
        storage_place(storage_of(study))
        with self._lock:
            if self._clock() < self._again_at:
                return None
            try:
                client, experiment_id, parent = self._open(study)
                frozen = trial.storage.get_trial(trial_id_of(trial))
                run = find_run(client, experiment_id, parent, frozen) or create_run(
                    client, experiment_id, parent, study, frozen
                )
                link_trial(trial.storage, trial_id_of(trial), run.info.run_id)
            except Exception as error:  # noqa: BLE001 # whatever is wrong with the server, the study continues
                self._fail(error)
                return None
        return str(run.info.run_id)

    def catch_up(self, study: optuna.Study, *, settled_seconds: float = SETTLED) -> int:
        """Log all trials that have ended and are not in MLflow, whichever process ran them.

        Args:
            study: to be logged.
            settled_seconds: since a trial of another process ended; that one may be sending it until then.

        Returns:
            How many of them are still not in MLflow: 0 if all were logged, all if MLflow is unreachable.

        Raises:
            ConfigError: the metrics' names are not as many as the objectives.
            ProjectError: the study's storage is of a kind that cannot be locked.
        """
        storage_place(storage_of(study))
        names, latest = objective_names(study, self._metric_names), datetime.now() - timedelta(seconds=settled_seconds)
        with self._lock:
            missed = self._missed.setdefault(study.study_name, set())
            known, ended = self._known(study), _ended(study)
            if known is None:
                return len(ended)
            new = [trial for trial in ended if trial.number not in known]
            due = [item for item in new if item.number in missed or (item.datetime_complete or latest) <= latest]
            missed.difference_update(known)
            missed.update(item.number for item in due)
            self._tell(study, due, names)
            return len(new) - len({item.number for item in due} - missed)

    def _open(self, study: optuna.Study) -> tuple["MlflowClient", str, str]:
        """Return the client, and the ids of the experiment and of the study's run."""
        if self._client is None:
            import mlflow

            self._uri = self._uri or mlflow.get_tracking_uri()
            self._client = open_client(self._uri)
        place = (study.study_name, study.user_attrs.get(RUN_ID))
        if place not in self._places:
            assert self._uri is not None
            experiment_id = open_experiment(self._client, self._uri, self._experiment or study.study_name)
            parent = parent_run(self._client, experiment_id, study)
            place = (study.study_name, parent)
            self._places[place] = (str(self._client.get_run(parent).info.experiment_id), parent)
        return self._client, *self._places[place]

    def _known(self, study: optuna.Study) -> set[int] | None:
        try:
            client, experiment_id, parent = self._open(study)
            runs = runs_below(client, experiment_id, parent)
            return {int(run.data.tags[NUMBER]) for run in runs if is_told(run) and NUMBER in run.data.tags}
        except Exception as error:  # noqa: BLE001 # whatever is wrong with the server, the study continues
            self._fail(error)
            return None

    def _tell(self, study: optuna.Study, trials: Sequence[FrozenTrial], names: Sequence[str]) -> None:
        missed = self._missed[study.study_name]
        try:
            client, experiment_id, parent = self._open(study)
            for trial in trials:
                metrics = trial_metrics(trial, names, self._intermediate_name)
                run_id = tell_trial(client, experiment_id, parent, study, trial, metrics)
                if run_of(study, trial) != run_id:
                    note_link(study, trial, run_id)
                missed.discard(trial.number)
            tell_parent(client, parent, study)
            self._pause = self._again_at = 0.0
        except Exception as error:  # noqa: BLE001 # whatever is wrong with the server, the study continues
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Warn once, connect again, and retry after longer and longer pauses."""
        if not self._pause:
            line = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            log.warning("MLflow is unreachable (%s); the study continues, its trials are logged later", line)
        self._client = None
        self._places.clear()
        self._pause = min(2 * self._pause or 1.0, LONGEST)
        self._again_at = self._clock() + self._pause


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=ENDED)
