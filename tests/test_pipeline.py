"""The whole road, with the real engines: DVC, MLflow, git, processes that are killed."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bigstep.config.yaml_files import apply_overrides, parse_overrides, read_yaml, write_yaml
from bigstep.data.store import Store
from bigstep.project.attempts import attempt_key
from bigstep.project.parameters import check_params, learning_values
from bigstep.runs.low_memory_marker import mark_path
from bigstep.runtime.device import usable_cores
from bigstep.stages import train as stage
from browser import look
from conftest import copy_project, random_images, read_rows
from images import add_damaged, encode
from serving import unused_port, wait_for_port
from waiting import wait_until

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent


def _environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_", "BIGSTEP_"))}
    quick = {"MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1", "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t"}
    committer = {"GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return {**kept, **quick, **committer, "COLUMNS": "200", **extra}


def _run(root: Path, *command: str, code: int = 0, **extra: str) -> str:
    finished = subprocess.run(
        command,
        cwd=root,
        env=_environment(**extra),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        check=False,
    )
    assert finished.returncode == code, finished.stdout[-4000:]
    return finished.stdout


def _repro(root: Path, *options: str, code: int = 0, **extra: str) -> str:
    return _run(root, "python", "pipelines/repro.py", *options, code=code, **extra)


def _set(root: Path, *texts: str) -> None:
    write_yaml(apply_overrides(read_yaml(root / "params.yaml"), parse_overrides(texts)), root / "params.yaml")


def _client(root: Path) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def _runs(root: Path) -> list[Any]:
    client = _client(root)
    experiments = [item.experiment_id for item in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["attributes.start_time ASC"]))


def _experiment(root: Path, run: Any) -> str:
    return str(_client(root).get_experiment(run.info.experiment_id).name)


def _history(root: Path, run: Any, key: str) -> list[int]:
    return sorted(item.step for item in _client(root).get_metric_history(run.info.run_id, key))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A project in which the pipeline has run once."""
    root = copy_project(tmp_path_factory.mktemp("pipeline") / "project", empty_database)
    output = _repro(root)
    assert "test_accuracy" in output
    assert "champion" in output
    _run(root, "git", "add", "-A")
    _run(root, "git", "commit", "-q", "-m", "trained")
    return root


def _tree(root: Path) -> dict[str, bytes]:
    names = [
        "params.yaml",
        "dvc.lock",
        *(str(path.relative_to(root)) for path in (root / "results").rglob("*") if path.is_file()),
    ]
    return {name: (root / name).read_bytes() for name in names}


def test_the_first_run_leaves_results_and_one_whole_history(trained: Path) -> None:
    (run,) = _runs(trained)
    metrics = json.loads((trained / "results/evaluate/metrics.json").read_text(encoding="utf-8"))
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_accuracy"] == metrics["test_accuracy"]
    assert run.data.params["train.learning_rate"] == "0.004"
    assert run.data.params["hardware.micro_batch_size"] == "auto"
    assert (run.data.tags["bigstep.micro_batch_size"], run.data.tags["bigstep.accumulation_steps"]) == ("32", "2")
    assert _history(trained, run, "step_loss") == list(range(40))
    assert _history(trained, run, "val_loss") == [19, 39]
    assert run.inputs.dataset_inputs[0].dataset.digest == Store(trained / "data/prepared").manifest.digest[:36]
    artifacts = {
        item.path
        for folder in ("", "train", "prepare", "evaluate")
        for item in _client(trained).list_artifacts(run.info.run_id, folder)
    }
    assert {"params.yaml", "dvc.lock", "prepare/skipped.csv", "train/curves.png", "evaluate/report.html"} <= artifacts
    assert run.data.tags["mlflow.source.git.commit"]
    assert run.data.tags["slice_invariant"] == "true"
    assert "every random number is keyed" in run.data.tags["slice_invariant_reason"]
    assert "effective batch of 64" in run.data.tags["bigstep.advice"]
    assert _history(trained, run, "noise_scale")
    version = _client(trained).get_model_version_by_alias("bigstep-digits", "champion")
    assert str(version.version) == run.data.tags["bigstep.model_version"]


def test_an_epoch_has_one_number_in_history_metrics_model_mlflow_and_report(trained: Path) -> None:
    (run,) = _runs(trained)
    train = trained / "results/train"
    rows = read_rows(train / "history.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    logged = _client(trained).get_metric_history(run.info.run_id, "epoch")
    assert [item.value for item in sorted(logged, key=lambda item: item.step)] == [1.0, 2.0]
    best = min(rows, key=lambda row: float(row["val_loss"]))["epoch"]
    for name, key in (("metrics.json", "best_epoch"), ("model.json", "epoch")):
        assert str(json.loads((train / name).read_text(encoding="utf-8"))[key]) == best
    assert f"<th>best epoch</th><td>{best}</td>" in (trained / "results/evaluate/report.html").read_text(encoding="utf-8")


def test_dvc_repro_again_does_nothing_in_three_seconds(trained: Path) -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        output = _run(trained, "dvc", "repro")
        times.append(time.perf_counter() - started)
        if times[-1] < 3:
            break
    assert "Data and pipelines are up to date." in output
    assert "Running" not in output
    assert min(times) < 3


def test_a_new_micro_batch_size_is_no_change_for_dvc(trained: Path) -> None:
    before = (trained / "params.yaml").read_bytes()
    _set(trained, "hardware.micro_batch_size=8", "hardware.num_workers=1", "tracking.experiment=other")
    assert "Running" not in _run(trained, "dvc", "repro")
    _set(trained, "train.effective_batch_size=null", "hardware.accumulation_steps=2")
    assert "write 16" in _repro(trained, code=2)
    (trained / "params.yaml").write_bytes(before)


def test_forcing_leaves_the_same_bytes_and_trains_every_step(trained: Path) -> None:
    before, runs = _tree(trained), len(_runs(trained))
    _run(trained, "dvc", "repro", "-f")
    assert _tree(trained) == before
    (new,) = _runs(trained)[runs:]
    assert _history(trained, new, "step_loss") == list(range(40))
    assert new.info.status == "FINISHED"


def test_mlflow_run_with_parameters_leaves_the_tree_alone_and_serves_the_model(trained: Path, tmp_path: Path) -> None:
    before, runs = _tree(trained), len(_runs(trained))
    parameters = ("-P", "learning_rate=1e-3", "-P", "accumulation_steps=8")
    _run(trained, "mlflow", "run", ".", "--env-manager", "local", "--experiment-name", "mine", *parameters)
    assert _tree(trained) == before
    assert _run(trained, "git", "status", "--porcelain") == ""
    (run,) = _runs(trained)[runs:]
    assert _experiment(trained, run) == "mine"
    given = {
        "learning_rate": "1e-3",
        "accumulation_steps": "8",
        "train.learning_rate": "0.001",
        "hardware.accumulation_steps": "8",
    }
    assert given.items() <= run.data.params.items()
    assert run.data.params["train.effective_batch_size"] == "64"
    assert run.info.status == "FINISHED"
    assert "test_accuracy" in run.data.metrics
    assert _history(trained, run, "step_loss") == list(range(40))
    (workspace,) = (path for path in (trained / ".bigstep/workspaces").iterdir() if path.is_dir())
    store, rows = Store(workspace / "data/prepared"), read_rows(workspace / "results/evaluate/predictions.csv")
    images = store.images[[int(row["index"]) for row in rows[:7]]]
    (tmp_path / "input.json").write_text(json.dumps({"inputs": images.tolist()}), encoding="utf-8")
    uri = f"sqlite:///{trained / 'mlflow.db'}"
    command = ["mlflow", "models", "predict", "-m", run.data.tags["bigstep.model_uri"], "-i", str(tmp_path / "input.json")]
    _run(trained, *command, "-t", "json", "--env-manager", "local", "-o", str(tmp_path / "out.json"), MLFLOW_TRACKING_URI=uri)
    answers = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["predictions"]
    found = np.array([[answer[str(label)] for label in range(10)] for answer in answers])
    expected = np.array([[float(row[f"p:{label}"]) for label in range(10)] for row in rows[:7]])
    assert found.shape == (7, 10)
    assert abs(found - expected).max() <= 1e-5
    assert [str(label) for label in found.argmax(axis=1)] == [row["predicted"] for row in rows[:7]]


def test_mlflow_run_of_what_is_up_to_date_is_complete_and_names_the_run_that_made_it(trained: Path) -> None:
    runs = _runs(trained)
    _run(trained, "mlflow", "run", ".", "--env-manager", "local", "--experiment-name", "mine")
    (run,) = _runs(trained)[len(runs) :]
    assert run.data.tags["bigstep.up_to_date"] == "true"
    assert run.data.tags["bigstep.produced_by"] in {old.info.run_id for old in runs}
    assert "test_accuracy" in run.data.metrics
    assert run.data.params["train.epochs"] == "2"


def _check_pointer(pointer: Any, run: Any, **given: str) -> None:
    """The run that `mlflow run` began points to that of the training, and has no numbers of its own."""
    assert {item.info.status for item in (run, pointer)} == {"FINISHED"}
    assert "test_accuracy" in run.data.metrics
    assert pointer.data.params == given
    assert pointer.data.metrics == {}
    assert pointer.data.tags["bigstep.run_id"] == run.info.run_id
    assert f"/runs/{run.info.run_id}) of experiment bigstep" in pointer.data.tags["mlflow.note.content"]


@pytest.mark.long
def test_mlflow_run_killed_in_train_goes_on_in_the_same_run_and_ends_truthfully(trained: Path) -> None:
    before = {run.info.run_id for run in _runs(trained)}
    quick = "hardware.checkpoint_interval=0.2s"
    command = ("mlflow", "run", ".", "--env-manager", "local", "-P", "epochs=24", "-P", f"overrides={quick}")
    process = subprocess.Popen(command, cwd=trained, env=_environment(), stdout=subprocess.DEVNULL)
    checkpoints = trained / ".bigstep" / "checkpoints"

    def new(experiment: str) -> list[Any]:
        return [run for run in _runs(trained) if run.info.run_id not in before and _experiment(trained, run) == experiment]

    wait_until(lambda: [*checkpoints.glob("*/step-*")] and new("bigstep"), "there is no checkpoint or no run", seconds=120)
    for item in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        item.kill()
    process.wait()
    (begun,) = new("bigstep")
    assert begun.info.status == "RUNNING"
    assert "resuming from the checkpoint of step" in _run(trained, *command)
    (killed, ended), (run,) = new("Default"), new("bigstep")
    assert run.info.run_id == begun.info.run_id == killed.data.tags["bigstep.run_id"]
    assert killed.info.status == "KILLED"
    _check_pointer(ended, run, epochs="24", overrides=quick)
    assert run.data.params["train.epochs"] == "24"
    assert _history(trained, run, "step_loss") == list(range(480))
    _run(trained, *command)
    again = new("Default")[-1]
    assert len(new("Default")) == 3
    assert again.data.tags["bigstep.run_id"] == run.info.run_id, "what is up to date has its results in the run that made it"
    assert len(new("bigstep")) == 1


def test_mlflow_run_refuses_unknown_names_and_bad_values(trained: Path) -> None:
    command = ("mlflow", "run", ".", "--env-manager", "local")
    assert "learnin_rate" in _run(trained, *command, "-P", "learnin_rate=1", code=1)
    output = _run(trained, *command, "-P", "overrides=train.momentum=2 data.source=digits", code=1)
    assert "train.momentum: expected number >= 0 and < 1, got 2" in output


def test_batch_norm_is_named_recalibrated_and_tagged(trained: Path) -> None:
    runs = _runs(trained)
    settings = ["model.norm=batch", "model.ghost_batch_size=32", "model.batch_norm_statistics=recalibrated", "train.epochs=1"]
    options = (part for text in settings for part in ("--set", text))
    relative = "sqlite:///mlflow.db"  # of the project, not of the private copy in which the stages run
    output = _repro(trained, "--stage", "train", *options, MLFLOW_TRACKING_URI=relative)
    assert "network.features.2 (BatchNorm2d) normalises each micro-batch by its own mean and variance" in output
    assert "recalibrated: val_loss" in output
    (run,) = _runs(trained)[len(runs) :]
    assert run.data.tags["slice_invariant"] == "false"
    assert run.data.tags["slice_invariant_reason"].startswith("BatchNorm2d in network.features.2")


def test_sixteen_bits_nested_transforms_weights_from_a_file_and_a_start_that_died_before(trained: Path) -> None:
    """Four things that leave one another alone, in one training: what each says, and that it ends."""
    runs = _runs(trained)
    shutil.copyfile(trained / "results/train/model.safetensors", trained / "weights/digits.safetensors")
    nested = "{RandomChoice: {transforms: [RandomInvert, {RandomOrder: {transforms: [RandomHorizontalFlip]}}], p: [0.2, 0.8]}}"
    settings = (
        "train.seed=5",
        "train.epochs=1",
        "train.precision=bfloat16",
        f"train.augmentation=[{nested}]",
        "model.weights=weights/digits.safetensors",
        "model.freeze_backbone=true",
    )
    params = check_params(apply_overrides(read_yaml(trained / "params.yaml"), parse_overrides(settings)))
    mark = trained / ".bigstep/attempts" / f"{attempt_key(learning_values(params), '')}.memory.json"
    of_a_helper = mark_path(mark, 1)  # this training has one process
    of_a_helper.write_text('{"micro_batch_size": 32}', encoding="utf-8")
    output = _repro(trained, "--stage", "train", *(part for text in settings for part in ("--set", text)))
    (run,) = _runs(trained)[len(runs) :]
    assert run.info.status == "FINISHED"
    reason = run.data.tags["slice_invariant_reason"]
    assert run.data.tags["slice_invariant"] == "true"
    assert reason.endswith("with precision bfloat16 results agree up to rounding to 16 bits, not to the bit")
    assert f"slice-invariant up to rounding: {reason}" in output
    assert "RandomOrder" in run.data.params["train.augmentation"]
    assert "the last run was killed with little memory left at micro-batch size 32; starting with 16" in output
    assert "4 micro-batches of at most 16" in output
    assert not mark.exists()
    assert not of_a_helper.exists()
    (trained / "weights/digits.safetensors").unlink()


@pytest.mark.filterwarnings("ignore")  # the stage runs in this process
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["train.augmentation=[{RandomApply: {transforms: [{RandomCrop: {size: 12}}], p: 0.001}}]"],
            ["train.augmentation: expected transforms that accept images of shape (1, 8, 8), got from RandomCrop: "],
        ),
        (
            ["hardware.memory_budget=300MiB", "train.seed=4"],
            ["expected a step that fits hardware.memory_budget, 300 MiB, got ", "not even a single sample fits"],
        ),
    ],
    ids=["transforms", "budget"],
)
def test_what_cannot_train_is_refused_before_a_run_starts(
    settings: list[str],
    expected: list[str],
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, runs = (trained / "params.yaml").read_bytes(), len(_runs(trained))
    monkeypatch.chdir(trained)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained / 'mlflow.db'}")
    _set(trained, *settings)
    assert stage.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(text in line for text in expected), line
    assert len(_runs(trained)) == runs
    (trained / "params.yaml").write_bytes(before)


def test_a_plan_is_measured_once_and_adopted_and_small_trainings_do_not_need_it(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # newer kernels reorder more than the limit below, which is of AVX2
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    before = (trained / "params.yaml").read_bytes()
    first = _run(trained, "python", "pipelines/plan.py", "--seconds", "5")
    assert "measuring small_cnn in float32, contiguous" in first
    assert "recommended for an effective batch of 64: micro-batches of" in first
    (plan,) = (trained / ".bigstep/plans").glob("*/plan.json")
    chosen = json.loads(plan.read_text(encoding="utf-8"))["recommended"]
    assert chosen["accumulation_steps"] == -(-64 // chosen["micro_batch_size"])
    assert plan.with_suffix(".png").stat().st_size > 5000
    runs = _runs(trained)
    output = _repro(
        trained,
        "--stage",
        "train",
        "--set",
        "hardware.micro_batch_size=auto",
        "--set",
        "train.epochs=1",
        "--set",
        "train.seed=3",
        "--set",
        "hardware.memory_budget=1300MiB",
    )
    assert "measuring" not in output
    assert "2 micro-batches of at most 32" in output
    (run,) = _runs(trained)[len(runs) :]
    assert run.data.params["hardware.micro_batch_size"] == "auto"
    assert run.data.params["train.effective_batch_size"] == "64"
    assert run.data.tags["bigstep.micro_batch_size"] == "32"
    assert run.data.tags["bigstep.memory_format"] == "contiguous"
    assert run.data.metrics["peak_memory_bytes"] <= 1300 * 2**20
    # grey images lie in both layouts at once: oneDNN reorders the largest weight (295 kB), on some processors into two copies,
    # which fake tensors do not show
    measured, predicted = (run.data.metrics[key] for key in ("peak_tensor_bytes", "predicted_peak_bytes"))
    assert -1.1 <= (measured - predicted) / (128 * 64 * 9 * 4) <= 2.1, "copies of that weight"
    again = _run(trained, "python", "pipelines/plan.py", "--apply")
    assert f"hardware.memory_format is {chosen['memory_format']}" in again
    assert "measuring" not in again
    text = (trained / "params.yaml").read_text(encoding="utf-8")
    assert f"micro_batch_size: {chosen['micro_batch_size']} " in text
    assert f"memory_format: {chosen['memory_format']} " in text
    assert "# m, maximum samples per forward/backward pass" in text
    assert "Running" not in _run(trained, "dvc", "repro")
    (trained / "params.yaml").write_bytes(before)


def test_where_a_training_uses_all_cores_its_stage_exports_the_model(trained: Path) -> None:
    runs = _runs(trained)
    cores = usable_cores()
    _repro(
        trained, "--stage", "train", "--set", f"hardware.threads={cores}", "--set", "train.epochs=1", "--set", "train.seed=8"
    )
    (run,) = _runs(trained)[len(runs) :]
    journal = trained / ".bigstep/spools" / run.data.tags["bigstep.attempt"] / "journal.jsonl"
    entries = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    assert [entry["program"]["sample_shape"] for entry in entries if entry["entry"] == "model"] == [[-1, -1, 1]]
    assert "bigstep.model_uri" in run.data.tags


def _look_at_plots(folder: Path, scratch: Path, *revisions: str) -> None:
    """Every plot of dvc.yaml is drawn in a browser without network."""
    page = look((folder / "index.html").as_uri(), scratch / "plots.png", 5, "1280,3200")
    for name in ("loss", "accuracy", "confusion"):
        assert re.search(
            rf'<div id="{name}" class="vega-embed[^>]*>(?:(?!<div id=).)*<canvas [^>]*class="marks"', page, re.DOTALL
        )
    names = ("evaluate_calibration", "evaluate_confusion", "evaluate_mistakes", "train_curves")
    pictures = {f"static/{revision}_results_{name}.png" for revision in revisions for name in names}
    assert set(re.findall(r'<img src="([^"$]*)"', page)) == pictures
    assert all((folder / name).is_file() for name in pictures)


def test_dvc_commands_do_what_they_say(trained: Path, tmp_path: Path) -> None:
    assert "test_accuracy" in _run(trained, "dvc", "metrics", "show")
    before = (trained / "params.yaml").read_bytes()
    _set(trained, "train.learning_rate=0.01")
    difference = _run(trained, "dvc", "params", "diff")
    assert "train.learning_rate" in difference
    assert "0.01" in difference
    (trained / "params.yaml").write_bytes(before)
    _run(trained, "dvc", "plots", "show", "-o", "plots")
    _look_at_plots(trained / "plots", tmp_path, "workspace")
    history = trained / "results" / "train" / "history.csv"
    history.write_text("".join(history.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    _run(trained, "dvc", "plots", "diff", "HEAD", "-o", "plots")
    _look_at_plots(trained / "plots", tmp_path, "workspace", "HEAD")
    shutil.rmtree(trained / "plots")
    _run(trained, "dvc", "checkout", "--force")
    assert "train" in _run(trained, "dvc", "dag")


@pytest.mark.long
def test_dvc_experiments_lose_no_run_and_are_plotted(trained: Path, tmp_path: Path) -> None:
    before = {run.info.run_id for run in _runs(trained)}
    _run(trained, "dvc", "exp", "run", "-n", "here", "-S", "evaluate.calibration_bins=10")
    _run(trained, "git", "checkout", "-q", "--", ".")
    _run(trained, "dvc", "checkout")
    _run(trained, "dvc", "exp", "run", "--queue", "-n", "queued", "-S", "train.seed=1")
    _run(trained, "dvc", "exp", "run", "--run-all")
    new = {run.data.tags.get("DVC_EXP_NAME"): run for run in _runs(trained) if run.info.run_id not in before}
    assert set(new) == {"here", "queued"}
    assert new["here"].data.params["evaluate.calibration_bins"] == "10"
    assert new["here"].data.tags["bigstep.trained_in"] in before, (
        "only the evaluation ran, and names where the model comes from"
    )
    assert _history(trained, new["here"], "val_loss") == []
    assert _history(trained, new["queued"], "val_loss") == [19, 39]
    assert all("test_accuracy" in run.data.metrics for run in new.values())
    shown = _run(trained, "dvc", "exp", "show", "--csv")
    for name in new:
        assert str(name) in shown
    _run(trained, "dvc", "plots", "diff", "HEAD", "queued", "-o", "plots")
    _look_at_plots(trained / "plots", tmp_path, "HEAD", "queued")
    shutil.rmtree(trained / "plots")
    _run(trained, "git", "checkout", "-q", "--", ".")
    _run(trained, "dvc", "checkout")


def _image_folder(root: Path) -> Path:
    for label in range(3):
        (root / f"class {label}").mkdir(parents=True)
        for number, pixels in enumerate(random_images(30, 12 + label, 1, seed=label)):
            kind = "PNG" if number % 2 else "JPEG"
            (root / f"class {label}" / f"{number}.{kind.lower()}").write_bytes(encode(pixels // 3 + 60 * label, kind))
    return root


def test_a_folder_with_forty_damaged_files_goes_through_and_says_so(trained: Path) -> None:
    folder = _image_folder(trained / "data/raw/photos")
    bad = add_damaged(folder / "class 1", random_images(1, 8, 1)[0])
    options = ["--stage", "train"]
    options += ["--overrides", "data.source=image-folder data.root=data/raw/photos data.image_size=12 data.channels=1"]
    output = _repro(trained, *options, "--set", "train.augmentation=none", "--set", "train.epochs=4")
    assert "40 files skipped" in output
    assert "8 files that DVC cannot hash" in output
    (workspace,) = (
        path.parents[2]
        for path in (trained / ".bigstep/workspaces").glob("*/data/prepared/skipped.csv")
        if len(read_rows(path)) > 1
    )
    shown = "".join(output.split())  # the console breaks lines
    assert f"listedin{(workspace / 'data/prepared/skipped.csv').relative_to(trained)}:" in shown
    assert {row["name"] for row in read_rows(workspace / "data/prepared/skipped.csv")} == {
        path.relative_to(folder).as_posix() for path in bad
    }
    assert Store(workspace / "data/prepared").manifest.num_samples == 90
    assert "up to date" in _repro(trained, *options, "--set", "train.augmentation=none", "--set", "train.epochs=4")
    predicted = _run(trained, "python", "-c", _PREDICT, "class 2/1.png", str(workspace / "results/train"), str(folder))
    assert "class 2" in predicted
    shutil.rmtree(folder)
    _run(trained, "git", "checkout", "-q", "--", ".dvcignore")


_PREDICT = """
import sys
sys.path.insert(0, "src")
from bigstep.cli import main
raise SystemExit(main(["predict", f"{sys.argv[3]}/{sys.argv[1]}", "--model", sys.argv[2]]))
"""


def test_the_champion_answers_predict(trained: Path, tmp_path: Path) -> None:
    store = Store(trained / "data/prepared")
    (tmp_path / "digit.png").write_bytes(encode(np.kron(store.images[0], np.ones((4, 4, 1), np.uint8)), "PNG"))
    code = (
        "import sys; sys.path.insert(0, 'src'); from bigstep.cli import main; "
        "raise SystemExit([main(['predict', path]) for path in sys.argv[1:]] != [0, 2])"
    )
    output = _run(trained, "python", "-c", code, str(tmp_path / "digit.png"), "params.yaml")
    assert "digit.png: 0 0." in output
    assert "bigstep: cannot read params.yaml: " in output


def test_a_rule_broken_inside_a_stage_is_one_line_and_code_2_too(trained: Path) -> None:
    before = _tree(trained)
    (trained / "data/raw/one/only").mkdir(parents=True)
    (trained / "data/raw/one/only/a.png").write_bytes(encode(random_images(1, 8, 1)[0], "PNG"))
    output = _repro(trained, "--overrides", "data.source=image-folder data.root=data/raw/one data.image_size=8", code=2)
    assert "bigstep: classes: expected at least two, got only 'only'; add samples of another class" in output
    assert "Traceback" not in output
    assert _tree(trained) == before
    shutil.rmtree(trained / "data/raw/one")


def test_each_checkout_runs_its_own_code(trained: Path, tmp_path: Path) -> None:
    """The second checkout is run with the first one's environment, in which bigstep is installed from elsewhere."""
    other = copy_project(tmp_path / "other")
    code = other / "src/bigstep/stages/prepare.py"
    text = code.read_text(encoding="utf-8")
    code.write_text(
        text.replace("{short_source(manifest.source)}: ", "own code, {short_source(manifest.source)}: "), encoding="utf-8"
    )
    assert "own code, digits" in _run(other, "dvc", "repro", "prepare")
    assert "own code" not in _run(trained, "dvc", "repro", "-f", "prepare")
    installed = _run(other, "bigstep", "repro", code=2)
    assert "bigstep: code: expected that in" in installed
    assert "bigstep: bigstep" not in installed
    assert "python pipelines/repro.py" in installed


def test_a_missing_requirement_is_one_line(trained: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    output = _run(trained, str(tmp_path / "bare/bin/python"), "pipelines/prepare.py", code=2)
    assert "expected all requirements, got no module" in output
    assert len(output.splitlines()) == 1


@pytest.fixture
def served(trained: Path) -> Iterator[str]:
    """The project as a git address: MLflow takes file:// for a folder, so git itself serves it on loopback."""
    port = unused_port()
    options = ["--listen=127.0.0.1", f"--port={port}", "--export-all", f"--base-path={trained.parent}", "--reuseaddr"]
    daemon = subprocess.Popen(["git", "daemon", *options], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield f"git://127.0.0.1:{port}/{trained.name}"
    finally:
        daemon.terminate()
        daemon.wait()


def test_a_git_address_brings_metrics_and_model_into_the_callers_store(served: str, tmp_path: Path) -> None:
    _run(tmp_path, "mlflow", "run", served, "--env-manager", "local", "-P", "epochs=1", "-P", "micro_batch_size=64")
    pointer, run = sorted(_runs(tmp_path), key=lambda run: _experiment(tmp_path, run))
    assert [_experiment(tmp_path, item) for item in (pointer, run)] == ["Default", "bigstep"]
    _check_pointer(pointer, run, epochs="1", micro_batch_size="64")
    assert run.data.params["train.epochs"] == "1"
    assert _history(tmp_path, run, "step_loss") == list(range(20))
    assert run.data.params["hardware.micro_batch_size"] == "64"
    model = _client(tmp_path).get_model_version_by_alias("bigstep-digits", "champion")
    assert model.run_id == run.info.run_id
    assert list((tmp_path / "mlruns").rglob("model.pt2"))
