"""What changes while a stage runs is never recorded with a result that was computed without it."""

import os
import shutil
import time
from pathlib import Path

import pytest

from bigstep.errors import ProjectError
from bigstep.project.stage_inputs import INPUTS, check_earlier_stages, read_inputs
from conftest import copy_prepared
from faults.project import Project

DVC_YAML = "stages:\n  train:\n    deps:\n    - ${data.root}\n    - code.py\n    params:\n    - train\n"
slow = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    (tmp_path / "params.yaml").write_text("data: {root: raw}\ntrain: {epochs: 3, rate: 1e-3}\nevaluate: {bins: 3}\n")
    (tmp_path / "code.py").write_text("a = 1\n", encoding="utf-8")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "image").write_bytes(b"abc")
    return tmp_path


def _edit(path: Path, before: str, after: str) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "before", "after", "said"),
    [
        ("params.yaml", "epochs: 3", "epochs: 4", "train.epochs was 3 and is 4"),
        ("code.py", "1", "2", "code.py changed"),
        ("raw/image", "abc", "abcd", "raw changed"),
    ],
)
def test_a_change_of_what_the_stage_depends_on_is_refused(folder: Path, name: str, before: str, after: str, said: str) -> None:
    inputs = read_inputs(folder, "train")
    inputs.check()
    _edit(folder / name, before, after)
    with pytest.raises(ProjectError, match=said):
        inputs.check()
    _edit(folder / name, after, before)
    if name != "raw/image":  # whose time has changed
        inputs.check()


def test_a_change_behind_a_link_is_seen(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("elsewhere") / "image"
    target.write_bytes(b"abc")
    (folder / "raw" / "link").symlink_to(target)
    (folder / "raw" / "broken").symlink_to("nowhere")
    inputs = read_inputs(folder, "train")
    inputs.check()
    target.write_bytes(b"abcd")
    with pytest.raises(ProjectError, match="raw changed"):
        inputs.check()


def test_what_the_stage_does_not_read_may_change(folder: Path) -> None:
    inputs = read_inputs(folder, "train")
    _edit(folder / "params.yaml", "bins: 3", "bins: 4")
    _edit(folder / "params.yaml", "1e-3", "0.001")
    inputs.check()


def test_a_stage_refuses_what_an_earlier_one_did_not_run_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"data": {"root": "raw"}, "train": {"rate": 0.001}, "evaluate": {"bins": 3}}
    check_earlier_stages(folder, "evaluate", content)  # without a record there is nothing to compare
    (folder / "dvc.lock").write_text(
        "stages:\n"
        "  prepare: {cmd: p, params: {params.yaml: {data: {root: raw}}}}\n"
        "  train: {cmd: t, params: {params.yaml: {train: {rate: 1e-3}}}}\n"
        "  evaluate: {cmd: e, params: {params.yaml: {evaluate: {bins: 4}}}}\n",
        encoding="utf-8",
    )
    check_earlier_stages(folder, "evaluate", content)
    check_earlier_stages(folder, "train", {**content, "train": {"rate": 0.1}})
    check_earlier_stages(folder, "prepare", {})
    with pytest.raises(ProjectError, match=r'prepare ran with, but data\.root was "raw" and is "other"; restore it'):
        check_earlier_stages(folder, "train", {**content, "data": {"root": "other"}})
    with pytest.raises(ProjectError, match=r"train ran with, but train\.more was not there and is 1, train\.rate was 0\.001"):
        check_earlier_stages(folder, "evaluate", {**content, "train": {"rate": 0.1, "more": 1}})
    monkeypatch.setenv(INPUTS, str(folder))
    (folder / "train.json").write_text('{"params": {"train.rate": "0.01"}}', encoding="utf-8")
    with pytest.raises(ProjectError, match=r"train ran with, but train\.rate was 0\.01 and is 0\.001"):
        check_earlier_stages(folder, "evaluate", content)  # whatever DVC has recorded since


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prepared_root: Path) -> Project:
    """A project that trained without any change."""
    project = copy_prepared(prepared_root, tmp_path_factory.mktemp("inputs") / "project")
    project.set("train.epochs=12", "model.width=8", "train.effective_batch_size=128")
    project.run("dvc", "repro", "train")
    return project


def test_code_written_while_it_is_imported_is_refused(folder: Path) -> None:
    inputs = read_inputs(folder, "train")
    written = (folder / "code.py").stat().st_mtime
    inputs.check_code(written)
    with pytest.raises(ProjectError, match=r"got a write to .*code\.py; run the same command again"):
        inputs.check_code(written - 1)
    later = time.time() + 3600
    os.utime(folder / "code.py", (later, later))
    inputs.check_code(written - 1)  # a clock that is ahead: the time says nothing


@slow
@pytest.mark.long
def test_another_branch_while_training_is_refused_and_put_back_ends_in_seconds(
    trained: Project, tmp_path: Path, prepared_root: Path
) -> None:
    """The other branch has another learning rate, and other code."""
    project = copy_prepared(prepared_root, tmp_path / "project")
    shutil.copyfile(trained.root / "params.yaml", project.root / "params.yaml")
    commit = ("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-a", "-m", "another")
    project.run(*commit)
    project.run("git", "checkout", "-q", "-b", "other")
    _edit(project.root / "params.yaml", "learning_rate: 0.004", "learning_rate: 0.04")
    _edit(project.root / "src" / "bigstep" / "training" / "optimization.py", '"""', '"""Another. ')
    project.run(*commit)
    project.run("git", "checkout", "-q", "-")
    process = project.start("dvc", "repro", "train")
    project.until(process, lambda line: "epoch 2/12" in line or "epoch 2" in line)
    project.run("git", "checkout", "-q", "other")
    assert process.stdout is not None
    output = process.stdout.read()
    assert process.wait(60) != 0
    process.stdout.close()
    assert "expected no change while the stage runs" in output
    assert "train.learning_rate was 0.004 and is 0.04, src/bigstep/training/optimization.py changed" in output
    assert "learning_rate: 0.04\n" not in (project.root / "dvc.lock").read_text(encoding="utf-8")
    assert {run.info.status for run in project.runs()} <= {"FAILED", "KILLED"}
    project.run("git", "checkout", "-q", "-")
    started = time.monotonic()
    output = project.run("dvc", "repro", "train")
    seconds = time.monotonic() - started
    assert "resuming from the checkpoint" in output
    assert seconds < 60
    model = Path("results", "train", "model.safetensors")
    assert (project.root / model).read_bytes() == (trained.root / model).read_bytes()
    assert [run.info.status for run in project.runs()] == ["FINISHED"]


@slow
@pytest.mark.parametrize(
    ("stage", "module", "line", "edit"),
    [
        ("train", "training_curves.py", "def draw_curves(", ("learning_rate: 0.004", "learning_rate: 0.04")),
        pytest.param(
            "evaluate",
            "evaluation_plots.py",
            "def draw_confusion(",
            ("calibration_bins: 15", "calibration_bins: 16"),
            marks=pytest.mark.long,
        ),
    ],
)
def test_an_edit_while_results_are_written_ends_no_run_well(
    stage: str, module: str, line: str, edit: tuple[str, str], trained: Project, tmp_path: Path, prepared_root: Path
) -> None:
    """The project's own drawing of a picture edits params.yaml, once."""
    project = copy_prepared(prepared_root, tmp_path / "project")
    shutil.copyfile(trained.root / "params.yaml", project.root / "params.yaml")
    original = (project.root / "params.yaml").read_text(encoding="utf-8")
    assert edit[0] in original
    code = project.root / "src" / "bigstep" / "report" / module
    text = code.read_text(encoding="utf-8")
    first = (
        "import pathlib as _pathlib\n\n"
        "if not _pathlib.Path('edited').exists():\n"
        "    def _edit():\n"
        "        path = _pathlib.Path('params.yaml')\n"
        f"        path.write_text(path.read_text().replace({edit[0]!r}, {edit[1]!r}))\n"
        "        _pathlib.Path('edited').touch()\n"
        "else:\n"
        "    def _edit():\n"
        "        pass\n\n\n"
    )
    head, _, body = text.partition(line)
    signature, _, rest = body.partition('    """')
    code.write_text(f'{head}{first}{line}{signature}    _edit()\n    """{rest}', encoding="utf-8")
    output = project.bigstep(stage, code=2)
    assert "expected no change while the stage runs" in output
    runs = project.runs()
    assert [run.info.status for run in runs] == ["FAILED"]
    assert runs[0].data.tags["bigstep.stage"] == stage
    assert "champion" not in output
    (project.root / "params.yaml").write_text(original, encoding="utf-8")
    output = project.bigstep(stage)
    assert ("resuming from the checkpoint" in output) == (stage == "train")
    model = Path("results", "train", "model.safetensors")
    assert (project.root / model).read_bytes() == (trained.root / model).read_bytes()
    assert [run.info.status for run in project.runs()] == ["FINISHED"]


@slow
def test_an_edit_after_the_stage_ended_is_taken_out_of_dvcs_record(tmp_path: Path, prepared_root: Path) -> None:
    """DVC reads params.yaml once more when the stage has ended: here its last act is the edit."""
    project = copy_prepared(prepared_root, tmp_path / "project")
    project.set("train.epochs=1", "model.width=8")
    script = project.root / "pipelines" / "train.py"
    text = script.read_text(encoding="utf-8")
    edit = (
        "import atexit, pathlib\n"
        "_path = pathlib.Path('params.yaml')\n"
        "atexit.register(lambda: _path.write_text(_path.read_text().replace('learning_rate: 0.004', 'learning_rate: 0.04')))\n"
    )
    first, _, rest = text.partition("\n\n")
    script.write_text(f"{first}\n\n{edit}{rest}", encoding="utf-8")
    output = project.bigstep("train", code=2)
    assert "dvc.lock: expected what the stage ran with" in output
    assert "learning_rate: 0.04\n" not in (project.root / "dvc.lock").read_text(encoding="utf-8")
    output = project.bigstep("train")
    assert "is cached" not in output
    assert "learning_rate: 0.04\n" in (project.root / "dvc.lock").read_text(encoding="utf-8")


@slow
@pytest.mark.filterwarnings("ignore")
def test_an_edit_between_two_stages_judges_no_model_by_other_parameters(tmp_path: Path, prepared_root: Path) -> None:
    """The first act of evaluate is the edit, once."""
    project = copy_prepared(prepared_root, tmp_path / "project")
    project.set("train.epochs=1", "model.width=8")
    params, code = project.root / "params.yaml", project.root / "pipelines" / "evaluate.py"
    original = params.read_text(encoding="utf-8")
    edit = (
        "import pathlib\n"
        "if not pathlib.Path('edited').exists():\n"
        "    path = pathlib.Path('params.yaml')\n"
        "    path.write_text(path.read_text().replace('learning_rate: 0.004', 'learning_rate: 0.04'))\n"
        "    pathlib.Path('edited').touch()\n"
    )
    first, _, rest = code.read_text(encoding="utf-8").partition("\n\n")
    code.write_text(f"{first}\n\n{edit}{rest}", encoding="utf-8")
    output = project.bigstep("repro", code=2)
    assert "expected what stage train ran with, but train.learning_rate was 0.004 and is 0.04" in output
    assert "learning_rate: 0.04\n" not in (project.root / "dvc.lock").read_text(encoding="utf-8")
    assert not (project.root / "results" / "evaluate" / "metrics.json").exists()
    (run,) = project.runs()
    assert run.data.params["train.learning_rate"] == "0.004"
    params.write_text(original, encoding="utf-8")
    project.bigstep("repro")
    (run,) = project.runs()
    assert run.info.status == "FINISHED"
    assert {"train_loss", "val_loss", "epoch", "best_val_loss", "test_loss"} <= set(run.data.metrics)
