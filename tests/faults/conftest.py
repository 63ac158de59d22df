"""The fault suite: one test a row of the matrix, each fault asserted to have fired; `make faults` runs many rounds.

A test names its row with ``@pytest.mark.fault(number, "title", rounds=...)`` and takes ``round_number``, from which it draws
where the fault strikes. `make test` runs the first round of each row that is not ``rare``.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import copy_project
from faults.project import EndState, Project

RESULTS: dict[str, dict[str, Any]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-rounds", action="store_true", help="as many rounds of each fault as its row asks for")
    parser.addoption("--fault-results", help="file to write the count of rounds and passes of each row to")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(row, title, rounds=1): a row of the fault matrix")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("fault")
    if mark is not None and "round_number" in metafunc.fixturenames:
        rounds = mark.kwargs.get("rounds", 1) if metafunc.config.getoption("--all-rounds", default=False) else 1
        metafunc.parametrize("round_number", range(rounds))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all-rounds", default=False):
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
    for name, value in report.user_properties:
        if name == "fault" and report.when == "call":
            row = RESULTS.setdefault(value[0], {"title": value[1], "rounds": 0, "passes": 0, "notes": {}})
            row["rounds"] += 1
            row["passes"] += report.passed
        elif name == "note" and report.when == "call":
            notes = next(iter(RESULTS.values()))["notes"] if len(RESULTS) == 1 else RESULTS[value[0]]["notes"]
            notes[value[1]] = notes.get(value[1], 0) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--fault-results", default=None)
    if path and not hasattr(session.config, "workerinput"):
        Path(path).write_text(json.dumps(RESULTS, indent=1), encoding="utf-8")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A project whose data is prepared, to be copied."""
    root = copy_project(tmp_path_factory.mktemp("faults") / "prepared", empty_database)
    project = Project(root)
    project.set("train.epochs=3", "checkpoint.every=0.2s")
    project.run("dvc", "repro", "-q", "prepare")
    return root


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, EndState]:
    """A project in which a training ended that nothing happened to, and what it ended in."""
    project = Project(tmp_path_factory.mktemp("undisturbed") / "project")
    shutil.copytree(prepared, project.root, symlinks=True)
    project.run("dvc", "repro", "-q", "train")
    return project, project.end_state()


@pytest.fixture(scope="session")
def undisturbed(trained: tuple[Project, EndState]) -> EndState:
    """What a training ends in that nothing happens to."""
    return trained[1]


@pytest.fixture(scope="session")
def judged(trained: tuple[Project, EndState]) -> EndState:
    """The same with evaluation."""
    trained[0].run("dvc", "repro", "-q")
    return trained[0].end_state()


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
