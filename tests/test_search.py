"""What a search tries and how it ends: the space, the samplers, the start points, the finish."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from rich.console import Console
from rich.live import Live

from bigstep.commands.search_findings import print_findings
from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.params import parse_params
from bigstep.config.search import SearchConfig
from bigstep.data.store import Store
from bigstep.errors import ConfigError
from bigstep.planning.throughput import SizeMeasurement
from bigstep.project.parameters import check_params
from bigstep.search.confirmation import SeedStatistics, audits, best_trials, compare, replicates, standings
from bigstep.search.initial_points import ensure_noise_start, ensure_starts, noise_point, start_points
from bigstep.search.request import SearchRequest
from bigstep.search.results.in_float64 import settle
from bigstep.search.results.other_slicings import slicing_rows, slicing_table
from bigstep.search.results.summary import SearchResult
from bigstep.search.results.verdict import verdict
from bigstep.search.samplers import choose_sampler
from bigstep.search.space import ACCUMULATION, EFFECTIVE, MICRO, RATE, Space, build_space, is_inside
from bigstep.search.trial_queue import TrialQueue, counts_toward_budget
from bigstep.search.workers.progress_table import ProgressTable

SIZES = {"effective_batch_size": 64, "micro_batch_size": 16, "accumulation_steps": 4, "diverged": False}


def _space(**search: Any) -> Space:
    return build_space(parse_params({"search": search}))


def _trial(number: int, value: float | None, state: TrialState = TrialState.COMPLETE, **attributes: Any) -> Any:
    found = create_trial(
        state=state,
        value=value,
        params={RATE: 10.0 ** -(1 + number / 10)},
        distributions={RATE: optuna.distributions.FloatDistribution(1e-9, 1)},
        user_attrs={**SIZES, **attributes},
        constraints=attributes.pop("constraints", None),
    )
    found.number = number
    return found


def _search(values: Callable[[dict[str, Any]], float], space: Space, sampler: str, count: int) -> optuna.Study:
    study = optuna.create_study()
    for number in range(count):
        study.sampler = choose_sampler(sampler, seed=number, space=space.kind, num_objectives=1)
        trial = study.ask()
        study.tell(trial, values(space.suggest(trial)))
    return study


def test_the_planned_space_has_two_dimensions_and_leaves_the_slicing_to_the_plan() -> None:
    space = _space()
    assert list(space.dimensions) == [RATE, EFFECTIVE]
    overrides = space.overrides({RATE: 0.01, EFFECTIVE: 128})
    assert overrides == {RATE: 0.01, "train.effective_batch_size": 128, "hardware.micro_batch_size": "auto"}


def test_the_full_space_says_why_and_is_cut_to_what_fits() -> None:
    space = build_space(parse_params({}), "BatchNorm looks across samples")
    assert (space.kind, space.reason) == ("full", "BatchNorm looks across samples")
    assert space.cut(32).dimensions[MICRO].high == 32
    assert space.overrides({RATE: 1, MICRO: 8, ACCUMULATION: 4})["train.effective_batch_size"] == 32
    assert _space(space="full").reason == ""


@given(st.integers(1, 3000), st.floats(1e-6, 10))
def test_the_current_parameters_are_a_point_of_the_space(size: int, rate: float) -> None:
    params = parse_params({"train": {"effective_batch_size": size, "learning_rate": rate}})
    space = build_space(params)
    point = space.point(params)
    assert math.isclose(point[RATE], rate)
    assert point[EFFECTIVE] in (8, 16, 32, 64, 128, 256, 512)
    assert not 8 <= size <= 512 or abs(math.log2(point[EFFECTIVE] / size)) <= 0.5
    for start in start_points(point, space.dimensions):
        assert start[EFFECTIVE] != point[EFFECTIVE]
        assert (start[RATE] > point[RATE]) == (start[EFFECTIVE] > point[EFFECTIVE])


def test_a_range_without_a_power_of_two_and_a_key_that_is_none_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"search.effective_batch_size: expected a range with a power of two, got \[33, 63\]"):
        _space(effective_batch_size=[33, 63])
    with pytest.raises(ConfigError, match=r"search.parameters: expected keys of params.yaml, got train.nothing"):
        _space(parameters={"train.nothing": [1, 2]})


def test_further_parameters_are_dimensions() -> None:
    space = _space(
        parameters={"train.weight_decay": {"low": 1e-4, "high": 0.1, "log": True}, "train.optimizer": ["adamw", "sgd"]}
    )
    study = _search(lambda point: float(point["train.optimizer"] == "sgd"), space, "auto", 8)
    assert set(study.trials[0].params) == {RATE, EFFECTIVE, "train.weight_decay", "train.optimizer"}
    assert study.best_params["train.optimizer"] == "adamw"


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("sampler", ["auto", "tpe", "gp", "cmaes", "random", "qmc"])
def test_a_sampler_made_anew_for_each_ask_finds_the_bowl_and_is_the_same_twice(sampler: str) -> None:
    def bowl(point: dict[str, Any]) -> float:
        return (math.log10(point[RATE]) + 2.4) ** 2 + 0.05 * (math.log2(point[EFFECTIVE]) - 6) ** 2

    space = _space()
    first, second = (_search(bowl, space, sampler, 18) for _ in range(2))
    assert [trial.params for trial in first.trials] == [trial.params for trial in second.trials]
    assert first.best_value < (0.3 if sampler in ("random", "qmc") else 0.06)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_default_learns_from_pruned_trials_and_asks_for_nothing_twice() -> None:
    """Without either, the Gaussian process asked for one pruned point fourteen times in a row."""
    study, space = optuna.create_study(), _space()
    for number in range(16):
        study.sampler = choose_sampler("auto", seed=number, space="planned", num_objectives=1)
        trial = study.ask()
        point = space.suggest(trial)
        value = (math.log10(point[RATE]) + 2.4) ** 2
        if value > 0.1 and number > 3:
            trial.report(value + 0.5, 1)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
    points = [(round(math.log10(trial.params[RATE]) * 50), trial.params[EFFECTIVE]) for trial in study.trials]
    assert len(set(points)) >= 15
    assert sum(trial.state == TrialState.PRUNED for trial in study.trials[8:]) <= 6


@pytest.mark.parametrize(("space", "objectives"), [("full", 1), ("planned", 2)])
def test_cma_es_is_refused_where_it_would_ignore_what_matters(space: str, objectives: int) -> None:
    with pytest.raises(
        ConfigError, match=r"search.sampler: expected one objective and the planned space for cmaes, got space "
    ):
        choose_sampler("cmaes", seed=0, space=space, num_objectives=objectives)


def test_the_finish_takes_the_best_and_the_parameters_it_began_with() -> None:
    trials = [
        _trial(0, 0.5, start=0),
        _trial(1, 0.1),
        _trial(2, None, TrialState.PRUNED),
        _trial(3, 0.3),
        _trial(4, 0.05, diverged=True),
        _trial(5, 0.2),
        _trial(6, 0.25),
    ]
    best = best_trials(trials, 3, StudyDirection.MINIMIZE)
    assert [trial.number for trial in best] == [1, 5, 6, 0]
    assert [trial.number for trial in best_trials(trials, 1, StudyDirection.MAXIMIZE)] == [0]
    again = replicates(best, SearchConfig(), seed=7)
    assert {item.seed for item in again} == {8, 9, 10}
    assert len({item.key for item in again}) == 12


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.20, 0.31, 0.10), "trial 4 beats the baseline beyond the spread of seeds: -0.1000 over 3 paired seeds"),
        ((0.20, 0.44, 0.23), "trial 4 does not beat the baseline beyond the spread of seeds: -0.0133 over 3 paired seeds"),
    ],
)
def test_the_verdict_pairs_seeds_whose_own_spread_is_larger(values: tuple[float, ...], text: str) -> None:
    best, start = [_trial(4, 0.1), _trial(0, 0.2, start=0)], (0.30, 0.41, 0.20)
    again = [
        _trial(10 * of + number, value, kind="replicate", of=of, seed=number + 1)
        for of, row in ((4, values), (0, start))
        for number, value in enumerate(row)
    ]
    done = sorted(again, key=lambda item: item.values[0])  # workers end in any order
    ranking = tuple(standings(best, done, StudyDirection.MINIMIZE))
    found = SearchResult(best[0], ranking, (), tuple(best), tuple(done), ()).verdict
    assert found.startswith(text), found
    assert verdict(ranking, 0, 0).startswith("no trial beats the baseline")
    assert "may be chance" in verdict((SeedStatistics(4, (0.1,), (1,)), SeedStatistics(0, (0.2,), (1,))), 4, 0)
    assert verdict((), 4, 0) == ""
    lucky = SeedStatistics(4, (0.50, 0.50, 0.10), (1, 2, 3)), SeedStatistics(0, (0.40, 0.41), (1, 2))  # as after Ctrl-C
    assert verdict(lucky, 4, 0).startswith("trial 4 does not beat the baseline beyond the spread of seeds: +0.0950")


def test_the_winner_is_best_in_the_mean_of_new_seeds_not_in_one() -> None:
    best = [_trial(1, 0.1), _trial(0, 0.2)]
    done = [
        *(_trial(number, value, kind="replicate", of=1) for number, value in enumerate([0.3, 0.2, 0.4])),
        *(_trial(number + 3, value, kind="replicate", of=0) for number, value in enumerate([0.2, 0.2, 0.2])),
    ]
    ranking = standings(best, done, StudyDirection.MINIMIZE)
    assert [item.of for item in ranking] == [0, 1]
    assert ranking[1].mean == pytest.approx(0.3)
    assert ranking[1].spread == pytest.approx(0.1)
    assert SeedStatistics(0, (1.0,)).spread == 0
    assert SeedStatistics(0, (1.0, math.inf)).spread == 0


@pytest.mark.parametrize(("value", "exact", "holds"), [(0.102, False, True), (0.104, False, False), (0.102, True, False)])
def test_an_audit_that_differs_is_told(value: float, exact: bool, holds: bool) -> None:
    trials = [_trial(0, 0.1)]
    items = audits(trials, SearchConfig(trials=20), seed=0)
    assert [(item.of, item.seed, item.micro_batch_size) for item in items] == [(0, 0, 8)]
    done = [_trial(0, value, kind="audit", of=0, micro_batch_size=8)]
    (verdict,) = compare(trials, done, 0.01, exact=exact)
    assert verdict.holds is holds
    assert verdict.micro_batch_sizes == (16, 8)
    found = SearchResult(None, (), (verdict,), (), (), ())
    assert (len(found.warnings), len(found.audits)) == ((0, 1) if holds else (1, 0))
    differs = f"0.1 and {value:.6g}, which differ by more than"
    assert all(differs in text and "`bigstep check`" in text for text in found.warnings)


@pytest.mark.parametrize(
    ("model", "agrees", "text"),
    [
        ({}, True, "audit: trial 0: micro-batch sizes 16 and 8 gave 0.1 and 0.2, by rounding that grew over the steps"),
        (
            {"norm": "batch", "ghost_batch_size": 16},
            False,
            "gave 0.1 and 0.2, which differ by more than 0.003: the micro-batch size affects training",
        ),
        (
            {"weights": "weights/none.pth"},
            None,
            "differ by more than 0.003: rounding errors grew, or the micro-batch size affects",
        ),
    ],
)  # None: it cannot be trained in float64
def test_a_differing_audit_is_settled_in_float64(
    model: dict[str, Any], agrees: bool | None, text: str, digits: Store, tmp_path: Path, capsys: Any
) -> None:
    content = {"model": {"width": 4, **model}, "train": {"epochs": 2}}
    request = SearchRequest(str(tmp_path), str(digits.paths.root), content, "", "", "e", "", "", "", None, math.inf)
    params = check_params(content)
    trial = _trial(0, 0.1, start=0, learning_rate=0.004)
    trial.params = {RATE: 0.004, EFFECTIVE: 64}
    verdicts = tuple(compare([trial], [_trial(0, 0.2, kind="audit", of=0, micro_batch_size=8)], 0.01, exact=False))
    found = SearchResult(trial, (), verdicts, (trial,), (), ())
    found = settle(found, request, build_space(params))
    assert [item.in_float64 for item in found.verdicts] == [agrees]
    print_findings(found, params)
    assert text in " ".join(capsys.readouterr().out.split())


def test_infeasible_trials_do_not_count_but_are_not_asked_for_without_end() -> None:
    study = optuna.create_study()
    ledger = TrialQueue(study, budget=3, max_asks=12)

    def sampler(number: int) -> optuna.samplers.BaseSampler:
        return choose_sampler("random", seed=number, space="full", num_objectives=1)

    while (trial := ledger.take(sampler)) is not None:
        value = trial.suggest_float("x", 0, 1)
        trial.set_constraint("memory", 1.0 if value < 0.5 else -1.0)
        study.tell(trial, value)
    assert len(counts_toward_budget(ledger.trials())) == 3
    hopeless = TrialQueue(optuna.create_study(), budget=3, max_asks=12)
    while (trial := hopeless.take(sampler)) is not None:
        trial.set_constraint("memory", 1.0)
        hopeless.study.tell(trial, 1.0)
    assert len(hopeless.trials()) == 12


def test_trials_that_fail_are_not_asked_for_without_end() -> None:
    """A failed trial does not count toward the budget; each is retried once, which asks for no other point."""
    queue = TrialQueue(optuna.create_study(), budget=3, max_asks=6)

    def sampler(number: int) -> optuna.samplers.BaseSampler:
        return choose_sampler("random", seed=number, space="full", num_objectives=1)

    while (trial := queue.take(sampler)) is not None:
        trial.suggest_float("x", 0, 1)
        failed = queue.trials()[trial.number]
        assert queue.fail(trial.number)
        queue.requeue(failed, retries=1)
        assert len(queue.trials()) <= 12
    assert len(queue.trials()) == 12


@pytest.mark.parametrize(("scale", "size"), [(700.0, 512), (1e9, 512), (30.0, 32), (0.3, None), (64.0, None), (None, None)])
def test_the_noise_scale_is_a_start_point_where_none_lies_yet(scale: float | None, size: int | None) -> None:
    params = parse_params({"search": {"effective_batch_size": [16, 512]}, "train": {"effective_batch_size": 64}})
    space = build_space(params)  # 16, 64 and 256 are tried anyway
    point = noise_point(space.point(params), space.dimensions, scale)
    if size is None:
        assert point is None
    else:
        rate = params.train.learning_rate * (size / 64) ** (1 / 3)
        assert point == {RATE: pytest.approx(rate), EFFECTIVE: size}


def test_a_warm_start_from_a_study_that_does_not_exist_names_those_that_do() -> None:
    params = parse_params({})
    ledger = TrialQueue(optuna.create_study(study_name="mine"), budget=5, max_asks=50)
    with pytest.raises(ConfigError, match="--warm-start: no study 'nosuch' in this storage; available: mine"):
        ensure_starts(ledger, params, build_space(params), "nosuch")
    assert ledger.trials() == []


def test_a_warm_start_from_another_space_tries_the_nearest_points_of_this_one() -> None:
    params = parse_params(
        {"train": {"learning_rate": 0.001}, "search": {"parameters": {"train.schedule": ["cosine", "linear"]}}}
    )
    space, storage = build_space(params), optuna.storages.InMemoryStorage()
    before = optuna.create_study(storage=storage, study_name="before")
    kinds = {
        RATE: optuna.distributions.FloatDistribution(0.01, 1, log=True),
        EFFECTIVE: optuna.distributions.IntDistribution(8, 4096, log=True),
        "train.schedule": optuna.distributions.CategoricalDistribution(("constant", "linear")),
    }
    best = {RATE: 0.09, EFFECTIVE: 2048, "train.schedule": "constant"}
    before.add_trial(create_trial(value=0.1, params=best, distributions=kinds))
    ledger = TrialQueue(optuna.create_study(storage=storage, study_name="now"), budget=20, max_asks=200)
    ensure_starts(ledger, params, space, "before")
    while (trial := ledger.take(None)) is not None:
        space.suggest(trial)
        ledger.study.tell(trial, 0.5)
    trials = ledger.trials()
    assert trials[-1].params == {RATE: 0.01, EFFECTIVE: 512, "train.schedule": "cosine"}
    assert all(is_inside(trial, space.dimensions) for trial in trials)


def test_it_is_queued_once_after_the_first_trial_and_within_the_budget() -> None:
    params = parse_params({"search": {"trials": 5}, "train": {"effective_batch_size": 64}})
    space = build_space(params)
    ledger = TrialQueue(optuna.create_study(), budget=5, max_asks=50)
    ensure_starts(ledger, params, space, None)
    ensure_noise_start(ledger, space)
    assert len(ledger.trials()) == 3
    trial = ledger.take(None)
    assert trial is not None
    space.suggest(trial)
    space.fix_planned(trial, BatchSizes(64, 32, 2))
    trial.set_user_attr("noise_scale", 1e6)
    ledger.study.tell(trial, 0.5)
    small = TrialQueue(ledger.study, budget=3, max_asks=50)
    ensure_noise_start(small, space)
    assert len(ledger.trials()) == 3
    for _ in range(2):
        ensure_noise_start(ledger, space)
    assert len(ledger.trials()) == 4
    queued = ledger.trials()[3]
    assert queued.user_attrs["start"] == "noise scale"
    assert queued.system_attrs["fixed_params"][EFFECTIVE] == space.dimensions[EFFECTIVE].high  # type: ignore[attr-defined]
    assert set(queued.system_attrs["fixed_params"]) == {RATE, EFFECTIVE}, "the planned sizes were those of another batch"


def test_the_live_table_shows_a_trial_whatever_is_known_of_it_yet(capsys: pytest.CaptureFixture[str]) -> None:
    params = parse_params({"search": {"trials": 20}})
    known = {**SIZES, "learning_rate": 0.004, "images_per_second": 1234.0, "peak_bytes": 2**30}
    for count in range(len(known) + 1):
        first, again = (TrialQueue(optuna.create_study(), budget=20, max_asks=50) for _ in range(2))
        display, trial = ProgressTable(params, (first, again)), first.study.ask()
        for name, value in list(known.items())[:count]:
            trial.set_user_attr(name, value)
        shown = Console(width=120, file=io.StringIO())
        with Live(console=shown) as screen:
            display.show(screen)
            assert "running" in _text(shown, screen.renderable)
            first.study.tell(trial, 0.25)
            display.show(screen)
            assert "best so far: trial 0, 0.2500" in _text(shown, screen.renderable)
    words = "learning rate 0.004  batch 64  4 x 16  val_loss 0.2500  1,234 samples/s  1.0 GiB  complete"
    assert f"trial 0  {words}" in capsys.readouterr().out
    for kind, text in {"replicate": "new seed", "audit": "other slicing"}.items():
        again.study.add_trial(_trial(0, 0.25, **known, kind=kind, of=3))
        display.show(None)
        assert f"trial 3, {text}  {words}" in capsys.readouterr().out


def _text(console: Console, table: Any) -> str:
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_other_slicings_of_a_trial_are_derived_from_the_plan() -> None:
    rungs = [
        SizeMeasurement(8, 100.0, 10 * 2**20, 5),
        SizeMeasurement(16, 200.0, 20 * 2**20, 9),
        SizeMeasurement(128, 400.0, 90 * 2**20, 60),
    ]
    rows = slicing_rows(_trial(0, 0.1, seconds=30.0, val_loss=0.1), rungs, 50 * 2**20)
    assert [(row["micro_batch_size"], row["accumulation_steps"], row["seconds"]) for row in rows] == [
        (8, 8, 60.0),
        (16, 4, 30.0),
        (64, 1, 15.0),
    ]
    assert [(row["fits"], row["trained"]) for row in rows] == [(True, False), (True, True), (False, False)]
    assert "| 64 | 1 | 15.0 s | 90 MiB | does not fit |" in slicing_table(rows)
    assert slicing_rows(_trial(1, 9.0), rungs, None) == []  # refused before it was trained


@pytest.mark.parametrize(
    ("search", "text"),
    [
        ({"trials": 0}, "search.trials: expected integer >= 1, got 0"),
        ({"learning_rate": [1.0, 0.1]}, r"search.learning_rate: expected \[lowest, highest\]"),
        ({"objective": "seconds"}, "search.objective: expected val_loss or val_accuracy if it is one"),
        ({"objective": ["val_loss", "val_loss"]}, "search.objective: expected each objective once"),
        ({"parameters": {"train.seed": [1, 2]}}, "search.parameters: expected keys of model or train other than"),
        ({"parameters": {"train.weight_decay": {"low": 1, "high": 0}}}, "search.parameters: expected a mapping"),
        ({"study": "../x"}, "search.study: expected a name"),
        ({"max_time": "soon"}, "search.max_time: expected none or a duration"),
    ],
)
def test_a_bad_section_is_one_line(search: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        parse_params({"search": search})
    assert len(str(caught.value).splitlines()) == 1
