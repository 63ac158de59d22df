"""`bigstep repro --seeds N`: runs that differ by their seed only, and the spread of their scores."""

from pathlib import Path

import pytest

from bigstep.cli import main
from bigstep.commands.seeds import spread_rows
from conftest import copy_prepared


def test_the_spread_is_the_sample_standard_deviation_of_each_score() -> None:
    rows = spread_rows([{"test_accuracy": 0.9, "best_epoch": 3}, {"test_accuracy": 0.8, "best_epoch": 5}])
    assert list(rows) == ["test_accuracy"]
    assert rows["test_accuracy"] == pytest.approx((0.85, 0.0707106781, 0.8, 0.9))


@pytest.mark.parametrize(
    ("arguments", "expected"), [(["--seeds", "0"], "expected 1 to 1000"), (["--seeds", "2", "--stage", "train"], "no --stage")]
)
def test_a_number_of_seeds_that_cannot_be_is_one_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repro", *arguments]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.slow
def test_two_seeds_leave_the_project_with_its_own_and_print_both(tmp_path: Path, prepared_root: Path) -> None:
    project = copy_prepared(prepared_root, tmp_path / "project")
    project.set("train.epochs=1")
    output = project.bigstep("repro", "--seeds", "2")
    assert "train.seed 0 to 1: 2 runs" in output
    assert "test_accuracy" in output
    (copy,) = (path.parent for path in (project.root / ".bigstep" / "workspaces").glob("*/params.yaml"))
    assert "seed: 1" in (copy / "params.yaml").read_text(encoding="utf-8")
    weights = [root / "results" / "train" / "model.safetensors" for root in (project.root, copy)]
    assert weights[0].read_bytes() != weights[1].read_bytes()
