"""Fixtures, and a police: a test that leaves an environment variable, a thread setting or a default type behind fails."""

import compileall
import csv
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from bigstep.config.data import DataConfig
from bigstep.data.sources import open_source
from bigstep.data.store import Store
from bigstep.data.store_writer import prepare_store
from bigstep.runtime.environment import guard_libraries
from bigstep.runtime.file_locks import exclusive_lock
from faults.project import Project

ROOT = Path(__file__).resolve().parents[1]
Shared = Callable[[str, Callable[[Path], object]], Path]  # the folder of a name, and what makes it

settings.register_profile("bigstep", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bigstep")
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # also in the processes that tests start: several run side by side
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
compileall.compile_dir(ROOT / "src", quiet=1)  # for hundreds of processes, in this project and in copies of it
guard_libraries()  # the tests are an entry point like the command
MAY_CHANGE = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"}

LONGEST = (
    "test_pipeline",
    "test_search_run",
    "test_invariance",
    "test_inputs",
    "test_former_versions",
    "test_search_outage",
    "test_user_code",
    "test_out_of_memory",
    "test_compiled_training",
)  # begun first, so that files side by side end together


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def library_logs_nowhere() -> None:
    """A command run in this process, by a test or a fixture, shows the library's log; each test starts without that."""
    logger = logging.getLogger("bigstep")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(autouse=True)
def no_database_of_another_test() -> None:
    """`mlflow.set_tracking_uri` writes this process's environment; each test starts with its own project's database."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    environment, threads = dict(os.environ), set(threading.enumerate())
    dtype, torch_threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    left = {name for name in set(environment) | set(os.environ) if environment.get(name) != os.environ.get(name)}
    assert not left - MAY_CHANGE - {name for name in left if name.startswith(("MLFLOW_TRACKING", "KMP_"))}
    assert torch.get_default_dtype() == dtype
    assert torch.get_num_threads() == torch_threads
    assert not [thread for thread in set(threading.enumerate()) - threads if not thread.daemon and thread.is_alive()]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Folders that the processes of a test run share: what takes seconds to make is made once, and then only read."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / "shared" / name, root / "shared" / f"{name}.done"
        with exclusive_lock(folder.with_name(f"{name}.lock")):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed to make it
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return get


def _prepare_digits(folder: Path) -> None:
    data = DataConfig()
    source = open_source(data, folder, num_workers=0)
    assert sum(1 for _ in prepare_store(source, data, folder)) == 1797


@pytest.fixture(scope="session")
def digits(shared: Shared) -> Store:
    store = Store(shared("digits", _prepare_digits))
    assert store.images.shape == (1797, 8, 8, 1)
    return store


def _make_database(folder: Path) -> None:
    code = "import sys; from bigstep.tracking.database import open_client; open_client(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, f"sqlite:///{folder / 'mlflow.db'}"], check=True, capture_output=True)


@pytest.fixture(scope="session")
def empty_database(shared: Shared) -> Path:
    """An MLflow database with its tables, to be copied."""
    return shared("database", _make_database) / "mlflow.db"


def copy_project(root: Path, database: Path | None = None) -> Path:
    """A copy of this project, a DVC project of its own with git, with quick parameters and an empty history."""
    root.mkdir()
    for name in ("src", "pipelines", "presets", "weights", "custom"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("dvc.yaml", "MLproject", "python_env.yaml", "requirements.txt", ".dvcignore", ".gitignore", "pyproject.toml"):
        shutil.copyfile(ROOT / name, root / name)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (root / "params.yaml").write_text(text.replace("epochs: 20 ", "epochs: 2 "), encoding="utf-8")
    (root / "data" / "raw").mkdir(parents=True)
    (root / "data" / "raw" / "README.md").touch()
    shutil.copytree(ROOT / ".dvc" / "plots", root / ".dvc" / "plots")
    for name in ("config", ".gitignore"):
        shutil.copyfile(ROOT / ".dvc" / name, root / ".dvc" / name)
    if database is not None:
        shutil.copyfile(database, root / "mlflow.db")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "project"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *command], cwd=root, check=True)
    return root


@pytest.fixture(scope="session")
def prepared_root(shared: Shared, empty_database: Path) -> Path:
    """A copy of this project whose data is prepared, to be copied in turn."""

    def make(folder: Path) -> None:
        Project(copy_project(folder / "project", empty_database)).run("dvc", "repro", "-q", "prepare")

    return shared("prepared", make) / "project"


def copy_prepared(prepared: Path, root: Path) -> Project:
    """A copy of a project whose data is prepared."""
    shutil.copytree(prepared, root, symlinks=True)
    return Project(root)


@pytest.fixture(scope="session")
def two_seeds(shared: Shared, prepared_root: Path) -> Path:
    """A project after `bigstep repro --seeds 2` with one epoch, and what that printed in ``output``; to be copied."""

    def make(folder: Path) -> None:
        project = copy_prepared(prepared_root, folder / "project")
        project.set("train.epochs=1")
        (folder / "output").write_text(project.bigstep("repro", "--seeds", "2"), encoding="utf-8")

    return shared("two_seeds", make)


@pytest.fixture(scope="session")
def plans(shared: Shared) -> Path:
    """A folder of measured plans that projects of the same model share: the first search measures, the next ones read."""
    return shared("plans", lambda _: None)


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    former = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(former)


def random_images(count: int, size: int, channels: int, seed: int = 0) -> np.ndarray:
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    assert images.shape == (count, size, size, channels)
    return images


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
