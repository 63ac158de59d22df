"""`bigstep init`: a project of one's own that depends on the installed bigstep; from the checkout, and from the wheel."""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from bigstep.atomic_files import read_json
from bigstep.cli import main
from bigstep.config.yaml_files import read_plain
from bigstep.project.code_lists import check_code_list, list_path, read_code_list
from bigstep.project.dvc import find_project_root
from bigstep.runs.installed_code import refresh_code_lists
from conftest import Shared
from dvc_dependencies import ROOT, TEMPLATE, template_pipeline
from plots_page import EPOCHS, PAGE, epochs_template, named_versions


@pytest.fixture(scope="module")
def made(shared: Shared) -> Path:
    return shared("init", lambda folder: main(["init", str(folder / "demo")])) / "demo"


def test_the_files_that_a_project_starts_with_are_those_of_this_one() -> None:
    assert (TEMPLATE / "dvc.yaml.tpl").read_text(encoding="utf-8") == template_pipeline(), "run `make dependencies`"
    for name in ("params.yaml", ".dvcignore", "data/.gitignore"):
        text = (TEMPLATE / name.replace(".", "dot-", 1) if "/." in name or name[0] == "." else TEMPLATE / name).read_bytes()
        assert text == (ROOT / name).read_bytes(), "run `make dependencies`"


def test_a_new_project_has_everything_that_its_pipeline_names(made: Path) -> None:
    stages = read_plain(made / "dvc.yaml")["stages"]
    for stage in stages.values():
        names = {name.replace("${data.root}", "data/raw") for name in stage["deps"]}
        assert not [name for name in names - {"data/prepared"} if not (made / name).exists() and "results/" not in name]
    assert not [
        path for path in made.rglob("*") if path.is_file() and "{{" in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert (made / ".git").is_dir()
    assert (made / ".dvc").is_dir()
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I,D2,ANN", "--line-length", "128", "."]
    subprocess.run(ruff, cwd=made, check=True)


def test_the_page_of_dvcs_plots_has_the_scripts_that_dvc_would_load_and_each_project_has_it(made: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert len(named_versions()) == 3
    assert f"\n{', '.join(named_versions())}\n" in page, "run `make plots-page`"
    assert "src=" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    for root in (ROOT, made):
        (place,) = re.findall(r"html_template = (.*)", (root / ".dvc" / "config").read_text(encoding="utf-8"))
        assert (root / ".dvc" / place).read_text(encoding="utf-8") == page


def test_the_curves_of_dvcs_plots_have_ticks_at_whole_epochs(made: Path) -> None:
    for path in (*EPOCHS, made / ".dvc" / "plots" / "epochs.json"):
        assert path.read_text(encoding="utf-8") == epochs_template(), "run `make plots-page`"
    curves = [plot for item in read_plain(ROOT / "dvc.yaml")["plots"] if isinstance(item, dict) for plot in item.values()]
    assert {plot["template"] for plot in curves if plot["x"] == "epoch"} == {"epochs"}


@pytest.mark.parametrize("name", ["taken", "a#b", "taken/mine/deeper"])
def test_a_folder_that_cannot_be_used_is_one_line_and_nothing_is_left(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("", encoding="utf-8")
    assert main(["init", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a" in line
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "taken"]


@pytest.mark.parametrize(
    ("params", "name", "line"),
    [
        ("train: 3\n", "demo", "train: expected keys with values, got 3"),
        ("3: {a: 1}\n", "demo", "3: unknown section"),
        ("train: {epochs: 3}\n", "demo", "--from: expected files that can be copied, got [Errno 2]"),
        ("train: {epochs: 3}\n", "example/demo", "--from: expected a folder that does not hold the new project, got example"),
    ],
)
def test_an_example_that_cannot_be_used_is_one_line_and_nothing_is_left(
    params: str, name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example" / "custom").mkdir(parents=True)
    (tmp_path / "example" / "params.yaml").write_text(params, encoding="utf-8")
    (tmp_path / "example" / "custom" / "dangling").symlink_to("nowhere")
    assert main(["init", name, "--from", "example"]) == 2
    (found,) = capsys.readouterr().err.splitlines()
    assert line in found
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["custom", "dangling", "example", "params.yaml"]


def test_the_current_folder_becomes_a_project_if_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within another repository, too, whose index stays as it is."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "mine").touch()
    subprocess.run(["git", "add", "mine"], cwd=tmp_path, check=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["init", "."]) == 0
    assert "bigstep repro" in capsys.readouterr().out
    assert Path("dvc.yaml").is_file()
    assert not Path(".git").exists()
    assert find_project_root(Path.cwd()) == tmp_path / "here"
    assert subprocess.check_output(["git", "diff", "--cached", "--name-only"], cwd=tmp_path, text=True) == "mine\n"


@pytest.mark.parametrize("name", ["trial: 2", "2024", "[a\\b]"])
def test_a_name_that_means_something_in_yaml_is_the_name_in_mlproject(name: str, tmp_path: Path) -> None:
    assert main(["init", str(tmp_path / name)]) == 0
    assert read_plain(tmp_path / name / "MLproject")["name"] == name


def test_without_git_there_is_one_line_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert main(["init", "demo"]) == 2
    assert "install git" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_after_an_upgrade_the_stages_with_other_code_are_named_and_no_others(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for stage in ("prepare", "train", "evaluate"):
        text = list_path(made, stage).read_text(encoding="utf-8")
        list_path(tmp_path, stage).parent.mkdir(parents=True, exist_ok=True)
        list_path(tmp_path, stage).write_text(text, encoding="utf-8")
    before = read_code_list(tmp_path, "train")
    digest = before["training/loop.py"]
    list_path(tmp_path, "train").write_text(
        list_path(made, "train").read_text(encoding="utf-8").replace(digest, "0" * 16), encoding="utf-8"
    )
    check_code_list(tmp_path, "prepare")
    with pytest.raises(Exception, match=r"1 of \d+ files differ, such as training/loop.py.*run `bigstep repro`"):
        check_code_list(tmp_path, "train")
    refresh_code_lists(tmp_path)
    assert [record.message.split(":")[0] for record in caplog.records] == ["stage train runs again"]
    assert read_code_list(tmp_path, "train") == before


@pytest.mark.slow
def test_from_the_wheel_an_empty_folder_becomes_a_project_that_runs(tmp_path: Path) -> None:
    """Built, installed and run outside of the checkout; a change of the training's code does not prepare again."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(_source(tmp_path))], check=True
    )
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (wheel,) = tmp_path.glob("bigstep-*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    alone = subprocess.run(
        [str(python), "-m", "bigstep.cli", "init", "x"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert (alone.returncode, len(alone.stderr.splitlines())) == (2, 1), alone.stderr
    assert "pip install 'bigstep[pipeline]'" in alone.stderr
    (site / "others.pth").write_text(str(Path(torch.__file__).parents[1]), encoding="utf-8")  # torch and the others are there

    def run(*command: str, folder: Path = tmp_path / "demo") -> str:
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_", "BIGSTEP_"))}
        finished = subprocess.run(
            [str(python), "-m", *command],
            cwd=folder,
            env={**kept, "PATH": path},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout[-3000:]
        return finished.stdout

    assert "a project for bigstep" in run("bigstep.cli", "init", "demo", folder=tmp_path)
    params = tmp_path / "demo" / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("epochs: 20 ", "epochs: 1 "), encoding="utf-8")
    run("dvc", "repro")
    assert "test_accuracy" in read_json(tmp_path / "demo" / "results" / "evaluate" / "metrics.json")
    assert "3 passed" in run("pytest", "-q")
    loop = site / "bigstep" / "training" / "loop.py"
    loop.write_text(loop.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    output = run("bigstep.cli", "train")
    assert "stage train runs again" in output
    assert "Stage 'prepare' didn't change" in output
    assert "Running stage 'train'" in output


def _source(tmp_path: Path) -> Path:
    """Copy what a wheel is built of, so that nothing is built into the checkout."""
    folder = tmp_path / "source"
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, folder / name)
    return folder
