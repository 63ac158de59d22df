"""The fault suite: one test a row of the matrix, each fault asserted to have fired; `make faults` runs many rounds.

A test names its row with ``@pytest.mark.fault(number, "title", rounds=...)`` and takes ``round_number``, from which it draws
where the fault strikes. `make test` runs the first round of each row that is not ``rare``, or as many as ``quick`` says.
"""

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from conftest import Shared
from faults.project import EndState, Project

RESULTS: list[Path] = []  # where the lines go, if anywhere; a round passes where all of its lines do


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, help="rounds of every fault, at most as many as its row asks for")
    parser.addoption("--fault-results", type=Path, help="file that each round adds its line to")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(row, title, rounds=1, quick=1, rare=False): a row of the fault matrix")
    if config.getoption("--rounds", default=None):
        settings.register_profile("many", parent=settings.get_profile("bigstep"), max_examples=284)
        settings.load_profile("many")
    path = config.getoption("--fault-results", default=None)
    if path is not None and not hasattr(config, "workerinput"):
        RESULTS.append(path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("fault")
    if mark is not None and "round_number" in metafunc.fixturenames:
        most = metafunc.config.getoption("--rounds", default=None) or mark.kwargs.get("quick", 1)
        metafunc.parametrize("round_number", range(min(most, mark.kwargs.get("rounds", 1))))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--rounds", default=None):
        return
    rare = [item for item in items if (mark := item.get_closest_marker("fault")) is not None and mark.kwargs.get("rare")]
    config.hook.pytest_deselected(items=rare)
    items[:] = [item for item in items if item not in rare]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("fault")
    if mark is not None:
        item.user_properties.append(("fault", [str(mark.args[0]), mark.args[1]]))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    properties = dict(report.user_properties)
    if RESULTS and "fault" in properties and (report.when == "call" or report.failed):
        row, title = properties["fault"]
        line = {"row": row, "title": title, "test": report.nodeid, "passed": report.passed, "note": properties.get("note")}
        with RESULTS[0].open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, prepared_root: Path) -> Path:
    """A project whose data is prepared, to be copied."""
    root = tmp_path_factory.mktemp("faults") / "prepared"
    shutil.copytree(prepared_root, root, symlinks=True)
    Project(root).set("train.epochs=3", "hardware.checkpoint_interval=0.2s")
    return root


@pytest.fixture(scope="session")
def end_states(prepared: Path, shared: Shared) -> Path:
    """What a training ends in that nothing happens to, and the same with evaluation."""

    def make(folder: Path) -> None:
        project = Project(folder / "project")
        shutil.copytree(prepared, project.root, symlinks=True)
        for name, stage in (("trained", "train"), ("judged", "evaluate")):
            project.run("dvc", "repro", "-q", stage)
            (folder / name).write_bytes(pickle.dumps(project.end_state()))

    return shared("end_states", make)


@pytest.fixture(scope="session")
def undisturbed(end_states: Path) -> EndState:
    """What a training ends in that nothing happens to."""
    state: EndState = pickle.loads((end_states / "trained").read_bytes())  # written above
    return state


@pytest.fixture(scope="session")
def judged(end_states: Path) -> EndState:
    """The same with evaluation."""
    state: EndState = pickle.loads((end_states / "judged").read_bytes())  # written above
    return state


@pytest.fixture
def project(prepared: Path, tmp_path: Path) -> Iterator[Project]:
    """A copy of the prepared project; no process of it may be left."""
    project = Project(tmp_path / "project")
    shutil.copytree(prepared, project.root, symlinks=True)
    yield project
    left = project.processes()
    for process in left:
        process.kill()
    assert not left, f"orphans: {left}"
    shutil.rmtree(project.root, ignore_errors=True)


@pytest.fixture(autouse=True)
def quiet_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("MLFLOW_RUN", "MLFLOW_TRACKING", "DVC_", "BIGSTEP_")):
            monkeypatch.delenv(name)
