"""What a stage started with: its parameters, its code and its data, as dvc.yaml lists them.

DVC hashes them before it starts a stage and again after it. What changed in between would be recorded with a result that
was computed from the former state, so a stage compares before it leaves its outputs.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigstep.atomic_files import read_json
from bigstep.config.lock_files import read_lock
from bigstep.config.yaml_files import read_plain
from bigstep.errors import ProjectError
from bigstep.runtime.environment import INPUTS, is_set, read_variable

__all__ = ["StageInputs", "check_earlier_stages", "flat_text", "read_inputs"]

BYTECODE = "__pycache__"  # which an import writes, and .dvcignore leaves out
MAX_NAMED = 3  # differences in an error's line
EARLIER = {"train": ("prepare",), "evaluate": ("prepare", "train")}


@dataclass(frozen=True)
class StageInputs:
    """The parameters of a stage as ``section.key``, the MD5 of each file, and a signature of each folder."""

    root: Path
    stage: str
    params: dict[str, str]
    files: dict[str, str]

    def check_code(self, started: float) -> None:
        """Check that no Python file was written since ``started`` (``time.time()`` before any was imported).

        Raises:
            ProjectError: one was, so that it is not known which text of it runs.
        """
        paths = [self.root / name for name in sorted(self.files) if name.endswith(".py")]
        now = time.time()  # a time in the future says nothing
        changed = [path for path in paths if path.is_file() and started < path.stat().st_mtime <= now]
        if changed:
            raise ProjectError(
                f"code of stage {self.stage}: expected no change while the stage starts, got a write to {changed[0]}; "
                "run the same command again"
            )

    def check(self) -> None:
        """Compare with what is on disk now.

        Raises:
            ProjectError: something changed while the stage ran.
        """
        now = read_inputs(self.root, self.stage)
        changed = [*_differences(self.params, now.params), *_changed(self.files, now.files)]
        if changed:
            raise ProjectError(
                f"dependencies of stage {self.stage}: expected no change while the stage runs, got changes of "
                f"{_shown(changed)}; restore it and run the same command to keep this result, or run the "
                "command with the change"
            )


def read_inputs(root: Path, stage: str, content: Mapping[str, Any] | None = None) -> StageInputs:
    """Read what dvc.yaml lists for ``stage``; nothing if there is no dvc.yaml.

    Args:
        root: of the project, or of the private copy that the stage runs in.
        stage: its name in dvc.yaml.
        content: of params.yaml, if it was read before.

    Raises:
        ConfigError: params.yaml or dvc.yaml cannot be read.
    """
    if not (root / "dvc.yaml").exists():
        return StageInputs(root, stage, {}, {})
    content = read_plain(root / "params.yaml") if content is None else content
    listed = (read_plain(root / "dvc.yaml").get("stages") or {}).get(stage) or {}
    params = flat_text({section: content.get(section) or {} for section in listed.get("params", [])})
    data_root = str((content.get("data") or {}).get("root", "data/raw"))
    names = [str(name).replace("${data.root}", data_root) for name in listed.get("deps", [])]
    return StageInputs(root, stage, params, {name: _signature(root / name) for name in names})


def check_earlier_stages(root: Path, stage: str, content: Mapping[str, Any]) -> None:
    """Check that the stages before ``stage`` ran with these parameters.

    DVC reads params.yaml once more for each stage: after an edit between two stages, the later one would log the new values
    with what the earlier one made from the former.

    Args:
        root: of the project, or of the private copy that the stage runs in.
        stage: its name in dvc.yaml.
        content: of params.yaml, as the stage has read it.

    Raises:
        ConfigError: dvc.lock cannot be read.
        ProjectError: a parameter differs.
    """
    for name in EARLIER.get(stage, ()):
        before = _ran_with(root, name)
        sections = {key.partition(".")[0] for key in before}
        changed = [*_differences(before, flat_text({section: content.get(section) or {} for section in sections}))]
        if changed:
            raise ProjectError(
                f"params.yaml: expected what stage {name} ran with, but {_shown(changed)}; "
                "restore it, or run all stages with the change"
            )


def _ran_with(root: Path, stage: str) -> dict[str, str]:
    """Return the parameters of a stage that ran: as it left them for a `bigstep` above DVC, or as DVC recorded them."""
    note, lock = Path(read_variable(INPUTS) or root, f"{stage}.json"), root / "dvc.lock"
    if is_set(INPUTS) and note.exists():
        return dict(read_json(note)["params"])
    recorded = (read_lock(lock).get("stages") or {}) if lock.exists() else {}
    return flat_text(((recorded.get(stage) or {}).get("params") or {}).get("params.yaml") or {})


def flat_text(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return each value as JSON, by ``section.key``."""
    return {
        f"{section}.{key}": json.dumps(value, sort_keys=True, default=str)
        for section, values in sections.items()
        for key, value in values.items()
    }


def _shown(changed: list[str]) -> str:
    more = f" and {len(changed) - MAX_NAMED} more" if len(changed) > MAX_NAMED else ""
    return f"{', '.join(changed[:MAX_NAMED])}{more}"


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            yield f"{name} was {before.get(name, 'not there')} and is {now.get(name, 'not there')}"


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    return (f"{name} changed" for name in sorted({*before, *now}) if before.get(name) != now.get(name))


def _signature(path: Path) -> str:
    """Return the MD5 of a file, as dvc.lock has it; of a folder, a hash over name, size and time of each file."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, _md5).hexdigest()
        digest = _md5()
        for item in sorted(path.rglob("*")):
            status = item.stat() if item.exists() else item.lstat()  # of what a link leads to, as DVC hashes it
            if not item.is_dir() and BYTECODE not in item.parts:
                digest.update(f"{item.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="replace"))
        return digest.hexdigest()
    except OSError:
        return "not readable"


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)
