"""Memory that really runs out, and the effective batch under any budget."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigstep import cli
from bigstep.config.params import parse_params
from bigstep.config.yaml_files import apply_overrides, parse_overrides, read_yaml, write_yaml
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.memory.measurement import resident_bytes
from bigstep.planning.memory_budget import OVERHEAD_BYTES
from bigstep.planning.plan import find_plan
from bigstep.planning.slicing_choice import choose_slicing
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.failed_allocation import failed_allocation_line
from bigstep.stages import stage_runner
from bigstep.stages import train as stage
from conftest import ROOT, copy_project

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # MLflow's own, in a thread that would retry
TRIES, QUICK_TRIES = 20, 8  # `make faults` makes all


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on address space are Linux's")
def test_limited_processes_recover_or_begin_smaller(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    count = TRIES if pytestconfig.getoption("--rounds", default=None) else QUICK_TRIES
    command = [sys.executable, str(ROOT / "tests" / "limited.py"), str(tmp_path), str(count)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    tries = [json.loads(line) for line in output.stdout.splitlines()]
    assert len(tries) == count
    for found in tries:
        assert found["codes"][-1] == 0, (found, output.stderr)
        assert all(code < 0 for code in found["codes"][:-1])
        assert found["ended_with"] < 256
        assert found["failures"] or len(found["codes"]) > 1
        assert found["losses"] == pytest.approx([2.39689, 2.33812], rel=1e-4)


def _allocate_too_much(*_: object) -> int:
    return torch.empty(2**55).numel()


def test_memory_that_runs_out_anywhere_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy_project(tmp_path / "project"))
    assert stage_runner.run_stage("prepare", _allocate_too_much) == 2
    monkeypatch.setitem(cli.COMMANDS, "status", _allocate_too_much)
    assert cli.main(["status"]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith("bigstep: memory: expected model and data to fit, got:")
        assert line.endswith("use a smaller model or batch, or close other programs")


@pytest.mark.parametrize(
    "error",
    [
        KeyError("out of memory"),
        RuntimeError("shapes differ"),
        RuntimeError("3 labels are out of memory bank range"),
        OSError("not enough memory"),
    ],
)
def test_other_errors_are_no_failed_allocations(error: Exception) -> None:
    assert failed_allocation_line(error) is None


def test_bug_10_predicting_and_planning_leave_random_numbers_and_files_alone(digits: Store, tmp_path: Path) -> None:
    params = parse_params({"train": {"effective_batch_size": 20}, "hardware": {"micro_batch_size": "auto"}})
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 # the global state is what is looked at
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    fit = choose_slicing(ProjectPaths(tmp_path), params, digits)
    assert fit.batch.effective_batch_size == 20
    assert fit.predicted_bytes > 0
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002
    assert [path.name for path in tmp_path.iterdir()] == [".bigstep"]
    assert choose_slicing(ProjectPaths(tmp_path), params, digits) == fit


def test_bug_8_the_effective_batch_is_as_asked_for_four_pairs_of_batch_and_budget(
    digits: Store, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    root = copy_project(tmp_path / "project", empty_database)
    (root / "data" / "prepared").symlink_to(digits.paths.manifest.parent)
    original = read_yaml(root / "params.yaml")
    quick = ["hardware.micro_batch_size=auto", "train.epochs=1", "model.width=8", "train.warmup_fraction=0"]

    def params(*texts: str) -> dict[str, Any]:
        return apply_overrides(read_yaml(root / "params.yaml"), parse_overrides([*quick, *texts]))

    write_yaml(original, root / "params.yaml")
    project = ProjectPaths(root)
    plan = find_plan(project, parse_params(params("train.effective_batch_size=400")), digits, seconds=8)
    chance = random.Random(0)
    growth = [rung.resident_growth_bytes for rung in plan.ladders[0].rungs]
    monkeypatch.chdir(root)
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    for number in range(4):
        effective = chance.randint(1, 400)
        room = chance.randint(min(growth), 2 * max(growth))
        budget = (resident_bytes() + OVERHEAD_BYTES + room) // 2**20 + 64
        content = params(
            f"train.effective_batch_size={effective}", f"hardware.memory_budget={budget}MiB", f"train.seed={number}"
        )
        write_yaml(content, root / "params.yaml")
        assert stage.main() == 0
        experiment = client.get_experiment_by_name("bigstep")
        run = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=1)[0]
        assert run.data.params["train.effective_batch_size"] == str(effective)
        micro, steps = (int(run.data.tags[f"bigstep.{key}"]) for key in ("micro_batch_size", "accumulation_steps"))
        assert (steps - 1) * micro < effective <= steps * micro
        updates = json.loads((root / "results/train/metrics.json").read_text(encoding="utf-8"))["num_updates"]
        assert updates == -(-len(digits.indices(Split.TRAIN)) // effective)
