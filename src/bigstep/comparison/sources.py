"""Where a run that is named is found: the workspace, git and DVC, or MLflow."""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from bigstep.comparison.result import FILES, RunResult, read_files, read_folder
from bigstep.config.former_keys import update_content
from bigstep.config.params import flatten, parse_params
from bigstep.config.yaml_files import read_plain
from bigstep.console import format_bytes
from bigstep.errors import ConfigError, ProjectError
from bigstep.project.stage_inputs import flat_text
from bigstep.tracking.sealing import local_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["WORKSPACE", "find_result", "other_seeds"]

WORKSPACE = "workspace"
SEED = "train.seed"
DECIDING = ("data.", "model.", "train.")  # sections that decide the result
SPEED, PEAK = "images_per_second", "peak_memory_bytes"  # metrics of a run in MLflow
WAY_OUT = f"name {WORKSPACE}, a git revision, a DVC experiment, or the id or name of an MLflow run"


def find_result(root: Path, cache: Path, name: str) -> RunResult:
    """Find a run.

    Args:
        root: of the project.
        cache: DVC's.
        name: ``workspace``; a git revision or DVC experiment; the id or the name of an MLflow run.

    Raises:
        ProjectError: there is no such run, it did not finish, or DVC's cache lacks its files.
    """
    if name in (WORKSPACE, "."):
        params = _flat(read_plain(root / "params.yaml"))
        result = read_files(name, read_folder(root), params)
    else:
        revision = _revision(root, name)
        result = _from_git(root, cache, name, revision) if revision is not None else _from_mlflow(root, name)
    if not result.metrics:
        raise ProjectError(f"{name}: expected a run with results, got none; run `bigstep repro` there, or {WAY_OUT}")
    return result


def _git(root: Path, *arguments: str) -> str | None:
    try:
        finished = subprocess.run(["git", *arguments], cwd=root, check=False, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise ProjectError("git: expected the program on PATH, which finds a revision, got nothing; install git") from None
    return finished.stdout if finished.returncode == 0 else None


def _revision(root: Path, name: str) -> str | None:
    """Return the commit of a revision, or of a DVC experiment, which is a reference of its own kind."""
    if name.startswith("-"):
        return None
    experiments = (_git(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or "").splitlines()
    for line in experiments:
        commit, _, reference = line.partition(" ")
        if reference.rpartition("/")[2] == name:
            return commit
    found = _git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    return None if found is None else found.strip()


def _from_git(root: Path, cache: Path, name: str, revision: str) -> RunResult:
    prefix = (_git(root, "rev-parse", "--show-prefix") or "").strip()

    def show(path: str) -> str | None:
        return _git(root, "show", f"{revision}:{prefix}{path}")

    lock = _yaml(show("dvc.lock"), f"dvc.lock of {name}")
    digests = {item["path"]: item.get("md5") for stage in (lock.get("stages") or {}).values() for item in stage.get("outs", [])}
    texts = {key: show(path) or _cached(cache, digests.get(path), path, name) for key, path in FILES.items()}
    params = _flat(_yaml(show("params.yaml"), f"params.yaml of {name}"))
    return read_files(name, texts, params, {"code": revision[:10]})


def _yaml(text: str | None, what: str) -> dict[str, Any]:
    try:
        content = YAML(typ="safe", pure=True).load(text or "")
    except (YAMLError, RecursionError):
        raise ProjectError(f"{what}: expected YAML, got something else; compare another revision") from None
    return content if isinstance(content, dict) else {}


def _cached(cache: Path, digest: str | None, path: str, name: str) -> str | None:
    if digest is None:
        return None
    file = cache / "files" / "md5" / digest[:2] / digest[2:]
    if not file.is_file():
        raise ProjectError(
            f"{name}: expected {path} in DVC's cache, got nothing; run `dvc fetch --all-commits` if there is a remote, "
            "else check that revision out and run `bigstep repro`"
        )
    return file.read_text(encoding="utf-8", errors="replace")


def _client(root: Path) -> "MlflowClient | None":
    """Connect to MLflow; None if there is no database yet, which connecting would create."""
    from bigstep.tracking.database import connect, sqlite_file, tracking_uri

    uri = tracking_uri(root)
    database = sqlite_file(uri)
    return connect(uri) if database is None or database.exists() else None


def _from_mlflow(root: Path, name: str) -> RunResult:
    client = _client(root)
    if client is None:
        raise ProjectError(
            f"{name}: expected one run, got no revision of this name, and there is no MLflow database; {WAY_OUT}"
        )
    run = _run(client, name)
    with tempfile.TemporaryDirectory(prefix="bigstep-compare-") as scratch:
        texts = {key: _artifact(client, run, path.removeprefix("results/"), Path(scratch)) for key, path in FILES.items()}
    result = read_files(name, texts, dict(run.data.params), _facts(run))
    return result if result.metrics else replace(result, metrics=run.data.metrics)  # of a trial, which no test judges


def _run(client: "MlflowClient", name: str) -> "Run":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(name)
    except MlflowException:
        experiments = [item.experiment_id for item in client.search_experiments()]
        wanted = name.replace("'", "")
        found = client.search_runs(experiments, f"attributes.run_name = '{wanted}'", max_results=2)
    if len(found) == 1:
        return found[0]
    count = "no run" if not found else "several runs"
    raise ProjectError(f"{name}: expected one run, got {count} of this name; {WAY_OUT}")


def _artifact(client: "MlflowClient", run: "Run", path: str, scratch: Path) -> str | None:
    from mlflow.exceptions import MlflowException

    local = local_folder(run.info.artifact_uri)
    try:
        found = local / path if local is not None else Path(client.download_artifacts(run.info.run_id, path, str(scratch)))
    except (MlflowException, OSError):
        return None
    return None if not found.is_file() else found.read_text(encoding="utf-8", errors="replace")


def _flat(content: Mapping[str, Any]) -> dict[str, str]:
    """Return every parameter as MLflow has it, defaults included; of a file that this version cannot read what it says."""
    known = {name: dict(values) if isinstance(values, Mapping) else values for name, values in content.items()}
    try:
        update_content(known)
        return {key: str(value) for key, value in flatten(parse_params(known, "params.yaml")).items()}
    except ConfigError:
        return {key: str(json.loads(value)) for key, value in flat_text(known).items()}


def other_seeds(root: Path, params: Mapping[str, str], metric: str) -> list[float]:
    """Return ``metric`` of every finished run that differs from ``params`` in its seed only, as far as MLflow here knows.

    Raises:
        ProjectError: MLflow does not answer.
    """
    client = _client(root)
    if client is None:
        return []
    experiments = [item.experiment_id for item in client.search_experiments()]
    deciding = {key: value for key, value in params.items() if key.startswith(DECIDING) and key != SEED}
    found: dict[str, float] = {}
    for run in client.search_runs(experiments, "attributes.status = 'FINISHED'", max_results=1000):
        same = all(run.data.params.get(key) == value for key, value in deciding.items())
        if same and SEED in run.data.params and metric in run.data.metrics:
            found.setdefault(run.data.params[SEED], run.data.metrics[metric])
    return list(found.values())


def _facts(run: "Run") -> dict[str, str]:
    facts = {}
    if run.info.start_time and run.info.end_time:
        facts["seconds"] = f"{(run.info.end_time - run.info.start_time) / 1000:.0f}"
    if SPEED in run.data.metrics:
        facts["samples/s"] = f"{run.data.metrics[SPEED]:,.0f}"
    if PEAK in run.data.metrics:
        facts["peak memory"] = format_bytes(run.data.metrics[PEAK])
    commit = run.data.tags.get("mlflow.source.git.commit") or run.data.tags.get("bigstep.git_commit")
    return facts | ({"code": commit[:10]} if commit else {})
