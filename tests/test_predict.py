"""`bigstep predict` with an exported model, where there is no project; and MLflow that does not answer."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigstep.atomic_files import write_json
from bigstep.commands.mlflow_ui import serve_mlflow
from bigstep.commands.predict import predict
from bigstep.commands.repro import finish_pipeline
from bigstep.config.model import ModelConfig
from bigstep.config.params import parse_params
from bigstep.errors import ProjectError
from bigstep.models.building import InputShape
from bigstep.models.model_files import ModelCard, build_classifier, save_model
from bigstep.project.paths import StagePaths
from bigstep.tracking import database
from serving import unused_port

CARD = ModelCard(
    ModelConfig(width=4).model_dump(mode="json"), ("cat", "dog"), 8, 1, (0.3,), (0.4,), "float32", 8, 0, 1, 0.5, 0.5, "d", "v"
)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder with a model of two classes, and an image beside it."""
    classifier = build_classifier(ModelConfig(width=4), InputShape(1, 8, 2), mean=(0.3,), std=(0.4,))
    save_model(classifier.network.state_dict(), CARD, tmp_path / "model")
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(tmp_path / "photo.png")
    return tmp_path


def test_an_exported_model_answers_in_any_folder_with_class_names_and_no_warning(exported: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bigstep.cli", "predict", "photo.png", "--model", "model"],
        cwd=exported,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "cat" in done.stdout
    assert "dog" in done.stdout


def test_a_name_that_is_no_utf8_costs_no_answer(exported: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    try:
        (exported / name).write_bytes((exported / "photo.png").read_bytes())
    except OSError as error:
        pytest.skip(f"this file system has no such names: {error}")
    done = subprocess.run(
        [sys.executable, "-m", "bigstep.cli", "predict", name, "photo.png", "--model", "model"],
        cwd=exported,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},  # as a terminal's is, where the locale is not C
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("\\udcff.png: ")
    assert second.startswith("photo.png: ")


def test_a_server_that_does_not_answer_is_one_line_without_its_password(
    tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "START_SECONDS", 0.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "params.yaml").write_text("data: {}\n", encoding="utf-8")
    with pytest.raises(ProjectError) as caught:
        predict(tmp_path, [exported / "photo.png"], None)
    message = str(caught.value)
    assert "MLflow is unreachable at http://127.0.0.1:9" in message
    assert "secret" not in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("uri", ["http://user:secret@127.0.0.1:9", "nosuch://user:secret@127.0.0.1:9"])
def test_what_cannot_be_served_is_one_line_without_its_password(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "START_SECONDS", 0.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ProjectError) as caught:
        serve_mlflow(tmp_path)
    assert f"{uri.partition(':')[0]}://127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("experiment", ["0", "1"], ids=["a run that points", "a given run"])
def test_a_pipeline_that_ends_when_mlflow_is_gone_has_its_results(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_RUN_ID", "a" * 32)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    monkeypatch.setenv("COLUMNS", "1000")
    write_json({"best_val_loss": 0.5, "num_updates": 3}, tmp_path / "results" / "train" / "metrics.json")
    assert finish_pipeline(tmp_path, StagePaths(tmp_path), parse_params({}), "train") == 0
    output = capsys.readouterr().out
    assert "best_val_loss" in output
    line = output.splitlines()[-1]
    assert line.startswith("MLflow is unreachable at http://127.0.0.1:9: ")
    assert line.endswith("; the run of `mlflow run` lacks these results")
    assert "secret" not in output


@pytest.mark.slow
def test_a_verification_without_mlflow_says_so_and_does_not_say_that_all_is_well(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("data: {}\n", encoding="utf-8")
    (tmp_path / "dvc.yaml").touch()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"http://user:secret@127.0.0.1:{unused_port()}"}
    command = [sys.executable, "-m", "bigstep.cli", "verify"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("bigstep: registered models could not be checked: MLflow is unreachable at http://127.0.0.1:")
    assert "secret" not in line
