"""A trial in MLflow's terms: parameters, tags and metrics, in names and lengths that MLflow takes."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from bigstep.errors import ConfigError
from bigstep.optuna_mlflow.optuna_internals import trial_id_of
from bigstep.tracking.tracker import Metric, finite

__all__ = [
    "ENDED",
    "NUMBER",
    "PARENT",
    "RUN_ID",
    "STATE",
    "TAG_LENGTH",
    "begin_tags",
    "describe_trial",
    "milliseconds",
    "mlflow_texts",
    "objective_names",
    "trial_metrics",
]

RUN_ID = "mlflow_run_id"  # attribute of a study, and of a trial
STATE, NUMBER, PARENT, NAME = "optuna.state", "optuna.trial_number", "mlflow.parentRunId", "mlflow.runName"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
KEY_LENGTH, PARAM_LENGTH, TAG_LENGTH = 250, 6000, 8000  # MLflow's limits


def describe_trial(trial: FrozenTrial, study: optuna.Study, parent: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the parameters and the tags of a trial's run, in names and lengths that MLflow takes.

    Args:
        trial: in any state; values that were fixed for it count as parameters, also where it never asked for them.
        study: that it belongs to.
        parent: id of the study's run.

    Returns:
        Parameters; and tags: the trial's user attributes (those that would pass for MLflow's or Optuna's start with
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
        "optuna.trial_id": str(trial_id_of(trial)),
        NUMBER: str(trial.number),
        STATE: trial.state.name,
    }
    return mlflow_texts(params, PARAM_LENGTH), {**mlflow_texts(attributes, TAG_LENGTH), **mlflow_texts(tags, TAG_LENGTH)}


def begin_tags(trial: FrozenTrial, study: optuna.Study, parent: str) -> dict[str, str]:
    """Return the tags of a trial's run when it starts: where it belongs, and its name."""
    _, tags = describe_trial(trial, study, parent)
    return {key: tags[key] for key in (PARENT, NAME, "optuna.study", "optuna.trial_id", NUMBER)}


def trial_metrics(trial: FrozenTrial, names: Sequence[str], intermediate_name: str) -> list[Metric]:
    """Return a trial's history, values and constraints; what is not finite is left out: MLflow stores NaN as 0."""
    at = milliseconds(trial.datetime_complete)
    name = mlflow_key(intermediate_name)
    rows = [Metric(name, float(value), step, at) for step, value in sorted(trial.intermediate_values.items())]
    values = dict(zip(names, trial.values or (), strict=False))  # a pruned trial of several objectives has none
    constraints = {f"constraint.{key}": value for key, value in trial.constraints.items()}
    ends = {**values, **constraints}
    return finite(rows + [Metric(mlflow_key(key), float(value), 0, at) for key, value in ends.items()])


def objective_names(study: optuna.Study, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the metrics' names of a study's objectives.

    Raises:
        ConfigError: there are not as many names as objectives, nor one for all.
    """
    count = len(study.directions)
    if given == ("value",) and study.metric_names is not None:
        return tuple(study.metric_names)
    if len(given) == 1 and count > 1:
        return tuple(f"{given[0]}_{number}" for number in range(count))
    if len(given) != count:
        raise ConfigError(
            f"metric_names: expected {count} names, one for each objective, got {len(given)}; pass {count}, or one"
        )
    return given


def mlflow_texts(values: Mapping[str, Any], length: int) -> dict[str, str]:
    """Write names and values as MLflow takes them; values are cut to ``length`` characters."""
    return {mlflow_key(key): _text(value)[:length] for key, value in values.items()}


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list, tuple)) else str(value)


def mlflow_key(name: str) -> str:
    """Write a name as MLflow takes it: its letters, and no path that leads elsewhere."""
    parts: Iterable[str] = re.sub(r"[^/\w.\- :]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:KEY_LENGTH].rstrip("/") or "_"


def milliseconds(moment: datetime | None) -> int:
    """Return milliseconds since 1970 of a local time, as Optuna's are; 0 if it is None."""
    return 0 if moment is None else int(moment.timestamp() * 1000)
