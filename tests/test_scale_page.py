"""docs/scale.md: its table is the step model's, the model predicts what was published, and its examples run."""

import os
import runpy
import subprocess
import sys

import pytest

from dvc_dependencies import ROOT

MODEL = runpy.run_path(str(ROOT / "benchmarks" / "scale" / "step_model.py"))


def test_published_figures_are_predicted_within_two_percent() -> None:
    for predicted, published in MODEL["check_published"]():
        assert predicted == pytest.approx(published, rel=0.02)


def test_the_page_has_the_table_of_the_model() -> None:
    assert "\n".join(MODEL["table"]()) in (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def test_the_best_number_of_micro_batches_is_where_time_is_least() -> None:
    noise, samples, micro, exchange = 32_000, 128, 0.026, 0.9

    def seconds(count: int) -> float:
        steps = 1 + noise / (samples * count)
        return steps * MODEL["step_seconds"](count, micro, exchange)

    best = min(range(1, 500), key=seconds)
    assert best == pytest.approx(MODEL["best_micro_batches"](noise, samples, micro, exchange), abs=1)
    assert MODEL["least_micro_batches"](0.9, micro, exchange) == next(
        count for count in range(1, 1000) if count * micro >= 0.9 * MODEL["step_seconds"](count, micro, exchange)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_loop", "fsdp2"])
def test_the_examples_run_and_are_exact(name: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / "processes" / f"{name}.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "off by" in done.stdout
