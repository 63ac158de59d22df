"""What a search's worker reports of trials that cannot be trained."""

import math
import multiprocessing
import resource
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.memory.measurement import resident_bytes
from bigstep.project.parameters import check_params
from bigstep.project.paths import ProjectPaths
from bigstep.runs.tracked_run import tracked_run
from bigstep.runtime.device import choose_device, total_memory_bytes
from bigstep.runtime.stop_signals import Signals
from bigstep.search.confirmation import Rerun, compare, planned_reruns, standings
from bigstep.search.request import SearchRequest
from bigstep.search.space import EFFECTIVE, RATE, build_space
from bigstep.search.storage import open_storage, open_study
from bigstep.search.trial_params import trial_params
from bigstep.search.trial_queue import TrialQueue, is_feasible
from bigstep.search.trial_record import TrialRecord
from bigstep.search.workers import trial_runner, trial_training
from bigstep.search.workers.trial_runner import TrialRunner, _pruning
from bigstep.search.workers.trial_training import TrialOutcome
from bigstep.tracking import spool_delivery as delivery
from bigstep.tracking.database import open_client
from bigstep.training.records import Validation
from postgres import postgres

OBJECTIVES = ["val_loss", "seconds", "peak_bytes"]


def _runner(content: dict[str, Any], store: Store, root: Path, uri: str = "") -> TrialRunner:
    request = SearchRequest(str(root), str(root), content, "", uri, "e", "", "", "", None, math.inf)
    space = build_space(check_params(content))
    return TrialRunner(ProjectPaths(root), store, request, space, Signals(), resident_bytes())


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_an_infeasible_trial_is_worse_than_any_trained_one_in_every_objective(digits: Store, tmp_path: Path) -> None:
    content = {
        "model": {"width": 4},
        "train": {"epochs": 1},
        "hardware": {"memory_budget": "1MiB"},
        "search": {"space": "full", "objective": OBJECTIVES, "micro_batch_size": [4, 8], "accumulation_steps": [1, 2]},
    }
    runner = _runner(content, digits, tmp_path)
    study = optuna.create_study(directions=["minimize"] * 3)
    trial = study.ask()
    runner.run_trial(study, trial)
    (found,) = study.get_trials()
    assert found.constraints["memory"] > 0
    assert "exceeds the memory budget" in found.user_attrs["refused"]
    loss, seconds, peak = found.values
    assert loss > math.log(10), "worse than guessing"
    assert seconds > 1437, "an epoch of 1,437 images at one a second"
    assert peak >= total_memory_bytes(choose_device(runner.params.hardware))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_trial_is_linked_to_a_run_that_mlflow_starts_after_the_training(
    digits: Store, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    trained, opens = threading.Event(), delivery.open_run
    monkeypatch.setattr(trial_training, "tracked_run", partial(tracked_run, wait_seconds=0))
    monkeypatch.setattr(trial_training, "_log_outcome", lambda *_: trained.set())
    monkeypatch.setattr(delivery, "open_run", lambda *args, **options: trained.wait(120) and opens(*args, **options))
    content = {"model": {"width": 4}, "train": {"epochs": 1}, "hardware": {"micro_batch_size": 64}, "search": {"space": "full"}}
    runner = _runner(content, digits, tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    study = optuna.create_study(direction="minimize")
    runner.run_trial(study, study.ask())
    (found,) = study.get_trials()
    assert open_client(runner.request.uri).get_run(found.user_attrs["mlflow_run_id"]).info.status == "FINISHED"


def _peaks(store: Path, root: Path, sizes: tuple[int, ...]) -> list[float]:
    """Train one trial for each micro-batch size, and return what each reports as its peak memory."""
    content = {
        "model": {"width": 128},
        "train": {"epochs": 1},
        "search": {"space": "full", "objective": ["val_loss", "peak_bytes"], "micro_batch_size": [4, 1024]},
    }
    content["search"]["accumulation_steps"] = [1, 2]
    runner = _runner(content, Store(store), root, f"sqlite:///{root / 'mlflow.db'}")
    study = optuna.create_study(directions=["minimize"] * 2)
    for size in sizes:
        study.enqueue_trial({"learning_rate": 1e-3, "micro_batch_size": size, "accumulation_steps": 1})
        runner.run_trial(study, study.ask())
    return [trial.values[1] for trial in study.get_trials()]


@pytest.mark.slow
def test_a_trials_peak_is_its_own_whatever_was_trained_before(digits: Store, empty_database: Path, tmp_path: Path) -> None:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # pytest's process holds what earlier tests left in its heap
        large, small = pool.apply(_peaks, (digits.paths.root, tmp_path, (1024, 4)))
    assert large - small > 32 * 2**20


def _short_of_memory(store: Path, root: Path, at: str) -> tuple[Any, ...]:
    """Run a trial that has 64 MiB left in one of its functions, and return how it and its run in MLflow ended."""
    content = {"model": {"width": 512}, "train": {"epochs": 1}, "search": {"space": "full", "study": "s"}}
    runner = _runner(content, Store(store), root, f"sqlite:///{root / 'mlflow.db'}")
    study = optuna.create_study(direction="minimize")
    module = {"predict": trial_runner, "build_training": trial_training, "_train": trial_training}[at]
    original = getattr(module, at)

    def limited(*args: Any, **options: Any) -> Any:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20, resource.RLIM_INFINITY))
        try:
            return original(*args, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    setattr(module, at, limited)
    study.enqueue_trial({"learning_rate": 1e-3, "micro_batch_size": 8, "accumulation_steps": 1})
    runner.run_trial(study, study.ask())
    (found,) = study.get_trials()
    run_id = found.user_attrs.get("mlflow_run_id")
    status = None if run_id is None else open_client(runner.request.uri).get_run(run_id).info.status
    return found.state, found.values, found.constraints, TrialRecord.read(found).refused, status


@pytest.mark.slow
@pytest.mark.parametrize(("at", "status"), [("predict", None), ("build_training", None), ("_train", "FAILED")])
def test_a_trial_that_runs_out_of_memory_is_infeasible(
    at: str, status: str | None, digits: Store, empty_database: Path, tmp_path: Path
) -> None:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        state, values, constraints, refused, found = pool.apply(_short_of_memory, (digits.paths.root, tmp_path, at))
    assert (state, constraints["fits"], found) == (TrialState.COMPLETE, 1.0, status)
    assert values == [2 * math.log(10)], "twice that of guessing"
    assert "memory" in refused


def test_a_trial_that_diverged_at_once_does_not_win_by_its_short_time(digits: Store, tmp_path: Path) -> None:
    runner = _runner({}, digits, tmp_path)
    nothing = TrialOutcome(math.nan, math.nan, "accuracy", None, 0, 0, False, True, 0.0, 0.0, 2**20, None, 8, None, None)
    trained = TrialOutcome(2.0, 0.3, "accuracy", 1, 1, 9, False, False, 60.0, 24.0, 2**30, None, 8, None, None)
    assert runner._values(trained, OBJECTIVES) == [2.0, 60.0, 2**30]
    assert all(bad > good for bad, good in zip(runner._values(nothing, OBJECTIVES), [2.0, 60.0, 2**30], strict=True))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("fraction", [0.05, 0.0])
def test_a_refused_trial_has_no_size_to_audit_and_ends_no_search(fraction: float, digits: Store, tmp_path: Path) -> None:
    content = {
        "model": {"width": 4},
        "search": {"trials": 1, "parameters": {"train.schedule": ["cosine", "plateau"]}, "audit_fraction": fraction},
    }
    runner, study = _runner(content, digits, tmp_path), optuna.create_study()
    study.enqueue_trial({RATE: 0.004, EFFECTIVE: 64, "train.schedule": "plateau"})
    runner.run_trial(study, study.ask())
    (found,) = study.get_trials()
    assert "train.warmup_fraction: expected 0 with train.schedule plateau" in found.user_attrs["refused"]
    assert found.state == TrialState.COMPLETE
    assert planned_reruns(runner.params, runner.space, TrialQueue(study, 1, 10)) == []
    possible = runner.space.overrides({RATE: 0.004, EFFECTIVE: 64, "train.schedule": "cosine"})
    assert trial_params(runner.request.content, possible).train.schedule == "cosine", "the next trial's"


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_planned_trial_that_does_not_fit_is_infeasible_and_so_is_its_retraining(digits: Store, tmp_path: Path) -> None:
    runner = _runner({"model": {"width": 4}, "hardware": {"memory_budget": "1MiB"}}, digits, tmp_path)
    study, again = optuna.create_study(), optuna.create_study()
    study.enqueue_trial({RATE: 0.004, EFFECTIVE: 64})
    runner.run_trial(study, study.ask())
    for item in (Rerun("replicate", 0, 1), Rerun("audit", 0, 0, 8)):
        again.enqueue_trial({"item": 0}, user_attrs=item.record.attributes)
        runner.run_confirmation(study, again, again.ask())
    trials, done = study.get_trials(), again.get_trials()
    for found in (*trials, *done):
        assert found.state == TrialState.COMPLETE
        assert not is_feasible(found)
        assert "expected a step that fits hardware.memory_budget" in found.user_attrs["refused"]
        assert found.value > 2 * math.log(9)
    assert compare(trials, done, 0.0, exact=True) == []
    assert standings(trials, done, study.direction) == []


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_kept_epoch_without_a_finite_loss_counts_as_diverged(loss: float, digits: Store, tmp_path: Path) -> None:
    """Another score chose it. Optuna fails a trial whose value is NaN, and the search would ask for another."""
    runner = _runner({"train": {"monitor": "val_accuracy"}}, digits, tmp_path)
    kept = TrialOutcome(loss, 0.3, "accuracy", 1, 1, 9, False, False, 60.0, 24.0, 2**30, None, 8, None, None)
    assert runner._values(kept.judged_by(["val_accuracy", "seconds"]), ["val_accuracy", "seconds"]) == [0.3, 60.0]
    values = runner._values(kept.judged_by(OBJECTIVES), OBJECTIVES)
    assert values == runner._worst(OBJECTIVES)
    study = optuna.create_study(directions=["minimize"] * 3)
    study.tell(study.ask(), values)
    assert study.trials[0].state == TrialState.COMPLETE


def test_a_training_of_more_samples_than_postgresql_counts_is_reported_by_epochs(digits: Store, tmp_path: Path) -> None:
    """Its column of steps has 32 bits; all trials of a study see as many samples, so all count alike."""
    assert _runner({}, digits, tmp_path)._samples_per_step == 1
    epochs, epoch = 2_000_000, len(digits.indices(Split.TRAIN))
    runner = _runner({"train": {"epochs": epochs}}, digits, tmp_path)
    with postgres() as address:
        storage = open_storage(address)
        study = open_study(storage, "study", ["minimize"])
        report = _pruning(study.ask(), "val_loss", runner._samples_per_step, may_prune=True)
        for number in (1, epochs):
            assert not report(number * epoch, Validation(0.5, 0.9))
        assert set(study.trials[0].intermediate_values) == {1, epochs}
        storage.remove_session()
        storage.engine.dispose()  # type: ignore[attr-defined] # of an RDBStorage
