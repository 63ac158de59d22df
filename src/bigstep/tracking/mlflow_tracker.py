"""A run in MLflow 3."""

import contextlib
import getpass
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from bigstep.runtime.environment import DVC_EXPERIMENT, read_variable
from bigstep.tracking.database import open_client
from bigstep.tracking.mlflow_internals import known_packages
from bigstep.tracking.runs_view import open_viewed_experiment
from bigstep.tracking.sealing import seal_source
from bigstep.tracking.tracker import DatasetRecord, Metric, ModelProgram, ModelRecord, finite, split_params

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["MODEL_URI_TAG", "MlflowTracker", "git_tags", "open_run", "run_exists"]

T = TypeVar("T")
METRICS_A_MESSAGE, PARAMS_A_MESSAGE = 1000, 100  # MLflow's limits
DIGEST_LENGTH = 36  # MLflow's limit
MODEL_URI_TAG, KEY_TAG, POINTER_TAG = "bigstep.model_uri", "bigstep.run_key", "bigstep.run_id"


def open_run(
    uri: str, *, run_id: str | None, experiment: str, name: str | None = None, key: str | None = None
) -> "MlflowTracker":
    """Continue the run ``run_id``, or start one.

    Args:
        uri: of the tracking store.
        run_id: of the run to continue; None starts a new one.
        experiment: that a new run belongs to.
        name: of a new run; None lets MLflow choose.
        key: tag of a new run; a run that already has it was started by a process that was then killed, and is used.
    """
    client = open_client(uri)
    if run_id is None or not run_exists(client, run_id):
        experiment_id = open_viewed_experiment(client, uri, experiment)
        known = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1) if key else []
        tags = {**_origin(), **({KEY_TAG: key} if key else {})}
        run = known[0] if known else client.create_run(experiment_id, tags=tags, run_name=name)
        return MlflowTracker(client, uri, str(run.info.run_id))
    client.update_run(run_id, status="RUNNING")
    return MlflowTracker(client, uri, run_id)


@final
class MlflowTracker:
    """Writes to one run through MLflow's client; the run stays open until :meth:`finish`."""

    def __init__(self, client: "MlflowClient", uri: str, run_id: str) -> None:
        """Write to ``run_id`` in the store ``uri``."""
        self.client = client
        self.uri = uri
        self.run_id = run_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log new parameters; MLflow refuses changes, so changed ones become tags."""
        from mlflow.entities import Param

        new, changed = split_params(params, self.client.get_run(self.run_id).data.params)
        for part in _parts(new.items(), PARAMS_A_MESSAGE):
            self.client.log_batch(self.run_id, params=[Param(key, value) for key, value in part])
        self.set_tags(changed)

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        """Send the finite values, up to a thousand a message."""
        from mlflow.entities import Metric as MlflowMetric

        for part in _parts(finite(metrics), METRICS_A_MESSAGE):
            rows = [MlflowMetric(item.key, item.value, item.timestamp, item.step) for item in part]
            self.client.log_batch(self.run_id, metrics=rows)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        for part in _parts(tags.items(), PARAMS_A_MESSAGE):
            self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in part])

    def log_dataset(self, dataset: DatasetRecord) -> None:
        """Log the data as an MLflow dataset input with its digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(
            name=dataset.name,
            digest=dataset.digest[:DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": dataset.source}),
            profile=json.dumps(dict(dataset.profile)),
        )
        tags = [InputTag("mlflow.data.context", dataset.context)]
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(entity, tags)])

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file, if it exists."""
        if path.is_file():
            self.client.log_artifact(self.run_id, str(path), folder or None)

    def log_program(self, model: ModelRecord, program: ModelProgram) -> None:
        """Log an exported model, and record its place in a tag."""
        import mlflow
        import numpy as np
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, DataType, Schema, TensorSpec

        from bigstep.tracking import model_export

        dtype = np.dtype(program.sample_dtype)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(dtype, (-1, *program.sample_shape))]),
            outputs=Schema([ColSpec(DataType.float, name) for name in model.classes]),
        )
        packages = ("mlflow", "numpy", "torch")
        with known_packages(packages), mlflow.start_run(run_id=self.run_id):
            info = Model.log(
                artifact_path=None,
                name="model",
                flavor=model_export,
                program=program.path,
                torch_version=program.torch_version,
                names=model.classes,
                signature=signature,
                input_example=np.asarray(model.example, dtype),
                validate_serving_input=False,  # it reads the model back and runs it, which takes as long as exporting it
                requirements=[f"{name}=={_public(name)}" for name in packages],
                metadata={"classes": list(model.classes), "task": program.task, "output": program.output, **model.tags},
            )
        self.client.update_run(self.run_id, status="RUNNING")
        source = str(info.model_uri)
        self.set_tags({**model.tags, **seal_source(self.client, source), MODEL_URI_TAG: source})

    def is_there(self) -> bool:
        """Return whether the run still exists."""
        return run_exists(self.client, self.run_id)

    def take_over(self, run_id: str) -> None:
        """Record that this run holds the history of ``run_id``, which was killed, and end that one."""
        self.set_tags({"continues": run_id})
        if not run_exists(self.client, run_id):
            return
        self.client.set_tag(run_id, "continued_by", self.run_id)
        if self.client.get_run(run_id).info.status == "RUNNING":
            self.client.set_terminated(run_id, "KILLED")

    def point_from(self, run_id: str) -> None:
        """Record in the run ``run_id`` that this one has the history."""
        if not run_exists(self.client, run_id):
            return
        experiment = self.client.get_experiment(self.client.get_run(self.run_id).info.experiment_id)
        link = f"[{self.run_id}](#/experiments/{experiment.experiment_id}/runs/{self.run_id})"
        text = f"The results are in run {link} of experiment {experiment.name}; `--experiment-name` names another."
        self.client.set_tag(run_id, POINTER_TAG, self.run_id)
        self.client.set_tag(run_id, "mlflow.note.content", text)

    def finish(self, status: str) -> None:
        """End the run; does nothing if it has this status already."""
        if self.client.get_run(self.run_id).info.status != status:
            self.client.set_terminated(self.run_id, status)


def run_exists(client: "MlflowClient", run_id: str) -> bool:
    """Return whether the store has a run, and it was not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False  # the store was deleted or is another one: a new run is started
        raise


def _origin() -> dict[str, str]:
    tags = {"mlflow.source.type": "PROJECT", "mlflow.source.name": "bigstep"}
    with contextlib.suppress(KeyError, OSError):  # a user without a name, as in a container
        tags["mlflow.user"] = getpass.getuser()
    experiment = read_variable(DVC_EXPERIMENT)
    return {**tags, **({DVC_EXPERIMENT: experiment} if experiment else {})}


def git_tags(root: Path) -> dict[str, str]:
    """Return the git revision of ``root``, and whether anything differed from it."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.git.commit": commit.stdout.strip(), "bigstep.git_dirty": str(bool(changes.stdout)).lower()}


def _public(package: str) -> str:
    return version(package).partition("+")[0]


def _parts(items: Iterable[T], size: int) -> Iterator[list[Any]]:
    rest = list(items)
    for start in range(0, len(rest), size):
        yield rest[start : start + size]
