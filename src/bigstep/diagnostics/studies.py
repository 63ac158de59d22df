"""What is wrong with the studies of searches: torn journals, trials whose worker has ended."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import optuna

from bigstep.atomic_files import parse_json
from bigstep.diagnostics.finding import Problem, Quarantine
from bigstep.errors import ProjectError
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.process_identity import is_alive
from bigstep.search.storage import open_storage
from bigstep.search.trial_queue import WORKER, TrialQueue

__all__ = ["find_studies"]


def find_studies(project: ProjectPaths, aside: Quarantine) -> Iterator[Problem]:
    """Find journals of the project that cannot be read, and RUNNING trials of dead processes of this machine."""
    for path in sorted(project.search.glob("*.journal")):
        if _is_torn(path):
            yield Problem(f"{path} contains an incomplete operation", partial(_mend, path, aside))
        if not path.exists() or _is_torn(path):
            continue  # set aside, or not mended
        try:
            dead = _dead_trials(path)
        except ProjectError as error:
            yield Problem(str(error), partial(aside.move, path))
            continue
        if dead:
            yield Problem(f"trials marked RUNNING whose worker no longer exists: {', '.join(dead)}", partial(_sweep, path))


def _is_torn(path: Path) -> bool:
    """Return whether a line is not an operation; reading changes nothing."""
    content = path.read_bytes()
    try:
        return not content.endswith(b"\n" if content else b"") or any(
            "op_code" not in parse_json(line) for line in content.splitlines()
        )
    except (ValueError, TypeError):
        return True


def _mend(path: Path, aside: Quarantine) -> str:
    try:
        open_storage(str(path))  # cuts off what is torn
    except ProjectError:
        return aside.move(path)
    return "removed; complete operations are kept"


def _ledgers(path: Path) -> list[TrialQueue]:
    storage = open_storage(str(path))
    names = optuna.get_all_study_names(storage)
    return [TrialQueue(optuna.load_study(study_name=name, storage=storage), 0, 0) for name in names]


def _dead_trials(path: Path) -> list[str]:
    found = []
    for ledger in _ledgers(path):
        for trial in ledger.trials():
            worker = trial.user_attrs.get(WORKER)
            if trial.state == optuna.trial.TrialState.RUNNING and worker is not None and is_alive(worker) is False:
                found.append(f"{ledger.study.study_name} {trial.number}")
    return found


def _sweep(path: Path) -> str:
    ended = [number for ledger in _ledgers(path) for number in ledger.reclaim_dead()]
    return f"ended: {len(ended)}; the next search retries them"
