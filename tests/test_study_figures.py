"""What a study's dashboard shows of a search: what matters, in plain values, and how each trial ended."""

import math
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.params import parse_params
from bigstep.report.search_plots import draw_front, draw_landscape
from bigstep.search.optuna_dashboard import attach_file, curve_of
from bigstep.search.results.study_figures import (
    contour_figure,
    front_figure,
    importance_figure,
    importances,
    landscape_figure,
)
from bigstep.search.results.summary import plot_rows
from bigstep.search.space import EFFECTIVE, RATE, build_space
from bigstep.search.trial_record import TrialRecord

PRUNED, INFEASIBLE = (4, 9), (6,)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    """Sixteen trials: two were pruned, one exceeds the budget; the planned sizes have one value in each."""
    study, space = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)), build_space(parse_params({}))
    for number in range(16):
        trial = study.ask()
        point = space.suggest(trial)
        value = (math.log10(point[RATE]) + 2.4) ** 2 + 0.02 * math.log2(point[EFFECTIVE])
        if number in INFEASIBLE:
            trial.set_constraint("memory", 12.0)
            study.tell(trial, 9.0)
            continue
        size = 2 ** (number % 5)
        space.fix_planned(trial, BatchSizes(point[EFFECTIVE], size, max(1, point[EFFECTIVE] // size)))
        trial.set_constraint("memory", -1.0)
        TrialRecord(learning_rate=point[RATE], effective_batch_size=point[EFFECTIVE], seconds=2.0, peak_bytes=2**20).write(
            trial
        )
        trial.report(value + 1, 100)
        trial.report(value, 200)
        study.tell(trial, **({"state": TrialState.PRUNED} if number in PRUNED else {"values": value}))
    return study


def test_importance_is_that_of_what_is_searched(study: optuna.Study) -> None:
    found = importances(study)
    assert set(found) == {RATE, EFFECTIVE}
    assert found[RATE] > found[EFFECTIVE] >= 0
    assert sum(found.values()) == pytest.approx(1)
    (bars,) = importance_figure(study, "val_loss").data
    assert list(bars.y) == [EFFECTIVE, RATE], "the most important is at the top"


def test_contours_are_over_plain_values_on_logarithmic_axes(study: optuna.Study) -> None:
    figure = contour_figure(study, "val_loss")
    assert {figure.layout.xaxis.title.text, figure.layout.yaxis.title.text} == {RATE, EFFECTIVE}
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    points = next(item for item in figure.data if item.type == "scatter")
    assert {*points.x, *points.y} >= {study.best_trial.params[RATE], study.best_trial.params[EFFECTIVE]}


def test_the_landscape_tells_pruned_and_infeasible_trials_apart(study: optuna.Study, tmp_path: Path) -> None:
    rows = plot_rows(study.trials)
    assert len(rows) == 16
    traces = {trace.name: trace for trace in landscape_figure(rows, "val_loss").data}
    assert {name: len(trace.x) for name, trace in traces.items()} == {"trained": 13, "pruned": 2, "infeasible": 1}
    assert len({trace.marker.symbol for trace in traces.values()}) == 3
    last = study.trials[PRUNED[0]].intermediate_values[200]
    assert f"trial 4, pruned: {last:.4f}" in traces["pruned"].text
    assert "trial 6, infeasible" in traces["infeasible"].text
    assert sum(len(trace.x) for trace in front_figure(rows, [study.best_trial], "val_loss").data) == 13
    draw_front(rows, [study.best_trial.number], "val_loss", tmp_path / "front.png")
    draw_landscape(rows, "val_loss", tmp_path / "all.png")
    draw_landscape([row for row in rows if row["kind"] == "trained"], "val_loss", tmp_path / "trained.png")
    assert (tmp_path / "all.png").read_bytes() != (tmp_path / "trained.png").read_bytes()


def test_too_few_trials_or_equal_values_have_no_importance() -> None:
    study = optuna.create_study()
    assert importance_figure(study, "val_loss") is None
    for _ in range(3):
        trial = study.ask()
        build_space(parse_params({})).suggest(trial)
        study.tell(trial, 1.0)
    assert set(importances(study)) <= {RATE, EFFECTIVE}


def test_a_note_shows_the_curve_as_the_dashboard_serves_it(tmp_path: Path) -> None:
    study = optuna.create_study()
    trial = study.ask()
    assert curve_of(study, trial) == ""
    (tmp_path / "curves.png").write_bytes(b"picture")
    attach_file(trial, tmp_path / "curves.png", tmp_path / "artifacts")
    (kept,) = (tmp_path / "artifacts").iterdir()
    assert curve_of(study, trial) == f"![training curve](/artifacts/0/0/{kept.name})"
