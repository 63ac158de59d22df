"""`bigstep verify`: verify the checksums of all files that results depend on.

DVC does not: it trusts a cache object by its name and file mode, and checks out damaged bytes as up to date.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigstep.atomic_files import read_json, sha256
from bigstep.config.data import FILES
from bigstep.config.lock_files import read_lock
from bigstep.config.params import Params
from bigstep.console import console
from bigstep.data.sklearn_internals import digits_file
from bigstep.data.store import Store
from bigstep.diagnostics.state_files import is_lock
from bigstep.errors import ExitCode, ModelError, ProjectError, UserError
from bigstep.machine_output import Report, no_report
from bigstep.models.model_files import load_classifier
from bigstep.project.dvc import cache_folder
from bigstep.project.paths import ProjectPaths, StagePaths
from bigstep.runs.checkpoint_files import check_folder
from bigstep.runtime.environment import TRACKING_URI, is_set
from bigstep.tracking.sealing import SEAL_TAG, checked_copy
from bigstep.user_code import is_user_code

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["find_damage", "verify"]


def verify(root: Path, params: Params, report: Report = no_report) -> int:
    """Print what is damaged, one line each.

    Returns:
        0, or 4 where something is.

    Raises:
        ProjectError: nothing is, but not everything could be read.
    """
    damaged: list[str] = []
    unread = None
    try:
        for line in find_damage(root, params):
            console.print(line)
            damaged.append(line)
    except ProjectError as error:
        unread = error
    if unread is not None and not damaged:
        raise unread
    report({"damaged": damaged, "unread": None if unread is None else str(unread)})
    if damaged:
        console.print(f"{len(damaged)} damaged" if unread is None else f"{len(damaged)} damaged; {unread}")
        return ExitCode.DAMAGED
    console.print("all files match their recorded checksums: sources, store, checkpoints, models, DVC's cache and outputs")
    return ExitCode.OK


def find_damage(root: Path, params: Params) -> Iterator[str]:
    """Yield a line for each file that differs from what was recorded when it was written; missing files are skipped.

    Raises:
        ProjectError: MLflow does not answer, or this is no DVC project.
    """
    paths, project = StagePaths(root), ProjectPaths(root)
    if paths.prepared.exists():
        try:
            store = Store(paths.prepared)
            store.verify()
        except UserError as error:
            yield f"store: {error}"
        else:
            yield from _sources(store, project.resolve(params.data.root))
    for folder in sorted(project.checkpoints.glob("*/step-*")):
        problem = check_folder(folder)
        if problem is not None:
            yield f"checkpoint: {problem}; delete {folder}, then the previous one is used"
    if (paths.train / "model.json").exists():
        try:
            load_classifier(paths.train, code=params.model.name)
        except UserError as error:
            yield f"model: {error}"
    yield from _cache(root, paths.lock)
    yield from _registered(root)


def _registered(root: Path) -> Iterator[str]:
    """Hash the files of registered models that have a digest, if there is a store."""
    from bigstep.tracking.database import connect, tracking_uri, without_login

    if not is_set(TRACKING_URI) and not (root / "mlflow.db").exists():
        return
    from mlflow.exceptions import MlflowException

    try:
        client = connect(tracking_uri(root))
        versions = [item for item in _versions(client) if SEAL_TAG in item.tags]
    except (ProjectError, MlflowException, OSError) as error:
        cause = without_login(str(error)).splitlines()[0]
        raise ProjectError(f"registered models could not be checked: {cause}") from None
    for version in versions:
        yield from _version(client, version)


def _version(client: "MlflowClient", version: "ModelVersion") -> Iterator[str]:
    try:
        with checked_copy(client, version):
            pass
    except ModelError as error:
        yield f"registered model: {error}"


def _versions(client: "MlflowClient") -> Iterator["ModelVersion"]:
    token = None
    while True:
        page = client.search_model_versions(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _sources(store: Store, folder: Path) -> Iterator[str]:
    """Hash the files that prepare has read, wherever the source keeps them."""
    if is_user_code(store.manifest.source):
        return  # its samples are no files
    if store.manifest.source in FILES:
        expected = [(folder / name, digest) for name, digest in store.origins()]
    else:
        home = digits_file().parent if store.manifest.source == "digits" else folder
        found = {item.name: next(home.rglob(Path(item.name).name), home / item.name) for item in store.manifest.files}
        expected = [(found[item.name], item.sha256) for item in store.manifest.files]
    for path, digest in expected:
        if not path.is_file():
            yield f"source: {str(path)!r} is missing since prepare; restore it, or run `bigstep prepare --force`"
        elif sha256(path) != digest:
            yield f"source: {str(path)!r} has changed since prepare; restore it, or run `bigstep prepare --force`"


def _cache(root: Path, lock: Path) -> Iterator[str]:
    """Hash the cache objects and workspace files that dvc.lock names as outputs."""
    if not lock.exists():
        return
    if not is_lock(lock):
        yield f"lock: {lock} is damaged; `bigstep doctor --fix` repairs it"
        return
    cache = cache_folder(root) / "files" / "md5"
    for stage in (read_lock(lock).get("stages") or {}).values():
        for out in stage.get("outs") or []:
            digest = str(out.get("md5"))
            yield from _object(cache, digest, out["path"])
            yield from _workspace(root / out["path"], cache, digest)


def _object(cache: Path, digest: str, name: str) -> Iterator[str]:
    path = _path_of(cache, digest)
    if not path.is_file():
        return
    if _md5(path) != digest.removesuffix(".dir"):
        yield f"cache: {path}, of {name}, does not match its checksum; delete it, then run `bigstep repro --force`"
        return
    for entry in _entries(path) if digest.endswith(".dir") else []:
        yield from _object(cache, entry["md5"], f"{name}/{entry['relpath']}")


def _workspace(path: Path, cache: Path, digest: str) -> Iterator[str]:
    if not digest.endswith(".dir"):
        expected = {path: digest}
    elif _path_of(cache, digest).is_file():
        expected = {path / entry["relpath"]: entry["md5"] for entry in _entries(_path_of(cache, digest))}
    else:
        return
    for file, wanted in expected.items():
        if file.is_file() and _md5(file) != wanted:
            yield f"output: {file} does not match dvc.lock; run `bigstep repro --force`"


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        found = read_json(path)
    except ValueError:
        return []  # its digest differs, which is reported
    listed = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    return [entry for entry in listed if all(isinstance(entry.get(name), str) for name in ("md5", "relpath"))]


def _path_of(cache: Path, digest: str) -> Path:
    return cache / digest[:2] / digest[2:]


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
