"""Searches of a project under test: killed at random moments, and looked at afterwards."""

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psycopg
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from bigstep.search.samplers import choose_sampler
from bigstep.search.space import ACCUMULATION, EFFECTIVE, MICRO, RATE
from bigstep.search.storage import open_storage
from bigstep.search.studies import confirmation_study_name
from bigstep.search.trial_queue import counts_toward_budget
from conftest import copy_prepared
from faults.project import Project
from waiting import wait_until

QUICK = (
    "train.epochs=2",
    "model.width=8",
    "search.confirm_top=1",
    "search.confirm_seeds=1",
    "hardware.checkpoint_interval=0.2s",
)


def searching_project(root: Path, prepared: Path, plans: Path, *settings: str) -> Project:
    """A project with prepared data that measures its plan only where no other has."""
    project = copy_prepared(prepared, root)
    project.set(*settings)
    (root / ".bigstep").mkdir(exist_ok=True)
    (root / ".bigstep" / "plans").symlink_to(plans)
    return project


def wait_until_it_trains(address: str, process: "subprocess.Popen[str]", after: int = 0) -> int:
    """Wait until trials reported more than ``after`` epochs to the database at ``address``; return how many."""
    found = after

    def trains() -> bool:
        nonlocal found
        assert process.poll() is None, "the search ended"
        with contextlib.suppress(psycopg.errors.UndefinedTable), psycopg.connect(address) as connection:
            (found,) = connection.execute("SELECT count(*) FROM trial_intermediate_values").fetchone()
        return found > after

    wait_until(trains, "no trial trained", seconds=180)
    return found


def search_runs(project: Project) -> tuple[list, list]:
    runs = project.runs()
    parents = [run for run in runs if run.data.tags.get("bigstep.kind") == "search"]
    return parents, [run for run in runs if "mlflow.parentRunId" in run.data.tags]


def open_stored_study(project: Project, name: str) -> optuna.Study:
    storage = open_storage(str(project.root / ".bigstep" / "search" / "search.journal"))
    return optuna.load_study(study_name=name, storage=storage)


def kill_and_finish(project: Project, seed: int, *, kills: int) -> None:
    """Kill workers and parents of a search, each time after a while, and begin it again; look at how it ends."""
    chance, trials, cut_off = random.Random(seed), 2 + 3 * kills, set[int]()
    for _ in range(kills):
        process = project.start(
            sys.executable, "-m", "bigstep.cli", "search", "--trials", str(trials), "--workers", "2",
            PYTHONPATH=str(project.root / "src"),
        )  # fmt: skip
        wait_until(lambda: _training(project), "no trial trains", seconds=120)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, 3))
            raise AssertionError("the search ended before it could be killed; give it more trials")
        for victim in [item for item in project.processes(wait=0) if item.pid != process.pid or chance.random() < 0.5]:
            if chance.random() < 0.7:
                victim.kill()
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()
        cut_off |= _training(project)
    project.run_while(lambda: _num_ended(project), "bigstep", "search", "--trials", str(trials), "--workers", "2")
    for name in ("search", confirmation_study_name("search")):
        found = open_stored_study(project, name).get_trials()
        assert not [trial for trial in found if not trial.state.is_finished()]
        if name == "search":
            assert len(counts_toward_budget(found)) == trials
        else:
            keys = [trial.user_attrs["key"] for trial in found if trial.state.name == "COMPLETE"]
            assert len(keys) == len(set(keys))
            assert sum(key.startswith("replicate") for key in keys) in (1, 2)
    check_plain_parameters(project, cut_off if kills == 1 else set())
    parents, children = search_runs(project)
    assert len(parents) == 1
    assert {run.info.status for run in [*parents, *children]} <= {"FINISHED", "KILLED", "FAILED"}


def check_plain_parameters(project: Project, cut_off: set[int]) -> None:
    """Look at the study with Optuna alone: plain values, two of them searched, and a trial for each that was cut off."""
    journal = JournalStorage(JournalFileBackend(str(project.root / ".bigstep" / "search" / "search.journal")))
    study = optuna.load_study(study_name="search", storage=journal)
    ended = [trial for trial in study.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    for trial in ended:
        assert set(trial.params) == {RATE, EFFECTIVE, MICRO, ACCUMULATION}
        assert trial.params[MICRO] * (trial.params[ACCUMULATION] - 1) < trial.params[EFFECTIVE]
        assert trial.params[EFFECTIVE] <= trial.params[MICRO] * trial.params[ACCUMULATION]
        assert math.log2(trial.params[EFFECTIVE]).is_integer()
    assert {trial.user_attrs.get("origin") for trial in ended} >= cut_off
    sampler = choose_sampler("auto", seed=0, space="planned", num_objectives=1)
    assert set(sampler.infer_relative_search_space(study, study.trials[-1])) == {RATE, EFFECTIVE}


def _training(project: Project) -> set[int]:
    """Return the trials that are being trained, or were when their worker was killed."""
    try:
        trials = open_stored_study(project, "search").get_trials()
    except KeyError:  # there is no study yet
        return set()
    return {trial.number for trial in trials if trial.state == TrialState.RUNNING and MICRO in trial.params}


def _num_ended(project: Project) -> int:
    """Count the trials that have ended and need no other in their place; there are only as many as were asked for."""
    storage = open_storage(str(project.root / ".bigstep" / "search" / "search.journal"))
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    return sum(trial.state.is_finished() for study in studies for trial in counts_toward_budget(study.get_trials()))
