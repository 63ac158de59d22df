"""`bigstep repro --seeds N`: runs that differ by their seed only, and the spread of their scores."""

import math
from pathlib import Path

import pytest

from bigstep.cli import main
from bigstep.commands.seeds import _print, spread_rows


def test_the_spread_is_the_sample_standard_deviation_of_each_score() -> None:
    rows = spread_rows([{"test_accuracy": 0.9, "best_epoch": 3}, {"test_accuracy": 0.8, "best_epoch": 5}])
    assert list(rows) == ["test_accuracy"]
    assert rows["test_accuracy"] == pytest.approx((0.85, 0.0707106781, 0.8, 0.9))


def test_a_score_that_is_no_number_in_a_run_is_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    found = [{"test_own": value, "test_all": math.nan, "test_loss": 0.5} for value in (0.9, math.nan, math.inf, 0.8)]
    rows = spread_rows(found)
    assert rows["test_own"] == pytest.approx((0.85, 0.0707106781, 0.8, 0.9))
    assert all(math.isnan(value) for value in rows["test_all"])
    assert rows["test_loss"] == (0.5, 0, 0.5, 0.5)
    mean, deviation, smallest, largest = spread_rows(found[:2])["test_own"]
    assert (mean, smallest, largest) == (0.9, 0.9, 0.9)
    assert math.isnan(deviation)
    _print(found, range(4))
    printed = capsys.readouterr().out
    assert "test_own, 2 of 4 runs" in printed
    assert "test_all, 0 of 4 runs" in printed
    assert "test_loss," not in printed


@pytest.mark.parametrize(
    ("arguments", "expected"), [(["--seeds", "0"], "expected 1 to 1000"), (["--seeds", "2", "--stage", "train"], "no --stage")]
)
def test_a_number_of_seeds_that_cannot_be_is_one_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repro", *arguments]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.slow
def test_two_seeds_leave_the_project_with_its_own_and_print_both(two_seeds: Path) -> None:
    root, output = two_seeds / "project", (two_seeds / "output").read_text(encoding="utf-8")
    assert "train.seed 0 to 1: 2 runs" in output
    assert "test_accuracy" in output
    (copy,) = (path.parent for path in (root / ".bigstep" / "workspaces").glob("*/params.yaml"))
    assert "seed: 1" in (copy / "params.yaml").read_text(encoding="utf-8")
    weights = [folder / "results" / "train" / "model.safetensors" for folder in (root, copy)]
    assert weights[0].read_bytes() != weights[1].read_bytes()
