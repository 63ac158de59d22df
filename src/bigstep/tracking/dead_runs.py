"""Runs whose process has ended: found by the name of the process that writes to them, and ended."""

import contextlib
from pathlib import Path

from bigstep.runtime.environment import GIVEN_RUN, read_variable
from bigstep.runtime.process_identity import is_alive, process_name
from bigstep.tracking.database import open_client, sqlite_file, tracking_uri

__all__ = ["PROCESS", "claim_given_run", "end_dead_runs"]
PROCESS = "bigstep.process"  # tag: the process that writes to the run


def claim_given_run(root: Path) -> None:
    """Write this process's name to the run of `mlflow run`, if any, and end the runs that killed processes left RUNNING.

    The stages name themselves later; a kill before them would leave a run that looks like a living one.
    """
    given = read_variable(GIVEN_RUN)
    if not given:
        return
    with contextlib.suppress(Exception):  # whatever is wrong with MLflow, the stages report it
        open_client(tracking_uri(root)).set_tag(given, PROCESS, process_name())
        end_dead_runs(root, end=True)


def end_dead_runs(root: Path, *, end: bool) -> list[str]:
    """Return the names of runs in the project's store that a process of this machine, now dead, left RUNNING.

    Args:
        root: of the project.
        end: whether to end them as KILLED.
    """
    uri = tracking_uri(root)
    path = sqlite_file(uri)
    if path is not None and not path.exists():
        return []
    client, found = open_client(uri), []
    experiments = [item.experiment_id for item in client.search_experiments()]
    for run in client.search_runs(experiments, "attributes.status = 'RUNNING'"):
        process = run.data.tags.get(PROCESS)
        if process is not None and is_alive(process) is False:
            found.append(str(run.info.run_name))
            if end:
                client.set_terminated(run.info.run_id, "KILLED")
    return found
