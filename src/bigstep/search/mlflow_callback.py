"""A callback for Optuna 5 that tells MLflow of a study: one run for the study, and one below it for each trial.

::

    study.optimize(objective, n_trials=20, callbacks=[MLflowCallback("sqlite:///mlflow.db")])

Optuna's own is deprecated. This one belongs to the study and not to the process: a second process, and a later start, go on
below the same run. A trial's history is one message; telling a trial twice changes nothing; and an MLflow that does not
answer ends no study: what it was not told is told later.
"""

import json
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from bigstep.console import console
from bigstep.errors import ConfigError
from bigstep.search.storage import alone_with
from bigstep.tracking.base import Metric, finite, split_params
from bigstep.tracking.database import open_client, open_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["RUN_ID", "MLflowCallback", "describe_trial", "link_trial", "parent_run", "run_of"]

RUN_ID = "mlflow_run_id"  # attribute of a study, and of a trial
STATE, NUMBER, PARENT, NAME = "optuna.state", "optuna.trial_number", "mlflow.parentRunId", "mlflow.runName"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
METRICS, TEXTS = 800, 100  # in a message: MLflow takes 1000 entries, of them 100 parameters and 100 tags
KEY_LENGTH, PARAM_LENGTH, TAG_LENGTH = 250, 6000, 8000  # MLflow's limits
LONGEST = 60.0  # seconds between two tries of a server that does not answer
SETTLED = 60.0  # seconds after which a trial that another process ended is not being told by that one


def parent_run(client: "MlflowClient", experiment_id: str, study: optuna.Study) -> str:
    """Give the run of the whole study, which the first of all processes begins; its id is the study's attribute.

    A run that a process began and was killed before the study knew of it is found by its tags, and taken.
    """
    known = study.user_attrs.get(RUN_ID)
    if known is not None and _is_parent(client, known, study):
        return str(known)
    with alone_with(_storage(study)):
        known = study.user_attrs.get(RUN_ID)
        if known is not None and _is_parent(client, known, study):
            return str(known)
        found = _orphan(client, experiment_id, study) or _begin_parent(client, experiment_id, study)
        study.set_user_attr(RUN_ID, found)
        return found


def describe_trial(trial: FrozenTrial, study: optuna.Study, parent: str) -> tuple[dict[str, str], dict[str, str]]:
    """Give the parameters and the tags of a trial's run, in names and lengths that MLflow takes.

    Args:
        trial: in any state; values that were fixed for it count as parameters, also where it never asked for them.
        study: that it belongs to.
        parent: id of the study's run.

    Returns:
        Parameters; and tags: the trial's user attributes (those that would pass for MLflow's or Optuna's begin with
        ``user.``), its place in the study, its state, and the name of its run, which says how it ended.
    """
    params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    reserved = ("mlflow.", "optuna.")
    attributes = {key: value for key, value in trial.user_attrs.items() if key != RUN_ID}
    attributes = {f"user.{key}" if key.startswith(reserved) else key: value for key, value in attributes.items()}
    ending = {TrialState.PRUNED: ", pruned", TrialState.FAIL: ", failed"}.get(trial.state, "")
    tags = {
        PARENT: parent,
        NAME: f"trial {trial.number}{ending}",
        "optuna.study": study.study_name,
        "optuna.trial_id": str(trial._trial_id),  # noqa: SLF001 # Optuna gives it by no other way
        NUMBER: str(trial.number),
        STATE: trial.state.name,
    }
    return _texts(params, PARAM_LENGTH), {**_texts(attributes, TAG_LENGTH), **_texts(tags, TAG_LENGTH)}


def link_trial(storage: BaseStorage, trial_id: int, run_id: str) -> bool:
    """Note a trial's run in its attributes; False where it has ended, after which Optuna takes none."""
    try:
        storage.set_trial_user_attr(trial_id, RUN_ID, run_id)
    except optuna.exceptions.UpdateFinishedTrialError:
        return False
    return True


def run_of(study: optuna.Study, trial: FrozenTrial) -> str | None:
    """Give the id of a trial's run: its attribute, else what the study holds for trials that had ended; None: not told."""
    linked = _storage(study).get_study_system_attrs(_id(study)).get(_link(trial), trial.user_attrs.get(RUN_ID))
    return None if linked is None else str(linked)


@final
class MLflowCallback:
    """Tells MLflow of each trial that ends: give it to ``study.optimize``, or call it after ``study.tell``.

    Any number of threads and processes may work on the study, each process with a callback of its own.

    Args:
        tracking_uri: of MLflow's store; None takes the one that MLflow is set to.
        experiment: its name, which is created where there is none; None names it as the study.
        metric_names: of the objectives. With one name and several objectives they are ``name_0``, ``name_1``, ...; the names
            of ``study.set_metric_names`` stand in the place of the default.
        intermediate_name: of what a trial reports while it runs.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        metric_names: Sequence[str] = ("value",),
        *,
        intermediate_name: str = "intermediate_value",
    ) -> None:
        """Nothing is connected to before the first trial."""
        self._uri, self._experiment, self._intermediate_name = tracking_uri, experiment, intermediate_name
        self._metric_names = tuple(metric_names)
        self._lock = threading.RLock()
        self._client: MlflowClient | None = None
        self._places: dict[tuple[str, str | None], tuple[str, str]] = {}
        self._missed: dict[str, set[int]] = {}
        self._pause, self._again_at = 0.0, 0.0

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tell of a trial that has ended, and of those that MLflow did not answer for.

        Raises:
            ValueError: the trial has not ended.
            ConfigError: the metrics' names are not as many as the objectives.
        """
        if trial.state not in ENDED:
            raise ValueError(f"a trial must have ended, but trial {trial.number} is {trial.state.name}; tell the study first")
        names = _names(study, self._metric_names)
        with self._lock:
            missed = self._missed.setdefault(study.study_name, set())
            missed.add(trial.number)
            if time.monotonic() >= self._again_at:
                others = [item for item in _ended(study) if item.number in missed] if len(missed) > 1 else [trial]
                self._tell(study, others, names)

    def begin(self, trial: optuna.Trial) -> str | None:
        """Begin the run of a trial while it runs, so that the objective can log to it, and the trial knows its id.

        Returns:
            The run's id; None where MLflow does not answer: the trial is told when it has ended.
        """
        study = trial.study
        with self._lock:
            if time.monotonic() < self._again_at:
                return None
            try:
                client, experiment_id, parent = self._open(study)
                frozen = trial.storage.get_trial(trial._trial_id)  # noqa: SLF001 # Optuna gives it by no other way
                run = _find(client, experiment_id, parent, frozen) or _create(client, experiment_id, parent, study, frozen)
                link_trial(trial.storage, trial._trial_id, run.info.run_id)  # noqa: SLF001 # the same
            except Exception as error:  # noqa: BLE001 # whatever is wrong with the server, the study goes on
                self._fail(error)
                return None
        return str(run.info.run_id)

    def catch_up(self, study: optuna.Study, *, settled_seconds: float = SETTLED) -> int:
        """Tell of all trials that have ended and MLflow does not know, whoever trained them.

        Args:
            study: to be told of.
            settled_seconds: since a trial of another process ended; that one may be telling it until then.

        Returns:
            How many of them MLflow still does not know: 0 where it was told of all, and all where it does not answer.
        """
        names, latest = _names(study, self._metric_names), datetime.now() - timedelta(seconds=settled_seconds)
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
        """Give the client, and the ids of the experiment and of the study's run."""
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
            runs = _below(client, experiment_id, parent)
            return {int(run.data.tags[NUMBER]) for run in runs if _is_told(run) and NUMBER in run.data.tags}
        except Exception as error:  # noqa: BLE001 # whatever is wrong with the server, the study goes on
            self._fail(error)
            return None

    def _tell(self, study: optuna.Study, trials: Sequence[FrozenTrial], names: Sequence[str]) -> None:
        missed = self._missed[study.study_name]
        try:
            client, experiment_id, parent = self._open(study)
            for trial in trials:
                metrics = _metrics(trial, names, self._intermediate_name)
                run_id = _tell_trial(client, experiment_id, parent, study, trial, metrics)
                if run_of(study, trial) != run_id:
                    _storage(study).set_study_system_attr(_id(study), _link(trial), run_id)
                missed.discard(trial.number)
            _tell_parent(client, parent, study)
            self._pause = self._again_at = 0.0
        except Exception as error:  # noqa: BLE001 # whatever is wrong with the server, the study goes on
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Say so once, connect anew, and try again after longer and longer pauses."""
        if not self._pause:
            line = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            console.print(f"MLflow does not answer ({line}); the study goes on, and its trials are told later")
        self._client = None
        self._places.clear()
        self._pause = min(2 * self._pause or 1.0, LONGEST)
        self._again_at = time.monotonic() + self._pause


def _tell_trial(
    client: "MlflowClient", experiment_id: str, parent: str, study: optuna.Study, trial: FrozenTrial, metrics: list[Metric]
) -> str:
    """Tell a run of its trial, unless it knows; what a killed process told half is told again, and stands there once."""
    run = _find(client, experiment_id, parent, trial) or _create(client, experiment_id, parent, study, trial)
    run_id = str(run.info.run_id)
    if _is_told(run):
        return run_id
    params, tags = describe_trial(trial, study, parent)
    new, changed = split_params(params, run.data.params)
    _send(client, run_id, metrics, new, {**tags, **changed})
    status = "FAILED" if trial.state == TrialState.FAIL else "FINISHED"
    client.set_terminated(run_id, status, end_time=_milliseconds(trial.datetime_complete))
    return run_id


def _send(
    client: "MlflowClient", run_id: str, metrics: list[Metric], params: Mapping[str, str], tags: Mapping[str, str]
) -> None:
    """Send everything, in one message where it fits in one; the state, which says that it is all there, goes last."""
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


def _tell_parent(client: "MlflowClient", parent: str, study: optuna.Study) -> None:
    """Note the best trials, and that the study has ended as far as is known: nobody tells a callback when it has."""
    best = study.best_trials
    tags = {"optuna.best_trials": ", ".join(str(trial.number) for trial in best)}
    if len(study.directions) == 1 and best:
        tags["optuna.best_value"] = repr(best[0].value)
    _send(client, parent, [], {}, _texts(tags, TAG_LENGTH))
    client.set_terminated(parent, "FINISHED")


def _metrics(trial: FrozenTrial, names: Sequence[str], intermediate_name: str) -> list[Metric]:
    """Give a trial's history, values and constraints; what is not finite is left out: MLflow stores NaN as 0."""
    at = _milliseconds(trial.datetime_complete)
    name = _key(intermediate_name)
    rows = [Metric(name, float(value), step, at) for step, value in sorted(trial.intermediate_values.items())]
    values = dict(zip(names, trial.values or (), strict=False))  # a pruned trial of several objectives has none
    constraints = {f"constraint.{key}": value for key, value in trial.constraints.items()}
    ends = {**values, **constraints}
    return finite(rows + [Metric(_key(key), float(value), 0, at) for key, value in ends.items()])


def _names(study: optuna.Study, given: tuple[str, ...]) -> tuple[str, ...]:
    count = len(study.directions)
    if given == ("value",) and study.metric_names is not None:
        return tuple(study.metric_names)
    if len(given) == 1 and count > 1:
        return tuple(f"{given[0]}_{number}" for number in range(count))
    if len(given) != count:
        raise ConfigError(f"metric_names must name each objective, but {len(given)} names {count}; give {count}, or one")
    return given


def _create(client: "MlflowClient", experiment_id: str, parent: str, study: optuna.Study, trial: FrozenTrial) -> "Run":
    _, tags = describe_trial(trial, study, parent)
    own = {key: tags[key] for key in (PARENT, NAME, "optuna.study", "optuna.trial_id", NUMBER)}
    return client.create_run(experiment_id, start_time=_milliseconds(trial.datetime_start), tags=own)


def _find(client: "MlflowClient", experiment_id: str, parent: str, trial: FrozenTrial) -> "Run | None":
    return next(_below(client, experiment_id, parent, f" AND tags.`{NUMBER}` = '{trial.number}'"), None)


def _below(client: "MlflowClient", experiment_id: str, parent: str, more: str = "") -> Iterator["Run"]:
    page = None
    while True:
        found = client.search_runs([experiment_id], f"tags.`{PARENT}` = '{parent}'{more}", page_token=page)
        yield from found
        page = found.token
        if not page:
            return


def _is_told(run: "Run") -> bool:
    return run.data.tags.get(STATE) in {state.name for state in ENDED} and run.info.status != "RUNNING"


def _is_parent(client: "MlflowClient", run_id: str, study: optuna.Study) -> bool:
    """Tell whether the run is there, and this study's: a copied study has the attributes of the one it was copied from."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False  # the store is another one, or was deleted
        raise
    return bool(run.info.lifecycle_stage == "active" and run.data.tags.get("optuna.study") == study.study_name[:TAG_LENGTH])


def _begin_parent(client: "MlflowClient", experiment_id: str, study: optuna.Study) -> str:
    identity = _identity(_storage(study))
    tags = {"optuna.study": study.study_name, "optuna.directions": ", ".join(item.name.lower() for item in study.directions)}
    if identity is not None:
        tags |= {"optuna.storage": identity, "optuna.study_key": _study_key(identity, study)}
    return str(client.create_run(experiment_id, tags=_texts(tags, TAG_LENGTH), run_name=study.study_name).info.run_id)


def _orphan(client: "MlflowClient", experiment_id: str, study: optuna.Study) -> str | None:
    """Find a run that was begun for this study and not used; one that has runs below it is a deleted study's."""
    identity = _identity(_storage(study))
    if identity is None:
        return None
    text = f"tags.`optuna.study_key` = '{_study_key(identity, study)}' AND attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment_id], text):
        if next(_below(client, experiment_id, run.info.run_id), None) is None:
            return str(run.info.run_id)
    return None


def _identity(storage: BaseStorage) -> str | None:
    """Name a storage; None for one that ends with its process."""
    backend = getattr(storage, "_backend", storage)  # of a journal, and of Optuna's cache over a database
    path, address = getattr(backend, "_file_path", None), getattr(backend, "url", None)
    if address is not None:
        return _name_of(str(address))
    return None if path is None else _name_of_file(path)


def _name_of(address: str) -> str | None:
    """Name a database, whatever its driver, user, password and options."""
    from sqlalchemy.engine import URL, make_url

    url = make_url(address)
    if url.get_backend_name() != "sqlite":
        return URL.create(url.get_backend_name(), host=url.host, port=url.port, database=url.database).render_as_string()
    return None if url.database in (None, "", ":memory:") else _name_of_file(str(url.database))


def _name_of_file(path: str) -> str:
    return f"{socket.gethostname()}:{Path(path).absolute()}"


def _study_key(identity: str, study: optuna.Study) -> str:
    return sha256(f"{identity}\n{study.study_name}".encode()).hexdigest()[:32]


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=ENDED)


def _link(trial: FrozenTrial) -> str:
    return f"{RUN_ID}:{trial.number}"


def _storage(study: optuna.Study) -> BaseStorage:
    return study._storage  # noqa: SLF001 # Optuna gives it by no other way


def _id(study: optuna.Study) -> int:
    return study._study_id  # noqa: SLF001 # Optuna gives it by no other way


def _texts(values: Mapping[str, Any], length: int) -> dict[str, str]:
    return {_key(key): _text(value)[:length] for key, value in values.items()}


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list, tuple)) else str(value)


def _key(name: str) -> str:
    """Write a name as MLflow takes it: its letters, and no path that leads elsewhere."""
    parts: Iterable[str] = re.sub(r"[^/\w.\- :]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:KEY_LENGTH].rstrip("/") or "_"


def _milliseconds(moment: datetime | None) -> int:
    """Give milliseconds since 1970 of a local time, which Optuna's are; a trial that was added without one began then."""
    return 0 if moment is None else int(moment.timestamp() * 1000)
