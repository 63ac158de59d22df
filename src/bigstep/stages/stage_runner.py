"""How a stage starts and ends: validate everything, run, and turn a user's error into one line."""

import contextlib
import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigstep.atomic_files import whole_file, write_json
from bigstep.config.former_keys import update_content
from bigstep.config.params import Params, flatten
from bigstep.config.yaml_files import read_yaml
from bigstep.console import show_log
from bigstep.errors import UserError
from bigstep.project.attempts import begin_stage, find_key, finish_stage, writer_lock
from bigstep.project.code_lists import check_code_list
from bigstep.project.parameters import check_followed_by_dvc, check_params, learning_values
from bigstep.project.paths import ProjectPaths, StagePaths, find_project
from bigstep.project.stage_inputs import StageInputs, check_earlier_stages, read_inputs
from bigstep.runtime.environment import DVC_EXPERIMENT, DVC_STAGE, EXIT_FILE, INPUTS, guard_libraries, is_set, read_variable
from bigstep.runtime.failed_allocation import failed_allocation_line
from bigstep.runtime.parent_watchdog import exit_with_parent
from bigstep.runtime.stop_signals import Signals, StopRequestedError
from bigstep.tracking.delivery import Deliverer
from bigstep.user_places import user_code_line

__all__ = ["Stage", "report_user_error", "run_stage"]


@dataclass(frozen=True)
class Stage:
    """The arguments of a stage."""

    name: str
    paths: StagePaths
    project: ProjectPaths
    params: Params
    """All of params.yaml; each stage reads the sections that dvc.yaml lists for it, and those that decide no result."""
    key: str
    """Of its attempt."""
    signals: Signals
    """The signals that the process receives."""
    inputs: StageInputs
    """What was on disk when it started."""
    delivery: Deliverer | None = None
    """That sends the run to MLflow; None has a thread of this process do it."""

    @property
    def flat(self) -> dict[str, Any]:
        """The parameters as ``section.key``, for the history; no stage decides anything by it."""
        return flatten(self.params)


def run_stage(name: str, body: Callable[[Stage], None], started: float | None = None, delivery: Deliverer | None = None) -> int:
    """Run a stage in the current folder.

    Args:
        name: of the stage in dvc.yaml.
        body: what it does.
        started: ``time.time()`` before this code was imported; code written since then is refused.
        delivery: sends the run to MLflow, and is ended here; None has a thread of this process do it.

    Returns:
        The exit code: 0, that of a user's error (2 for most), or 143 and 130 after SIGTERM and SIGINT.
    """
    guard_libraries()
    signals = Signals()
    show_log()
    try:
        with signals.watched():
            exit_with_parent(signals)
            stage = _open(name, signals, delivery)
            stage.inputs.check_code(time.time() if started is None else started)
            with writer_lock(stage.project.attempts / f"{stage.key}.lock"):
                begin_stage(stage.project.attempts, stage.key, name, is_recorded=_is_recorded(stage))
                body(stage)
                stage.inputs.check()
                _hand_over(stage)
                _note_output(stage)
                finish_stage(stage.project.attempts, stage.key, name)
    except UserError as error:
        return report_user_error(error)
    except StopRequestedError as stop:
        print(f"bigstep: {stop}; run the same command to resume", file=sys.stderr)
        return _leave_code(stop.exit_code)
    except Exception as error:
        line = failed_allocation_line(error) or user_code_line(error)
        if line is None:
            raise
        return report_user_error(UserError(line))
    finally:
        if delivery is not None:
            delivery.close()
    return 0


def report_user_error(error: UserError) -> int:
    """Print one line for each problem, and leave the exit code for a `bigstep` above DVC, which has its own codes."""
    for line in str(error).splitlines():
        print(f"bigstep: {line}", file=sys.stderr)
    return _leave_code(error.exit_code)


def _is_recorded(stage: Stage) -> bool:
    """Return whether DVC recorded what this stage left when it last finished; it does so right after, if it lives."""
    noted = _note_path(stage)
    if not is_set(DVC_STAGE) or not noted.exists():
        return True
    lock = stage.paths.lock
    return lock.exists() and noted.read_text(encoding="utf-8") in lock.read_text(encoding="utf-8", errors="replace")


def _note_output(stage: Stage) -> None:
    output = stage.paths.root / "results" / stage.name / "metrics.json"
    if output.exists():
        with whole_file(_note_path(stage)) as beside:
            beside.write_text(hashlib.md5(output.read_bytes(), usedforsecurity=False).hexdigest(), encoding="utf-8")


def _note_path(stage: Stage) -> Path:
    return stage.project.attempts / f"{stage.key}.{stage.name}.md5"  # the sum that DVC writes into dvc.lock


def _hand_over(stage: Stage) -> None:
    """Leave what the stage started with for a `bigstep` above DVC, which compares it with what DVC records."""
    if is_set(INPUTS):
        with contextlib.suppress(OSError):  # the bigstep above may have been killed
            record = {"params": stage.inputs.params, "files": stage.inputs.files}
            write_json(record, Path(read_variable(INPUTS), f"{stage.name}.json"))


def _leave_code(code: int) -> int:
    if is_set(EXIT_FILE):
        with contextlib.suppress(OSError):  # the bigstep above may have been killed
            Path(read_variable(EXIT_FILE)).write_text(str(code), encoding="utf-8")
    return code


def _open(name: str, signals: Signals, delivery: Deliverer | None) -> Stage:
    paths = StagePaths(Path.cwd())
    content = read_yaml(paths.params)
    inputs = read_inputs(paths.root, name, content)
    check_code_list(paths.root, name)
    if is_set(DVC_STAGE):
        check_earlier_stages(paths.root, name, content)  # under the names that DVC compares, former ones included
    lines = update_content(content)
    if not is_set(EXIT_FILE):  # a `bigstep` above has printed them
        for line in lines:
            print(f"bigstep: {line}", file=sys.stderr)
    params = check_params(content)
    if is_set(DVC_STAGE):
        check_followed_by_dvc(params)
    project = find_project(Path.cwd())
    key = find_key(project.attempts, learning_values(params), read_variable(DVC_EXPERIMENT))
    return Stage(name, paths, project, params, key, signals, inputs, delivery)
