"""Samplers that are made anew for each ask: the same search after a kill, together with others, and no point twice."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.params import parse_params
from bigstep.search.initial_points import start_points
from bigstep.search.powers_of_two import PowersOfTwoSampler
from bigstep.search.results.study_figures import importances
from bigstep.search.samplers import AUTO, MAX_FITTED, best_and_newest, choose_sampler
from bigstep.search.space import ACCUMULATION, EFFECTIVE, MICRO, RATE, Space, build_space, plain_values
from bigstep.search.storage import open_storage, open_study
from bigstep.search.trial_queue import TrialQueue
from postgres import postgres

NAMES = ("tpe", "gp", "cmaes", "random", "qmc")
Params = dict[str, Any]
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def _space(**search: Any) -> Space:
    return build_space(parse_params({"search": search}))


def _bowl(point: Params) -> float:
    return (math.log10(point[RATE]) + 2.4) ** 2 + 0.05 * (math.log2(point[EFFECTIVE]) - 6) ** 2


def _ask(study: optuna.Study, name: str, space: Space, objectives: int = 1) -> tuple[optuna.Trial, Params]:
    number = len(study.get_trials(deepcopy=False))
    study.sampler = choose_sampler(name, seed=number, space=space.kind, num_objectives=objectives, study_seed=3)
    trial = study.ask()
    return trial, space.suggest(trial)


def _run(study: optuna.Study, name: str, count: int) -> list[Params]:
    for _ in range(count):
        trial, point = _ask(study, name, _space())
        study.tell(trial, _bowl(point))
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("name", NAMES)
def test_a_search_that_was_killed_goes_on_with_the_same_points(name: str, tmp_path: Path) -> None:
    def opened(path: Path) -> optuna.Study:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(study_name="s", storage=storage, load_if_exists=True)

    whole = _run(opened(tmp_path / "whole"), name, 16)
    _run(opened(tmp_path / "killed"), name, 9)
    assert _run(opened(tmp_path / "killed"), name, 7) == whole


def _addresses(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "study.journal")
    yield f"sqlite:///{tmp_path / 'study.db'}"
    with postgres() as address:
        yield address


def test_every_default_sampler_works_on_every_storage_and_in_its_second_study(tmp_path: Path) -> None:
    """Optuna's Gaussian process refuses a second study, which it knows by an id that differs from storage to storage."""
    for address in _addresses(tmp_path):
        storage = open_storage(address)
        for study_name in ("first", "second"):
            for kind, directions in (("planned", 1), ("full", 1), ("planned", 2)):
                study = open_study(storage, f"{study_name} {kind} {directions}", ["minimize"] * directions)
                space = _space(space=kind)
                for _ in range(8):
                    trial, point = _ask(study, "auto", space, directions)
                    study.tell(trial, [math.log10(point[RATE]) ** 2, 1.0][:directions])
                assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 8, address
        if isinstance(storage, RDBStorage):
            storage.remove_session()
            storage.engine.dispose()


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes"])
def test_four_workers_at_once_are_given_four_points(name: str) -> None:
    study = optuna.create_study()
    _run(study, name, 8)
    open_ones = [_ask(study, name, _space()) for _ in range(4)]
    cells = {(round(math.log10(point[RATE]) * 50), point[EFFECTIVE]) for _, point in open_ones}
    assert len(cells) == 4
    for trial, point in open_ones:
        study.tell(trial, _bowl(point))
    assert len(_run(study, name, 8)) == 20


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes"])
def test_where_few_points_are_left_they_are_found_and_hardly_any_is_asked_for_twice(name: str) -> None:
    """Optuna's own samplers ask for 11 different ones of these 20 points in 16 asks."""
    points, study = set(), optuna.create_study()
    for number in range(16):
        study.sampler = choose_sampler(name, seed=number, space="planned", num_objectives=1)
        trial = study.ask()
        point = trial.suggest_int("a", 0, 4), trial.suggest_int("b", 0, 3)
        points.add(point)
        study.tell(trial, float((point[0] - 3) ** 2 + (point[1] - 1) ** 2))
    assert len(points) >= 14
    assert study.best_value == 0


def test_quasi_random_points_are_one_sequence_although_each_ask_has_a_new_sampler() -> None:
    anew, one = (
        optuna.create_study(),
        optuna.create_study(sampler=PowersOfTwoSampler(optuna.samplers.QMCSampler(seed=3, scramble=True))),
    )
    points = _run(anew, "qmc", 17)
    for _ in range(17):
        trial = one.ask()
        one.tell(trial, _bowl(_space().suggest(trial)))
    assert points[1:] == [trial.params for trial in one.trials[1:]]
    assert points != _run(optuna.create_study(), "random", 17)


def test_cma_es_keeps_its_state_in_the_study() -> None:
    study = optuna.create_study()
    _run(study, "cmaes", 30)
    generations = {trial.system_attrs["cma:generation"] for trial in study.trials if "cma:generation" in trial.system_attrs}
    assert max(generations) >= 3
    drawn = _run(optuna.create_study(), "random", 100)
    assert sum(_bowl(trial.params) for trial in study.trials[20:]) / 10 < sum(map(_bowl, drawn)) / 100 / 2


def test_a_gaussian_process_uses_one_thread_and_gives_the_others_back() -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    original = optuna.samplers.GPSampler.sample_relative

    def watched(*args: Any) -> Params:
        seen.append(torch.get_num_threads())
        return original(*args)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optuna.samplers.GPSampler, "sample_relative", watched)
            _run(optuna.create_study(), "gp", 7)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("name", ["auto", "tpe", "gp"])
def test_a_trial_that_was_refused_for_a_reason_of_its_own_ends_no_search(name: str, objectives: int) -> None:
    """Optuna's Gaussian process stops with an error where one trial has a constraint that another has not."""
    space, study = _space(), optuna.create_study(directions=["minimize"] * objectives)
    for number in range(12):
        trial, point = _ask(study, name, space, objectives)
        if number in (2, 6):
            trial.set_constraint("possible" if number == 2 else "memory", 1.0)
        study.tell(trial, [5.0 if number in (2, 6) else _bowl(point)] * objectives)
    assert len(study.trials) == 12
    assert all(trial.state.is_finished() for trial in study.trials)


@pytest.mark.filterwarnings("ignore:Fixed parameter:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_queued_point_outside_of_the_space_ends_no_search(name: str) -> None:
    """Optuna keeps such a point as it is, and then refuses a trial with it in a study of its own."""
    space, study = _space(learning_rate=[1e-4, 1e-2]), optuna.create_study()
    study.enqueue_trial({RATE: 0.09, EFFECTIVE: 64})
    for _ in range(12):
        trial, point = _ask(study, name, space)
        study.tell(trial, _bowl(point))
    assert study.trials[0].params[RATE] == 0.09
    assert all(1e-4 <= trial.params[RATE] <= 1e-2 for trial in study.trials[1:])
    assert set(importances(study)) == {RATE, EFFECTIVE}


@pytest.mark.parametrize("kind", ["planned", "full"])
@pytest.mark.parametrize("objectives", [2, 3])
def test_several_objectives_are_searched_alike_twice(kind: str, objectives: int) -> None:
    space = _space(space=kind)

    def value(point: Params) -> list[float]:
        size = math.log2(point[EFFECTIVE] if kind == "planned" else point[MICRO])
        return [(math.log10(point[RATE]) + 2.4) ** 2, -float(size), float(size)][:objectives]

    def points() -> list[Params]:
        study = optuna.create_study(directions=["minimize"] * objectives)
        for _ in range(12):
            trial, point = _ask(study, "auto", space, objectives)
            study.tell(trial, value(point))
        assert study.best_trials
        return [trial.params for trial in study.trials]

    assert points() == points()


def test_constraints_are_learned_from_what_was_refused_before_training() -> None:
    space, study, fits = _space(space="full"), optuna.create_study(), []
    for _ in range(60):
        trial, point = _ask(study, "auto", space)
        fits.append(point[MICRO] <= 32)
        trial.set_constraint("memory", math.log2(point[MICRO]) - 5)
        study.tell(trial, (math.log10(point[RATE]) + 2.4) ** 2 if fits[-1] else 5.0)
    assert sum(fits[20:]) >= 30
    cut, seen = space.cut(32), []
    study = optuna.create_study()
    for _ in range(20):
        trial, point = _ask(study, "auto", cut)
        seen.append(point[MICRO])
        study.tell(trial, 1.0)
    assert max(seen) == 32


def test_the_default_of_each_case_is_a_sampler_that_can_do_it() -> None:
    assert set(AUTO) == {"planned", "full", "several"}
    assert "cmaes" not in (AUTO["full"], AUTO["several"])


def _dimensions() -> dict[str, Any]:
    return {RATE: FloatDistribution(1e-3, 1e-1, log=True), EFFECTIVE: IntDistribution(8, 512, log=True)}


def test_start_points_lie_on_the_scaling_rule() -> None:
    dimensions = {**_dimensions(), "train.momentum": FloatDistribution(0.5, 0.99)}
    below, above = start_points({RATE: 0.01, EFFECTIVE: 64, "train.momentum": 0.9}, dimensions)
    assert (below[EFFECTIVE], above[EFFECTIVE]) == (16, 256)
    assert math.isclose(above[RATE], 0.01 * 4 ** (1 / 3))
    assert math.isclose(below[RATE] * above[RATE], 0.01**2)
    assert above["train.momentum"] == 0.9


@pytest.mark.parametrize(("current", "expected"), [(8, [32]), (512, [128]), (16, [8, 64])])
def test_start_points_stay_in_the_range_and_none_repeats_the_current_one(current: int, expected: list[int]) -> None:
    points = start_points({RATE: 0.09, EFFECTIVE: current}, _dimensions())
    assert [point[EFFECTIVE] for point in points] == expected
    assert all(1e-3 <= point[RATE] <= 1e-1 for point in points)


@pytest.mark.parametrize("direction", list(optuna.study.StudyDirection)[1:])
def test_a_model_is_fitted_to_the_best_and_the_newest_of_many_trials(direction: optuna.study.StudyDirection) -> None:
    study = optuna.create_study(direction=direction)
    study.add_trials([optuna.trial.create_trial(value=float((7919 * number) % 2003)) for number in range(2003)])
    trials = study.get_trials(deepcopy=False)
    assert best_and_newest(trials[:MAX_FITTED], direction) == trials[:MAX_FITTED]
    chosen = best_and_newest(trials, direction)
    numbers = [trial.number for trial in chosen]
    assert len(chosen) == MAX_FITTED
    assert numbers == sorted(set(numbers))
    assert numbers[-MAX_FITTED // 2 :] == list(range(2003 - MAX_FITTED // 2, 2003))
    values = sorted((trial.value for trial in trials[: -MAX_FITTED // 2]), reverse=direction.name == "MAXIMIZE")
    assert {trial.value for trial in chosen[: MAX_FITTED // 2]} == set(values[: MAX_FITTED // 2])


def test_a_gaussian_process_sees_no_more_trials_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = optuna.samplers.GPSampler.sample_relative

    def sample(self: Any, study: optuna.Study, trial: Any, space: Any) -> Any:
        seen.append(len(study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])))
        return real(self, study, trial, space)

    monkeypatch.setattr("bigstep.search.samplers.MAX_FITTED", 10)
    monkeypatch.setattr(optuna.samplers.GPSampler, "sample_relative", sample)
    study = optuna.create_study()
    _run(study, "gp", 14)
    assert max(seen) == 10
    assert len(seen) >= 8


@pytest.mark.parametrize("name", ["auto", "tpe", "gp", "cmaes", "qmc"])
def test_trials_show_plain_sizes_and_the_sampler_sees_two_dimensions(name: str, tmp_path: Path) -> None:
    """Planned sizes are parameters of one value; a killed trial that is taken up again may be planned otherwise."""
    address, space, seen = str(tmp_path / "study.journal"), _space(), []
    ledger = TrialQueue(open_study(open_storage(address), "study", ["minimize"]), 20, 40)

    def sampler(number: int) -> optuna.samplers.BaseSampler:
        made = choose_sampler(name, seed=number, space="planned", num_objectives=1, study_seed=3)
        seen.append(made.infer_relative_search_space(ledger.study, ledger.trials()[-1]) if number > 4 else {})
        return made

    while (trial := ledger.take(sampler)) is not None:
        point, killed = space.suggest(trial), trial.number in (2, 9)
        micro = min(point[EFFECTIVE], 8 if killed else 64)
        space.fix_planned(trial, BatchSizes(point[EFFECTIVE], micro, point[EFFECTIVE] // micro))
        if killed:
            ledger.fail(trial.number)
            ledger.requeue(ledger.trials()[trial.number])
            (again,) = [item for item in ledger.trials() if item.state.name == "WAITING"]
            assert again.system_attrs["fixed_params"] == point
        else:
            ledger.study.tell(trial, _bowl(point))
    plain = optuna.load_study(study_name="study", storage=JournalStorage(JournalFileBackend(address)))
    assert len(plain.trials) == 22
    for item in plain.trials:
        assert set(item.params) == {RATE, EFFECTIVE, MICRO, ACCUMULATION}
        assert item.params[MICRO] * item.params[ACCUMULATION] == item.params[EFFECTIVE]
        assert all(math.log2(item.params[size]).is_integer() for size in (EFFECTIVE, MICRO, ACCUMULATION))
    assert all(set(dimensions) == {RATE, EFFECTIVE} for dimensions in seen[5:])
    importance = optuna.importance.get_param_importances(plain, params=[RATE, EFFECTIVE])
    assert min(importance.values()) > 0


def test_the_smallest_and_the_largest_size_are_drawn_as_often_as_the_others() -> None:
    study, counts = optuna.create_study(), Counter[int]()
    study.sampler = choose_sampler("random", seed=0, space="planned", num_objectives=1)
    for _ in range(1400):
        counts[_space().suggest(study.ask())[EFFECTIVE]] += 1
    assert sorted(counts) == [8, 16, 32, 64, 128, 256, 512]
    assert min(counts.values()) > 150


def test_points_of_an_earlier_version_are_read_as_plain_sizes() -> None:
    assert plain_values({RATE: 0.1, "effective_batch_exponent": 6}) == {RATE: 0.1, EFFECTIVE: 64}
    assert plain_values({"micro_batch_exponent": 3, "accumulation_exponent": 0}) == {MICRO: 8, ACCUMULATION: 1}
