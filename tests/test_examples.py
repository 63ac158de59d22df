"""The examples: each network is exact with its own data, its memory predicted, and the smallest one runs as a whole."""

import runpy
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bigstep.atomic_files import read_json
from bigstep.config.params import Params, parse_params
from bigstep.config.yaml_files import read_plain
from bigstep.data.sources import open_source
from bigstep.data.store import Store
from bigstep.data.store_writer import prepare_store
from bigstep.planning.memory_budget import predict as predict_bytes
from bigstep.project.paths import ProjectPaths
from bigstep.training.loop import take_step
from bigstep.training.setup import build_training
from bigstep.training.training_batches import TrainingBatches
from run_examples import EXAMPLES, run_example

NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/params.yaml"))
STEPS = 10
WORD_LISTS = Path("/usr/share/dict/ngerman")


def _params(project: Path, micro: int) -> Params:
    content = read_plain(project / "params.yaml")
    content.pop("search", None)
    content["train"] |= {"epochs": 1, "effective_batch_size": 64, "precision": "float64"}
    return parse_params({**content, "hardware": {"micro_batch_size": micro, "threads": 1, "memory_budget": "none"}})


def _prepare(project: Path) -> Store:
    if (project / "make_data.py").exists():
        runpy.run_path(str(project / "make_data.py"), run_name="__main__")
    data, folder = _params(project, 64).data, project / "data" / "prepared"
    folder.mkdir(parents=True)
    for _ in prepare_store(open_source(data, project / data.root, num_workers=0), data, folder):
        pass
    return Store(folder)


@pytest.fixture(params=NAMES)
def example(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of an example."""
    if request.param == "languages" and not WORD_LISTS.exists():
        pytest.skip(
            "Debian's word lists are not installed: apt-get install wamerican wdutch wfrench witalian wngerman wspanish"
        )
    shutil.copytree(EXAMPLES / request.param, tmp_path / request.param)
    monkeypatch.chdir(tmp_path / request.param)
    return tmp_path / request.param


def _trained(store: Store, params: Params) -> Tensor:
    state = build_training(store, params.batch, params, weights=None)
    for images, targets in islice(TrainingBatches(store, params.train, 64, 0).epoch(0), STEPS):
        take_step(state, params.train, images, targets, measure_memory=False)
    return torch.cat([parameter.detach().flatten() for parameter in state.classifier.parameters()])


def test_the_network_of_an_example_is_exact_and_its_memory_is_predicted(example: Path) -> None:
    store = _prepare(example)
    whole, cut = (_trained(store, _params(example, micro)) for micro in (64, 7))
    assert float((whole - cut).norm() / whole.norm()) <= 1e-9
    params = _params(example, 16)
    predicted = predict_bytes(ProjectPaths(example), params, store, params.batch).peak_bytes
    state = build_training(store, params.batch, params, weights=None)
    images, targets = next(TrainingBatches(store, params.train, 64, 0).epoch(0))
    take_step(state, params.train, images, targets, measure_memory=False)
    take_step(state, params.train, images, targets, measure_memory=True)
    assert state.peak_bytes == pytest.approx(predicted, rel=0.01)


@pytest.mark.slow
def test_the_smallest_example_runs_from_init_to_the_metrics(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    project = run_example("tabular", tmp_path, "train.epochs=2")
    assert read_json(project / "results" / "evaluate" / "metrics.json")["test_mae"] < 100
    assert "Perceptron" in capfd.readouterr().out
