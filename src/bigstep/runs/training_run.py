"""One training run, of stage `train` and of every trial of a search: it is tracked, and can be stopped and resumed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.params import Params
from bigstep.console import console, format_score, live_line
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.errors import OutOfMemoryError
from bigstep.runs.checkpoints import CheckpointWriter, ResumePoint
from bigstep.runs.low_memory_marker import LowMemoryMarker
from bigstep.runs.marked_batches import open_batches
from bigstep.runs.metric_log import MetricLog
from bigstep.runtime.stop_signals import Signals
from bigstep.tracking.spool_tracker import SpoolTracker
from bigstep.training.loop import train_epochs
from bigstep.training.out_of_memory_guard import is_out_of_memory
from bigstep.training.records import EpochRecord, StepRecord, Validation
from bigstep.training.shares import check_same_start
from bigstep.training.state import TrainingState
from bigstep.training.training_batches import lost_worker
from bigstep.training.validation import is_recalibrated, recalibrate_best

__all__ = ["ShouldStop", "TrainingJob", "TrainingRun", "never_stop"]

ShouldStop = Callable[[int, Validation], bool]
"""Is called after each epoch with the samples seen so far and the validation; returns whether to stop here."""


def never_stop(samples_seen: int, validation: Validation) -> bool:
    """Train to the end."""
    del samples_seen, validation
    return False


@dataclass(frozen=True)
class TrainingJob:
    """What is trained, and what is kept on disk meanwhile."""

    store: Store
    params: Params
    batch: BatchSizes
    step_bytes: int
    """Predicted for one step."""
    checkpoints: CheckpointWriter
    marker: Path
    """Of a step that runs with little memory left."""


@final
class TrainingRun:
    """Trains ``state``, logs to ``tracker``, and writes checkpoints."""

    def __init__(
        self, job: TrainingJob, state: TrainingState, tracker: SpoolTracker, signals: Signals, resumed: ResumePoint | None
    ) -> None:
        """Start, or resume where ``resumed`` says that ``state`` was restored from a checkpoint."""
        self.job, self.state, self._tracker, self._signals = job, state, tracker, signals
        self._num_samples = len(job.store.indices(Split.TRAIN))
        steps_per_epoch = -(-self._num_samples // job.batch.effective_batch_size)
        self._num_steps = job.params.train.epochs * steps_per_epoch
        self.log = MetricLog(tracker, state.classifier.mean.device, job.params.train.epochs, steps_per_epoch, state.task.score)
        if resumed is not None:
            self.log.load_state_dict(resumed.values, state.step)
            tracker.set_tags(resumed.tags)
            console.print(f"resuming from the checkpoint of step {state.step}, in epoch {state.epoch + 1}")
        if state.processes is not None:
            tracker.set_tags({"bigstep.processes": str(state.processes.count)})

    def run(self, should_stop: ShouldStop = never_stop) -> bool:
        """Train the epochs that are left.

        Returns:
            Whether ``should_stop`` ended the training before its last epoch.

        Raises:
            DivergedError: the gradient was not finite in too many steps in a row.
            OutOfMemoryError: not one sample at a time fits, or a batch of samples does not.
            StopRequestedError: the process was asked to stop; there is a checkpoint of this step.
        """
        job, started = self.job, time.perf_counter()
        check_same_start(self.state)
        batches = open_batches(job.store, job.params, job.batch, self.state, job.marker, job.step_bytes)
        try:
            is_stopped = self._train(batches, should_stop)
        except (RuntimeError, MemoryError) as error:
            lost = lost_worker(error)
            if lost is not None:
                raise lost from None
            if not is_out_of_memory(error):
                raise
            problem = (str(error).splitlines() or [type(error).__name__])[0]  # of a worker with its traceback
            raise OutOfMemoryError(
                f"memory: expected a batch of samples to fit, got: {problem}; lower train.effective_batch_size"
            ) from None
        finally:
            batches.clear()
        self._report_out_of_memory()
        console.print(f"trained in {time.perf_counter() - started:.1f} s, {self.log.images_per_second:,.0f} samples/s")
        return is_stopped

    def recalibrate(self) -> None:
        """Recompute the running statistics of the best weights if the model is configured so."""
        state = self.state
        if is_recalibrated(self.job.params.model) and state.best is not None:
            validation = recalibrate_best(state, self.job.store)
            loss, score = format_score(validation.loss), format_score(validation.score)
            console.print(f"recalibrated: val_loss {loss}  val_{state.task.score} {score}")

    def save(self) -> None:
        """Write a checkpoint, after the metrics up to it."""
        self.log.flush()
        self._tracker.spool.sync()
        self.job.checkpoints.save(self.state, self.log.state_dict(), micro_batch_size=self.job.batch.micro_batch_size)

    def _train(self, batches: LowMemoryMarker, should_stop: ShouldStop) -> bool:
        if self._stopped_before(should_stop):
            return True
        state, job = self.state, self.job
        with live_line("step", self._num_steps) as line:
            line.advance(state.step)
            for record in train_epochs(state, job.params.train, job.store, batches):
                self.log.add(record)
                if isinstance(record, StepRecord) and line.progress is not None:
                    line.advance(text=self.log.describe(record))
                ends = isinstance(record, EpochRecord)
                if self._signals.is_stopping() or job.checkpoints.is_due(at_epoch_end=ends):
                    self.save()
                self._signals.raise_if_received()
                stops = isinstance(record, EpochRecord) and should_stop(state.epoch * self._num_samples, record.validation)
                if stops and state.epoch < job.params.train.epochs:
                    return True
        if job.checkpoints.saved_step != state.step:
            self.save()  # what follows may be refused, or the process killed
        self._signals.raise_if_received()
        return False

    def _stopped_before(self, should_stop: ShouldStop) -> bool:
        """Call ``should_stop`` for every epoch before the checkpoint: the caller needs every value.

        After the last epoch there is nothing to stop, here as in a training that was never killed.
        """
        score, last = f"val_{self.state.task.score}", self.job.params.train.epochs
        answers = {
            row["epoch"]: should_stop(row["epoch"] * self._num_samples, Validation(row["val_loss"], row[score]))
            for row in self.log.rows
        }
        return any(stops for epoch, stops in answers.items() if epoch < last)

    def _report_out_of_memory(self) -> None:
        failures, size = self.state.guard.num_failures, self.state.accumulator.micro_batch_size
        if failures:
            console.print(f"memory ran out {failures} times; the micro-batch was made smaller, in the end {size}")
            self._tracker.set_tags({"bigstep.out_of_memory": str(failures), "bigstep.final_micro_batch_size": str(size)})
