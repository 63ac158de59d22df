"""State that an earlier version wrote (tests/former/COMMIT.tar.xz): each part is continued, or refused in one line."""

import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from bigstep.data.store import Store
from conftest import copy_project, read_rows
from faults.project import Project

FORMER = sorted(Path(__file__).with_name("former").glob("*.tar.xz"))
HOME = "/srv/bigstep/project"  # where the state was written
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(params=FORMER, ids=lambda path: path.name.partition(".")[0])
def former(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    """A project with the code of now, and the state of then: a killed training, a study, a registered model."""
    project = Project(copy_project(tmp_path / "project"))
    with tarfile.open(request.param) as archive:
        archive.extractall(project.root, filter="data")
    for origin in (project.root / ".bigstep").rglob("origin.json"):
        origin.write_text(origin.read_text(encoding="utf-8").replace(HOME, str(project.root)), encoding="utf-8")
    return project


def test_a_store_is_read(former: Project) -> None:
    store = Store(former.root / "data" / "prepared")
    store.verify()
    assert store.images.shape == (1797, 8, 8, 1)


def test_a_killed_training_is_resumed_when_asked(former: Project) -> None:
    resumed = former.bigstep("train", "--ignore-code-change")
    assert "resuming from the checkpoint of step" in resumed
    assert "Traceback" not in resumed
    (run,) = [run for run in former.runs() if run.data.params.get("train.seed") == "5"]
    assert run.info.status == "FINISHED"
    assert "bigstep.resumed_with_other_code" in run.data.tags
    rows = read_rows(former.root / "results" / "train" / "history.csv")
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))


@pytest.mark.long
def test_without_being_asked_it_starts_from_the_first_step(former: Project) -> None:
    output = former.bigstep("train")
    assert "started with other code" in output
    assert "resuming from" not in output
    assert not [run for run in former.runs() if run.info.status == "RUNNING"]


def test_a_spool_is_delivered(former: Project) -> None:
    before = {run.info.run_id: len(former.history(run.info.run_id)) for run in former.runs()}
    former.bigstep("doctor", "--fix", code=None)
    (run,) = [run for run in former.runs() if run.data.params.get("train.seed") == "5"]
    assert run.info.status == "KILLED"
    assert len(former.history(run.info.run_id)) > before.get(run.info.run_id, 0)
    former.bigstep("doctor", code=0)


@pytest.mark.long
def test_a_study_with_exponents_is_refused_in_one_line_and_starts_another(former: Project) -> None:
    shutil.copyfile(former.root / "params.search.yaml", former.root / "params.yaml")
    refused = former.bigstep("search", "--trials", "2", "--workers", "1", code=2)
    assert "search.study: expected a study of plain batch sizes" in refused
    assert len([line for line in refused.splitlines() if line.startswith("bigstep: ")]) == 1
    former.set("search.study=again", "search.storage=.bigstep/search/search.journal", "search.top=0")
    output = former.bigstep("search", "--trials", "2", "--workers", "1", "--warm-start", "search")
    assert "winner: trial" in output
    assert "Traceback" not in output


def test_a_registered_model_without_digests_is_refused_in_one_line(former: Project) -> None:
    Image.new("L", (8, 8), 200).save(former.root / "digit.png")
    output = former.bigstep("predict", "digit.png", code=2)
    assert "bigstep.files_sha256" in output
    assert len([line for line in output.splitlines() if line.startswith("bigstep: ")]) == 1
    assert "Traceback" not in output
