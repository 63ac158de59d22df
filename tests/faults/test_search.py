"""Rows 18, 23 to 26, 29 and 30: the search. `make test` runs what is tested here in test_search*.py and test_storage.py."""

from pathlib import Path

import optuna
import pytest

import test_storage
from bigstep.search.samplers import choose_sampler
from searching import QUICK, kill_and_finish, searching_project

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")]
CAP, ASKS = 6, 100


@pytest.mark.fault(18, "a hundred asks of the sampler with little memory", rounds=3, rare=True)
def test_nearly_every_ask_is_feasible(round_number: int) -> None:
    study = optuna.create_study()
    for number in range(ASKS):
        study.sampler = choose_sampler("auto", seed=1000 * round_number + number, space="full", num_objectives=1)
        trial = study.ask()
        rate, micro = trial.suggest_float("rate", 1e-4, 1e-1, log=True), trial.suggest_int("micro", 0, CAP)
        effective = micro + 2 * trial.suggest_int("steps", 0, 3)
        trial.set_constraint("memory", float(micro - CAP))
        study.tell(trial, (effective - 5) ** 2 + rate)
    assert sum(trial.constraints["memory"] <= 0 for trial in study.trials) >= 90


@pytest.mark.fault(23, "the last line of Optuna's journal is torn", rounds=3, rare=True)
def test_a_torn_journal(round_number: int, tmp_path: Path) -> None:
    del round_number
    test_storage.test_a_journal_torn_at_any_byte_of_its_last_line_loses_that_line_only(tmp_path)


@pytest.mark.fault(24, "a killed process leaves the lock of a journal", rounds=5, rare=True)
def test_an_orphan_lock(round_number: int, tmp_path: Path) -> None:
    del round_number
    test_storage.test_the_lock_of_a_killed_holder_costs_no_waiting(tmp_path)


@pytest.mark.fault(25, "workers and parent of a search killed at twenty moments", rounds=1, rare=True)
def test_twenty_kills(round_number: int, tmp_path: Path, prepared_root: Path, plans: Path) -> None:
    first = searching_project(tmp_path / "plans", prepared_root, plans, *QUICK)
    first.bigstep(
        "search", "--trials", "1", "--workers", "2", "--set", "search.confirm_top=0", "--set", "search.audit_fraction=0"
    )
    kill_and_finish(searching_project(tmp_path / "killed", prepared_root, plans, *QUICK), round_number, kills=20)


@pytest.mark.fault(26, "four workers start at the same time without a study", rounds=5, rare=True)
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_four_begin_at_once(round_number: int, kind: str, tmp_path: Path) -> None:
    del round_number
    test_storage.test_four_workers_that_start_on_nothing_share_a_budget(kind, tmp_path)


@pytest.mark.fault(
    "29, 30",
    "a worker is paused for twice the heartbeat timeout while the clock jumps an hour, and continues",
    rounds=3,
    rare=True,
)
def test_a_worker_that_stands_still(round_number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del round_number
    test_storage.test_a_stopped_worker_is_given_up_by_its_signs_whatever_the_clock_says(tmp_path, monkeypatch)
