"""Train a trial: from its point to parameters, and from the result back to the study."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import optuna
from optuna.trial import FrozenTrial, TrialState

from bigstep.config.params import Params
from bigstep.console import console
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.errors import ConfigError, OutOfMemoryError
from bigstep.optuna_mlflow.trial_mapping import begin_tags
from bigstep.planning.memory_budget import bytes_over_budget, predict
from bigstep.planning.slicing_choice import CheckedSlicing, choose_slicing, kept_compilation
from bigstep.project.parameters import check_params
from bigstep.project.paths import ProjectPaths
from bigstep.runs.checkpoint_files import clear_checkpoints, latest_values
from bigstep.runs.low_memory_marker import failed_micro_batch_size
from bigstep.runs.training_run import ShouldStop, never_stop
from bigstep.runtime.device import choose_device, possible_formats, total_memory_bytes
from bigstep.runtime.stop_signals import Signals
from bigstep.search.optuna_dashboard import attach_file, curve_of, note_run, show_constraints
from bigstep.search.space import Space
from bigstep.search.trial_params import trial_params
from bigstep.search.trial_record import MEASURED, TrialRecord, learned
from bigstep.search.workers.trial_training import CHECKPOINTS, TrialJob, TrialOutcome, train_trial
from bigstep.tracking.mlflow_links import run_page
from bigstep.training.out_of_memory_guard import is_out_of_memory
from bigstep.training.records import Validation
from bigstep.training.setup import task_of_store
from bigstep.training.snapshot import KeptSlicing, kept_slicing

if TYPE_CHECKING:
    from bigstep.search.request import SearchRequest

__all__ = ["TrialRunner", "study_folder"]

WORST_LOSS = 2.0  # times the loss or error of guessing: that of a trial that cannot be trained
LOWEST_IMAGES_PER_SECOND = 0.1  # the speed of a trial that cannot be trained
MIB = 2**20
MAX_STEP = 2**31 - 1  # of a value that is reported: PostgreSQL's column has 32 bits


def study_folder(project: ProjectPaths, study: str) -> Path:
    """Return the folder of the state of a study's trials."""
    return project.search / study


@final
class TrialRunner:
    """Trains trials of one study, one after another."""

    def __init__(
        self, project: ProjectPaths, store: Store, request: "SearchRequest", space: Space, signals: Signals, resident: int
    ) -> None:
        """Prepare for the trials of ``request``; ``resident`` are the bytes of this process before it trains."""
        self.project, self.store, self.request = project, store, request
        self.params = check_params(request.content)
        self.task = task_of_store(store)
        self.space, self.signals, self.resident = space, signals, resident

    def run_trial(self, study: optuna.Study, trial: optuna.Trial) -> None:
        """Train a trial of the search and report the result to the study."""
        point, record = self.space.suggest(trial), TrialRecord.read(trial)
        overrides = {**self.space.overrides(point), **(record.exact or {})}
        objectives = self.params.search.objectives
        may_prune = len(objectives) == 1 and record.start != 0
        report = _pruning(trial, objectives[0], self._samples_per_step, may_prune=may_prune)
        outcome = self._run(study, trial, overrides, report, {"bigstep.kind": "trial"})
        if outcome is not None and outcome.pruned:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, self._values(outcome, objectives))
        clear_checkpoints(self._folder(trial) / CHECKPOINTS)

    def run_confirmation(self, study: optuna.Study, finish: optuna.Study, trial: optuna.Trial) -> None:
        """Retrain a configuration of ``study`` as a trial of ``finish``, and report the result to ``finish``."""
        trial.suggest_int("item", 0, 10_000)
        record = TrialRecord.read(trial)
        assert record.of is not None
        assert record.kind is not None
        first: FrozenTrial = study.get_trials(deepcopy=False)[record.of]
        exact = TrialRecord.read(first).exact or {}
        overrides = {**self.space.overrides(first.params), **exact, "train.seed": record.seed}
        if record.micro_batch_asked is not None:
            overrides["hardware.micro_batch_size"] = record.micro_batch_asked
        objectives = self.params.search.objectives[:1]
        tags = {"bigstep.kind": record.kind, "bigstep.again": f"{study.study_name} {first.number}"}
        outcome = self._run(finish, trial, overrides, never_stop, tags)
        finish.tell(trial, self._values(outcome, objectives))
        clear_checkpoints(self._folder(trial) / CHECKPOINTS)

    def _run(
        self,
        study: optuna.Study,
        trial: optuna.Trial,
        overrides: Mapping[str, Any],
        report: ShouldStop,
        kind: Mapping[str, str],
    ) -> TrialOutcome | None:
        """Train; None, with a violated constraint, if the parameters are infeasible or memory ran out."""
        try:
            found = self._prepare(trial, overrides)
            return None if found is None else self._train(study, trial, *found, report, kind)
        except Exception as error:
            if not isinstance(error, OutOfMemoryError) and not is_out_of_memory(error):
                raise
            problem = (str(error).splitlines() or [type(error).__name__])[0]  # a MemoryError may have no text
            what = problem if isinstance(error, OutOfMemoryError) else f"memory ran out: {problem}"
            self._refuse(trial, "fits", 1.0, what)  # "memory" may be set: Optuna would ignore another value
            return None

    def _prepare(self, trial: optuna.Trial, overrides: Mapping[str, Any]) -> tuple[Params, CheckedSlicing] | None:
        """Return the parameters and the slicing; None, with a violated constraint, if they are infeasible."""
        try:
            params = trial_params(self.request.content, overrides)
        except ConfigError as error:
            self._refuse(trial, "possible", 1.0, str(error).splitlines()[0])
            return None
        values = latest_values(self._folder(trial) / CHECKPOINTS)
        kept = None if values is None else kept_slicing(values)
        fit = (self._as_asked if self.space.kind == "full" else self._planned)(trial, params, kept)
        if fit is None:
            return None
        params = fit.applied_to(params)
        failed_at = failed_micro_batch_size(self._folder(trial) / "mark.json")
        if failed_at is not None and params.model.ghost_batch_size is None:
            fit = replace(fit, batch=fit.batch.at_most(-(-failed_at // 2)))
        batch, rate = fit.batch, params.train.learning_rate
        TrialRecord(
            effective_batch_size=batch.effective_batch_size,
            micro_batch_size=batch.micro_batch_size,
            accumulation_steps=batch.accumulation_steps,
            learning_rate=rate,
            predicted_bytes=fit.predicted_bytes,
        ).write(trial)
        return params, fit

    def _as_asked(self, trial: optuna.Trial, params: Params, kept: KeptSlicing | None) -> CheckedSlicing | None:
        """Return the slicing of a point that has one; None if it exceeds the budget."""
        predicted = predict(self.project, params, self.store, params.batch)
        excess = bytes_over_budget(params, predicted, self.resident) / MIB
        format_name, compiled = possible_formats(params.hardware)[0], kept_compilation(params, kept)
        fit = CheckedSlicing(params.batch, predicted.peak_bytes, format_name, compiled)
        self._note_planned(trial, fit)
        if excess > 0:
            self._refuse(trial, "memory", excess, f"its step exceeds the memory budget by {excess:,.0f} MiB")
            return None
        trial.set_constraint("memory", excess)
        show_constraints(trial)
        return fit

    def _planned(self, trial: optuna.Trial, params: Params, kept: KeptSlicing | None) -> CheckedSlicing | None:
        """Choose the slicing of a point; None if not even the smallest fits."""
        by_rule = self.params.hardware.micro_batch_size == "auto"
        try:
            fit = choose_slicing(self.project, params, self.store, kept=kept, always_measured=not by_rule)
        except OutOfMemoryError as error:
            self._refuse(trial, "memory", 1.0, str(error).splitlines()[0])
            return None
        fit = replace(fit, threads=None)  # as configured: here nothing is imported beside the training
        self._note_planned(trial, fit)
        return fit

    def _note_planned(self, trial: optuna.Trial, fit: CheckedSlicing) -> None:
        """Show the planned sizes as parameters of a trial of the search; attributes say what was used."""
        if TrialRecord.read(trial).of is None:
            self.space.fix_planned(trial, fit.batch)

    def _refuse(self, trial: optuna.Trial, name: str, value: float, why: str) -> None:
        trial.set_constraint(name, value)
        show_constraints(trial)
        TrialRecord(refused=why).write(trial)
        note_run(trial, f"**infeasible**: {why}")
        console.print(f"trial {trial.number}: {why}")

    def _folder(self, trial: optuna.Trial) -> Path:
        record = TrialRecord.read(trial)
        number = trial.number if record.origin is None else record.origin
        name = f"{'trial' if record.of is None else 'again'}-{number}"
        return study_folder(self.project, self.params.search.study) / "trials" / name

    def _train(
        self,
        study: optuna.Study,
        trial: optuna.Trial,
        params: Params,
        fit: CheckedSlicing,
        report: ShouldStop,
        kind: Mapping[str, str],
    ) -> TrialOutcome:
        request, folder = self.request, self._folder(trial)
        name = f"{kind['bigstep.kind']} {trial.number}"
        frozen = study.get_trials(deepcopy=False)[trial.number]
        tags = {**begin_tags(frozen, study, request.parent_run), **kind, "mlflow.runName": name}

        def on_run_id(run_id: str) -> None:
            TrialRecord(run_id=run_id).write(trial)
            note_run(trial, run_page(request.uri, request.experiment_id, run_id, name))

        spool = folder.parents[1] / "spools" / folder.name
        models = study_folder(self.project, self.params.search.study) / "models"
        kept = models / folder.name if kind["bigstep.kind"] == "replicate" else None  # for an ensemble
        job = TrialJob(params, fit, folder, spool, request.uri, request.experiment, tags, kept)
        outcome = train_trial(self.project, self.store, job, self.signals, report, on_run_id)
        TrialRecord(**{name: outcome.values[name] for name in (*learned(outcome.score), *MEASURED, "noise_scale")}).write(trial)
        if outcome.curves is not None:
            attach_file(trial, outcome.curves, self.project.search / "artifacts")
            link = run_page(request.uri, request.experiment_id, outcome.run_id, name) if outcome.run_id else ""
            ended = f"**pruned** after {outcome.epochs} epochs" if outcome.pruned else ""
            note_run(trial, "\n\n".join(filter(None, (ended, link, curve_of(study, trial)))))
        return outcome

    def _values(self, outcome: TrialOutcome | None, objectives: Sequence[str]) -> list[float]:
        """Return the values of the objectives; a trial that ended early, perhaps at once, must not win by its short time."""
        if outcome is None or outcome.diverged:
            return self._worst(objectives)
        return [float(outcome.values[name]) for name in objectives]

    def _worst(self, objectives: Sequence[str]) -> list[float]:
        """Return values that no trial that was trained to its end can be worse than."""
        known = {
            **{name: WORST_LOSS * value for name, value in self.task.guessing.items()},
            "seconds": self._num_samples / LOWEST_IMAGES_PER_SECOND,
            "peak_bytes": float(total_memory_bytes(choose_device(self.params.hardware))),
        }
        return [known[name] for name in objectives]

    @property
    def _num_samples(self) -> int:
        """Of a whole training."""
        return (self.params.search.epochs or self.params.train.epochs) * len(self.store.indices(Split.TRAIN))

    @property
    def _samples_per_step(self) -> int:
        """Those of an epoch where a storage cannot count samples to the end, else 1; the same in all trials of a study."""
        return 1 if self._num_samples <= MAX_STEP else len(self.store.indices(Split.TRAIN))


def _pruning(trial: optuna.Trial, objective: str, samples_per_step: int, *, may_prune: bool) -> ShouldStop:
    """Report each epoch by the number of samples seen, so that batch sizes are compared at equal progress."""

    def report(samples: int, validation: Validation) -> bool:
        value = validation.loss if objective == "val_loss" else validation.score
        if not may_prune or not math.isfinite(value):
            return False
        trial.report(value, samples // samples_per_step)
        return trial.should_prune()

    return report
