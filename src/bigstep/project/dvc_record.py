"""What DVC recorded of the stages that ran: dvc.lock and the run cache must say what the stages started with."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from bigstep.atomic_files import whole_file
from bigstep.errors import ProjectError
from bigstep.project.stage_inputs import flat_text

__all__ = ["check_record", "read_record_before"]


def read_record_before(lock: Path) -> bytes:
    """Return dvc.lock as it is before DVC runs; empty if there is no such file.

    Raises:
        ProjectError: it is no YAML, or nests too deep for DVC.
    """
    if not lock.exists():
        return b""
    text = lock.read_bytes()
    if text.strip() and _parse(text) is None:
        raise ProjectError(f"{lock} is damaged; run `bigstep doctor --fix`")
    return text


def check_record(folder: Path, notes: Path, before: bytes, find_cache: Callable[[], Path]) -> None:
    """Compare dvc.lock with the notes of the stages that ran; an entry that differs is taken out, of the run cache too.

    DVC reads params.yaml and the code again after a stage has ended, so that an edit at that moment is recorded with a
    result that it had no part in. ``before`` is dvc.lock as it was: an entry that DVC did not write now is not checked.

    Raises:
        ProjectError: an entry differs.
    """
    lock = folder / "dvc.lock"
    noted = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in notes.glob("*.json")}
    content = _load(lock) if noted else None
    if content is None:
        return
    entries, former = content.get("stages") or {}, (_parse(before) or {}).get("stages") or {}
    written = [name for name in noted if name in entries and entries[name] != former.get(name)]
    wrong = [name for name in written if _differs(entries[name], noted[name])]
    if not wrong:
        return
    cache = find_cache()
    for name in wrong:
        _forget_run(cache, entries.pop(name))
    with whole_file(lock) as beside, beside.open("w", encoding="utf-8") as file:
        YAML().dump(content, file)
    raise ProjectError(
        f"dvc.lock: expected what the stage ran with, got changes of params.yaml or the code as {', '.join(wrong)} ended; the "
        "entry was removed; run the same command again"
    )


def _differs(entry: Mapping[str, Any], note: Mapping[str, Any]) -> bool:
    params = flat_text((entry.get("params") or {}).get("params.yaml") or {})
    files = {item["path"]: item.get("md5", "") for item in entry.get("deps") or []}
    return params != note["params"] or any(
        note["files"].get(path, md5) != md5 for path, md5 in files.items() if not md5.endswith(".dir")
    )


def _forget_run(cache: Path, entry: Mapping[str, Any]) -> None:
    for path in _runs_of(cache / "runs", str(entry.get("cmd")), entry):
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other results may be there; DVC stops at an empty folder
            path.parent.rmdir()


def _runs_of(runs: Path, command: str, entry: Mapping[str, Any]) -> Iterator[Path]:
    """Find the entries of DVC's run cache that would hand out the outputs for these dependencies."""
    wanted = _essence(entry)
    for path in runs.glob("*/*/*"):
        found = _load(path) if path.is_file() else None
        with contextlib.suppress(TypeError, KeyError, AttributeError):  # damaged: DVC does not use it either
            if found is not None and found.get("cmd") == command and _essence(found) == wanted:
                yield path


def _essence(entry: Mapping[str, Any]) -> str:
    kept = {
        "params": entry.get("params"),
        "deps": {item["path"]: item.get("md5") for item in entry.get("deps") or []},
        "outs": {item["path"]: item.get("md5") for item in entry.get("outs") or []},
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def _load(path: Path) -> dict[str, Any] | None:
    try:
        return _parse(path.read_bytes())
    except OSError:
        return None


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        content = YAML(typ="safe", pure=True).load(text.decode("utf-8"))
    except (YAMLError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
