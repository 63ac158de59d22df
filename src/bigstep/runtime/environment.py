"""Every environment variable that bigstep reads or sets, each with its reason. No other module uses ``os.environ``.

Nothing is set when bigstep is imported. The entry points (the command, the stages, the workers) call :func:`guard_libraries`
before MLflow or DVC is imported; a program that uses bigstep as a library decides on these variables itself.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "DVC_EXPERIMENT",
    "DVC_ROOT",
    "DVC_STAGE",
    "EXIT_FILE",
    "GIVEN_EXPERIMENT",
    "GIVEN_RUN",
    "GUARDS",
    "HEAP_CHOICES",
    "INPUTS",
    "RESUME_ANYWAY",
    "ROOT",
    "SERVER_GUARDS",
    "SITE_CACHE",
    "THREADS",
    "TRACKING_URI",
    "child_environment",
    "guard_libraries",
    "is_set",
    "keep_compiled_code",
    "loopback_only",
    "read_variable",
    "search_path",
]

# set by `bigstep` for the stages that `dvc` runs below it: nothing else reaches them through `dvc`
ROOT = "BIGSTEP_ROOT"  # the project that a private copy belongs to
INPUTS = "BIGSTEP_INPUTS"  # folder: each stage leaves here what it started with, to be compared with DVC's record
EXIT_FILE = "BIGSTEP_EXIT_FILE"  # a stage leaves its exit code here: `dvc` has codes of its own
RESUME_ANYWAY = "BIGSTEP_RESUME_ANYWAY"  # --ignore-code-change

# set by DVC for the stages that it runs
DVC_STAGE = "DVC_STAGE"  # name of the stage; not set in a script that was started by hand
DVC_ROOT = "DVC_ROOT"  # the parent project, in DVC's temporary experiments
DVC_EXPERIMENT = "DVC_EXP_NAME"  # each experiment has attempts of its own

# set by the user, or by `mlflow run`
TRACKING_URI = "MLFLOW_TRACKING_URI"  # MLflow's store; without it, a database in the project
GIVEN_RUN = "MLFLOW_RUN_ID"  # the run that `mlflow run` has started
GIVEN_EXPERIMENT = "MLFLOW_EXPERIMENT_ID"  # that this run belongs to
SITE_CACHE = "DVC_SITE_CACHE_DIR"  # DVC unpickles files of this folder: `bigstep` points it to one that no one else can write
THREADS = "OMP_NUM_THREADS"  # of torch, where params.yaml leaves them open
HEAP_CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")  # what glibc's heap keeps
SOCKET_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # where processes of one training listen
COMPILED_CODE = "TORCHINDUCTOR_CACHE_DIR"  # torch.compile unpickles files of this folder, by default one in /tmp
_given_folder = os.environ.get(COMPILED_CODE)  # by the user: torch sets the variable itself when its compiler is imported

GUARDS = {
    "DVC_NO_ANALYTICS": "1",  # no reports to DVC's makers
    "MLFLOW_DISABLE_TELEMETRY": "true",  # no reports to MLflow's makers; read when MLflow is imported
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # a model file must not run code
    "MLFLOW_ALLOW_MODEL_CODE_EXECUTION": "false",  # the same
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # instead of 7: the spool tries a server again that does not answer
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds, instead of 120: the same
}
"""For this process and its children; a variable that the user has set keeps its value."""

SERVER_GUARDS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # the server of `bigstep mlflow` shows runs, and executes nothing
    "MLFLOW_DISABLE_TELEMETRY": "true",  # whatever this process has
}
"""For the server of `bigstep mlflow`."""


def guard_libraries() -> None:
    """Set :data:`GUARDS`, before MLflow or DVC is imported."""
    for name, text in GUARDS.items():
        os.environ.setdefault(name, text)


def keep_compiled_code(folder: Path) -> None:
    """Make torch.compile keep its code in ``folder``, where no one else writes, unless the user has named another."""
    if _given_folder is None:
        os.environ[COMPILED_CODE] = str(folder)


@contextmanager
def loopback_only() -> Iterator[None]:
    """Within the block gloo and NCCL connect processes over the loopback interface only."""
    name = "lo" if sys.platform == "linux" else "lo0"
    before = {variable: os.environ.get(variable) for variable in SOCKET_INTERFACES}
    os.environ.update(dict.fromkeys(SOCKET_INTERFACES, name))
    try:
        yield
    finally:
        for variable, text in before.items():
            if text is None:
                del os.environ[variable]
            else:
                os.environ[variable] = text


def read_variable(name: str, default: str = "") -> str:
    """Return the value of a variable, ``default`` if it is not set."""
    return os.environ.get(name, default)


def is_set(name: str) -> bool:
    """Return whether a variable is set, to whatever value."""
    return name in os.environ


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process to start: this process's, and ``extra``."""
    return {**os.environ, **extra}


def search_path(name: str, first: str) -> str:
    """Return ``$PATH`` or ``$PYTHONPATH`` with ``first`` before the folders that it names."""
    return os.pathsep.join([first, *filter(None, [os.environ.get(name)])])
