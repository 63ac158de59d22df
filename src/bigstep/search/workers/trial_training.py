"""One training of a search: the same run as that of stage ``train``, with its results in memory."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigstep.atomic_files import whole_file
from bigstep.config.params import Params, flatten
from bigstep.config.units import parse_duration
from bigstep.console import console
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.errors import DivergedError, ModelError
from bigstep.memory.measurement import peak_memory_bytes, restart_peak_memory
from bigstep.models.model_files import save_model
from bigstep.planning.slicing_choice import CheckedSlicing
from bigstep.project.paths import ProjectPaths
from bigstep.report.training_curves import draw_curves
from bigstep.runs.checkpoints import CheckpointWriter
from bigstep.runs.helper_processes import helper_request, training_group
from bigstep.runs.tracked_run import TrackedRun, as_metrics_now, tracked_run
from bigstep.runs.trained_model import model_card
from bigstep.runs.training_run import ShouldStop, TrainingJob, TrainingRun
from bigstep.runtime.environment import keep_compiled_code
from bigstep.runtime.heap import return_memory
from bigstep.runtime.stop_signals import Signals
from bigstep.training.setup import build_training
from bigstep.training.state import TrainingState

__all__ = ["CHECKPOINTS", "TrialJob", "TrialOutcome", "train_trial"]

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TrialJob:
    """What to train, where its state is kept, and where to log it."""

    params: Params
    fit: CheckedSlicing
    folder: Path
    """Of the trial's checkpoints, low-memory marker and curves."""
    spool: Path
    uri: str
    experiment: str
    tags: Mapping[str, str]
    kept_model: Path | None = None
    """Where the best epoch's model is kept, if it is."""


@dataclass(frozen=True)
class TrialOutcome:
    """The result of a trial; loss and score are those of the best epoch."""

    val_loss: float
    val_score: float
    score: str
    """What the score is: accuracy, f1 or mae."""
    best_epoch: int | None
    """Counted from 1; None: there is no epoch with a finite loss."""
    epochs: int
    num_updates: int
    pruned: bool
    diverged: bool
    seconds: float
    images_per_second: float
    peak_bytes: int
    noise_scale: float | None
    """In samples, at the end; None if it was not measured."""
    micro_batch_size: int
    run_id: str | None
    curves: Path | None

    @property
    def values(self) -> dict[str, Any]:
        """Everything that may be recorded or optimized, by name."""
        return {**vars(self), f"val_{self.score}": self.val_score}

    def judged_by(self, objectives: Sequence[str]) -> "TrialOutcome":
        """Return it, as diverged without a finite value of each: an epoch that another score chose may have no finite loss."""
        is_finite = all(math.isfinite(self.values[name]) for name in objectives)
        return self if is_finite else replace(self, diverged=True)


def train_trial(
    project: ProjectPaths, store: Store, job: TrialJob, signals: Signals, report: ShouldStop, on_run_id: Callable[[str], None]
) -> TrialOutcome:
    """Train to the end or until ``report`` stops it; a training that was interrupted resumes from its checkpoint.

    The caller deletes the checkpoints after it has reported the result to the study.

    Args:
        project: the parameters may name files in it.
        store: the images.
        job: what to train.
        signals: that the process received; it stops after a step, with a checkpoint.
        report: is called after each epoch.
        on_run_id: is called with the run's id as soon as it is known.

    Raises:
        OutOfMemoryError: not even a single sample fits.
        StopRequestedError: a signal stopped the process.
    """
    params, batch = job.params, job.fit.batch
    if params.hardware.compile:
        keep_compiled_code(project.compiled)
    weights = project.starting_weights(params.model.weights)
    checkpoints = CheckpointWriter(job.folder / CHECKPOINTS, parse_duration(params.hardware.checkpoint_interval), {})
    training = TrainingJob(store, params, batch, job.fit.predicted_bytes, checkpoints, job.folder / "mark.json")
    with training_group(helper_request(training, weights), signals) as group:
        state = build_training(store, batch, params, weights=weights, group=group)
        try:
            return _tracked(job, training, state, signals, report, on_run_id)
        finally:
            state.guard.close()


def _tracked(  # what train_trial was given
    job: TrialJob,
    training: TrainingJob,
    state: TrainingState,
    signals: Signals,
    report: ShouldStop,
    on_run_id: Callable[[str], None],
) -> TrialOutcome:
    params, batch = job.params, job.fit.batch
    device = state.classifier.mean.device
    return_memory()  # of earlier trials in this process: the peak is this one's
    restart_peak_memory(device)
    flat = {**flatten(params), "hardware.micro_batch_size": batch.micro_batch_size}
    flat["hardware.accumulation_steps"] = batch.accumulation_steps
    with tracked_run(job.spool, job.uri, job.experiment, params=flat, tags=job.tags) as tracked:
        at_start = tracked.run_id()
        if at_start is not None:
            on_run_id(at_start)
        tracked.tracker.log_metrics(as_metrics_now({"predicted_peak_bytes": job.fit.predicted_bytes}, step=0))
        outcome = _train(job, training, state, signals, report, tracked)
        outcome = replace(outcome, peak_bytes=peak_memory_bytes(device)).judged_by(params.search.objectives)
        _log_outcome(tracked, outcome)
    run_id = tracked.run_id()
    if at_start is None and run_id is not None:  # MLflow answered late
        on_run_id(run_id)
    return replace(outcome, run_id=run_id)


def _train(
    job: TrialJob, training: TrainingJob, state: TrainingState, signals: Signals, report: ShouldStop, tracked: TrackedRun
) -> TrialOutcome:
    params, store = job.params, training.store
    resumed = training.checkpoints.restore(state, micro_batch_size=job.fit.batch.micro_batch_size)
    run = TrainingRun(training, state, tracked.tracker, signals, resumed)
    is_pruned = has_diverged = False
    try:
        is_pruned = run.run(report)
    except (DivergedError, ModelError) as error:
        has_diverged = True
        console.print(str(error))
    if not is_pruned:
        run.recalibrate()
    if job.kept_model is not None and state.best is not None:
        save_model(state.best.weights, model_card(store, state, state.best, params, job.fit.batch), job.kept_model)
    curves = _draw(run.log.rows, state.task.score, job.folder / "curves.png")
    tracked.tracker.log_file(job.folder / "curves.png")
    return _outcome(run, curves, is_pruned=is_pruned, has_diverged=has_diverged)


def _outcome(run: TrainingRun, curves: Path | None, *, is_pruned: bool, has_diverged: bool) -> TrialOutcome:
    state, best, speed = run.state, run.state.best, run.log.images_per_second
    return TrialOutcome(
        val_loss=float("nan") if best is None else best.loss,
        val_score=float("nan") if best is None else best.score,
        score=state.task.score,
        best_epoch=None if best is None else best.epoch + 1,
        epochs=state.epoch,
        num_updates=state.num_updates,
        pruned=is_pruned,
        diverged=has_diverged or best is None,
        seconds=state.epoch * len(run.job.store.indices(Split.TRAIN)) / speed if speed else 0.0,
        images_per_second=speed,
        peak_bytes=0,
        noise_scale=state.noise.value,
        micro_batch_size=state.accumulator.micro_batch_size,
        run_id=None,
        curves=curves,
    )


def _draw(rows: list[dict[str, Any]], score: str, path: Path) -> Path | None:
    if not rows:
        return None
    with whole_file(path) as beside:
        draw_curves(rows, beside, score)
    return path


def _log_outcome(tracked: TrackedRun, outcome: TrialOutcome) -> None:
    values = {
        "best_val_loss": outcome.val_loss,
        f"best_val_{outcome.score}": outcome.val_score,
        "training_seconds": outcome.seconds,
        "training_images_per_second": outcome.images_per_second,
        "training_peak_bytes": outcome.peak_bytes,
    }
    tracked.tracker.log_metrics(as_metrics_now(values, step=outcome.epochs))
    state = "PRUNED" if outcome.pruned else "COMPLETE"
    tracked.tracker.set_tags({"optuna.state": state, "bigstep.diverged": str(outcome.diverged).lower()})
