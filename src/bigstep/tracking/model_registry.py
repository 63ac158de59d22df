"""The model registry: every trained model becomes the challenger, the better one the champion."""

import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bigstep.console import format_score
from bigstep.errors import ModelError
from bigstep.tracking.mlflow_tracker import MODEL_URI_TAG
from bigstep.tracking.sealing import COUNT_TAG, SEAL_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["Promotion", "describe_version", "find_version", "log_scores", "produced_by", "promote"]

log = logging.getLogger(__name__)
REFUSALS = ("RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND", "INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE")
SCORES = {"test_": "testing", "best_val_": "training"}  # what a model's page shows, and the data they are of
DESCRIPTION = 5000  # characters that MLflow keeps
CUT = "\n\n(cut; the whole card is the artifact `card.md` of the run)"
WEIGHTS, DIGEST = "bigstep.weights_sha256", "bigstep.validation_digest"
CARD = "bigstep.card_sha256"  # of the description that was written; another one is a person's


@dataclass(frozen=True)
class Promotion:
    """What became of a model in the registry, and why."""

    name: str
    version: str
    is_champion: bool
    reason: str


def produced_by(client: "MlflowClient", run_id: str, weights_sha256: str) -> str | None:
    """Return the latest run that trained these weights: ``run_id``, or an earlier one whose model DVC took from its cache."""
    if client.get_run(run_id).data.tags.get(WEIGHTS) == weights_sha256:
        return run_id
    experiments = [item.experiment_id for item in client.search_experiments()]
    query = f"tags.`{WEIGHTS}` = '{weights_sha256}'"
    found = client.search_runs(experiments, query, order_by=["attributes.start_time DESC"], max_results=1)
    return str(found[0].info.run_id) if found else None


def log_scores(client: "MlflowClient", run_id: str, trained_in: str) -> None:
    """Do what :func:`_log_scores` does; where MLflow refuses, as for a model that was deleted, the run is whole without."""
    from mlflow.exceptions import MlflowException

    try:
        _log_scores(client, run_id, trained_in)
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
        log.info("MLflow shows no scores on the model's page: %s", str(error).splitlines()[0])


def _log_scores(client: "MlflowClient", run_id: str, trained_in: str) -> None:
    """Log the last scores of a run with the model that another one, or the same, has logged: its page shows them.

    Scores that the model has already are left out, so that a second call changes nothing.
    """
    source = client.get_run(trained_in).data.tags.get(MODEL_URI_TAG)
    if source is None:
        return
    model_id = source.rpartition("/")[2]
    known = {item.key for item in client.get_logged_model(model_id).metrics or ()}
    run = client.get_run(run_id)
    data = {item.context: item for item in _datasets(run)}
    for key, value in run.data.metrics.items():
        part = next((part for start, part in SCORES.items() if key.startswith(start)), None)
        if part is None or key in known:
            continue
        dataset = data.get(part) or next(iter(data.values()), None)  # MLflow keeps one context of a data set that has two
        latest = client.get_metric_history(run_id, key)[-1]
        name, digest = (None, None) if dataset is None else (dataset.name, dataset.digest)
        client.log_metric(
            run_id, key, value, latest.timestamp, latest.step, dataset_name=name, dataset_digest=digest, model_id=model_id
        )


def _datasets(run: Any) -> Iterator["_Dataset"]:
    for item in run.inputs.dataset_inputs if run.inputs is not None else ():
        context = next((tag.value for tag in item.tags if tag.key == "mlflow.data.context"), "")
        yield _Dataset(context, item.dataset.name, item.dataset.digest)


@dataclass(frozen=True)
class _Dataset:
    """Data that a run used, and for what."""

    context: str
    name: str
    digest: str


def promote(client: "MlflowClient", run_id: str, name: str, *, metric: str, smaller_is_better: bool) -> Promotion | None:
    """Register the model of a run, call it challenger, and move champion to it only if it is better on the same data.

    Args:
        client: of the store.
        run_id: a run whose tags name its model, weights and validation digest.
        name: in the registry.
        metric: tag that holds the value to compare, as ``bigstep.<metric>``.
        smaller_is_better: which way to compare.

    Returns:
        What happened, or None when the run has no model.
    """
    tags = client.get_run(run_id).data.tags
    if MODEL_URI_TAG not in tags:
        return None
    kept = {key: tags[key] for key in (WEIGHTS, DIGEST, SEAL_TAG, COUNT_TAG, f"bigstep.{metric}") if key in tags}
    version = _registered(client, run_id, name, tags[MODEL_URI_TAG], kept)
    client.set_registered_model_alias(name, "challenger", version)
    is_better, reason = _beats(kept, _champion(client, name), version, f"bigstep.{metric}", smaller=smaller_is_better)
    if is_better:
        client.set_registered_model_alias(name, "champion", version)
    return Promotion(name, version, is_better, reason)


def describe_version(client: "MlflowClient", promotion: Promotion, card: str) -> None:
    """Show a model's card on the page of its version; what a person wrote there stays.

    The header is left out, and what exceeds MLflow's limit.
    """
    version = client.get_model_version(promotion.name, promotion.version)
    written, body = version.description or "", re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).strip()
    if not body or (written and version.tags.get(CARD) != _digest(written)):
        return
    if len(body) > DESCRIPTION:
        lines = body[: DESCRIPTION - len(CUT)].splitlines()[:-1]
        body = "\n".join(lines) + CUT
    if body != written:
        client.set_model_version_tag(promotion.name, promotion.version, CARD, _digest(body))
        client.update_model_version(promotion.name, promotion.version, body)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _registered(client: "MlflowClient", run_id: str, name: str, uri: str, tags: dict[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name='{name}'"):
        if version.tags.get(WEIGHTS) == tags.get(WEIGHTS) and version.source == uri:
            return str(version.version)
    created = client.create_model_version(name, uri, run_id=run_id, tags=tags, model_id=uri.rpartition("/")[2])
    return str(created.version)


def _champion(client: "MlflowClient", name: str) -> Any | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, "champion")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _beats(new: dict[str, str], champion: Any | None, version: str, metric: str, *, smaller: bool) -> tuple[bool, str]:
    if champion is None:
        return True, "the first of its name"
    if str(champion.version) == version:
        return True, "it is the champion already"
    if champion.tags.get(DIGEST) != new.get(DIGEST) or metric not in champion.tags:
        return False, f"version {champion.version} was validated on other data"
    old_value, value = float(champion.tags[metric]), float(new[metric])
    better = value < old_value if smaller else value > old_value
    verb = "beats" if better else "does not beat"
    name, old = metric.removeprefix("bigstep."), f"{format_score(old_value)} of version {champion.version}"
    return better, f"{name} {format_score(value)} {verb} {old}"


def find_version(client: "MlflowClient", address: str, option: str) -> "ModelVersion":
    """Return the version that ``name``, ``models:/name/1``, ``models:/name@alias`` or ``runs:/id/model`` means.

    Args:
        client: of the store.
        address: what the user wrote.
        option: where, for the message.

    Raises:
        ModelError: it is no such address, or the run has no registered model.
        MlflowException: there is no such model.
    """
    scheme, _, rest = address.rpartition(":/")
    name, _, number = rest.partition("/")
    if scheme == "runs":
        found = client.search_model_versions(f"run_id='{name}'") if name.isalnum() else []
        if found:
            return found[0]
        raise ModelError(
            f"{option}: expected a run with a registered model, got {address}, which has none; name a registered model"
        )
    if number.isdecimal():
        return client.get_model_version(name, number)
    name, _, alias = rest.partition("@")
    if "/" in rest:
        raise ModelError(f"{option}: expected NAME, models:/NAME/VERSION or models:/NAME@ALIAS, got {address}; correct it")
    return client.get_model_version_by_alias(name, alias or "champion")
