"""Stage ``train``: the store into a model, every step through the accumulator."""

import time
from dataclasses import dataclass
from pathlib import Path

from bigstep.atomic_files import check_writable
from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.checkpoint import CheckpointConfig
from bigstep.config.hardware import HardwareConfig
from bigstep.config.memory import MemoryConfig
from bigstep.config.model import ModelConfig
from bigstep.config.tracking import TrackingConfig
from bigstep.config.train import TrainConfig
from bigstep.config.units import parse_duration
from bigstep.console import console, live_line
from bigstep.data.store import Store
from bigstep.errors import OutOfMemoryError
from bigstep.models.classifier import Classifier
from bigstep.planning.memory_budget import choose_slicing
from bigstep.project.parameters import check_params
from bigstep.runs.checkpoints import CheckpointWriter, ResumePoint
from bigstep.runs.low_memory_marker import LowMemoryMarker, failed_micro_batch_size
from bigstep.runs.metric_log import MetricLog
from bigstep.runs.tracked_run import as_metrics_now
from bigstep.stages.attempt_checkpoints import open_checkpoints
from bigstep.stages.attempt_run import stage_run
from bigstep.stages.stage_runner import Stage, run_stage
from bigstep.stages.train_outputs import dataset_record, log_results, write_results
from bigstep.step.noise_scale import advise
from bigstep.tracking.spool_tracker import SpoolTracker
from bigstep.tracking.tracker import Tracker
from bigstep.training.invariance import Invariance, check_slice_invariance
from bigstep.training.loop import recalibrate_best, train_epochs
from bigstep.training.out_of_memory_guard import is_out_of_memory
from bigstep.training.records import EpochRecord, StepRecord
from bigstep.training.setup import build_training
from bigstep.training.state import TrainingState
from bigstep.training.training_batches import TrainingBatches

__all__ = ["main", "train"]


def main(started: float | None = None) -> int:
    """Run the stage in the current folder; ``started`` as for :func:`run_stage`."""

    def body(stage: Stage) -> None:
        sections = stage.section(ModelConfig), stage.section(TrainConfig), stage.section(HardwareConfig)
        train(stage, *sections, stage.section(MemoryConfig), stage.section(TrackingConfig), stage.section(CheckpointConfig))

    return run_stage("train", body, started)


def train(  # the sections it reads
    stage: Stage,
    model: ModelConfig,
    train: TrainConfig,
    hardware: HardwareConfig,
    memory: MemoryConfig,
    tracking: TrackingConfig,
    checkpoint: CheckpointConfig,
) -> None:
    """Write ``results/train``: the best epoch's weights, how to rebuild the model, metrics, history and curves.

    Raises:
        CheckpointError: it was killed, and every checkpoint is damaged.
        ConfigError: the parameters do not fit the data.
        DataError: the prepared images are not those that were prepared.
        DivergedError: the gradient was not finite in too many steps in a row.
        ModelError: the model does not take the images, or never gave a finite loss.
        ProjectError: the results cannot be written.
    """
    check_writable(stage.paths.train)
    store = Store(stage.paths.prepared)
    store.verify()
    mark = stage.project.attempts / f"{stage.key}.memory.json"
    fit = choose_slicing(stage.project, check_params(stage.content), store, failed_micro_batch_size(mark))
    batch = fit.batch
    state = build_training(
        store,
        batch,
        model,
        train,
        hardware,
        memory,
        tracking.noise_scale,
        weights=stage.project.starting_weights(model.weights),
    )
    invariance = check_slice_invariance(state, train, store)
    console.print(f"{model.name}, {_num_parameters(state.classifier):,} parameters; {batch}")
    _report_invariance(invariance, model)
    checkpoints = open_checkpoints(stage, store, model, parse_duration(checkpoint.every))
    resumed = checkpoints.restore(state, micro_batch_size=batch.micro_batch_size)
    with stage_run(stage, tracking.experiment) as tracker:
        tracker.log_dataset(dataset_record(store, "training"))
        tracker.set_tags({"slice_invariant": str(invariance.holds).lower(), "slice_invariant_reason": invariance.reason})
        slicing = {"bigstep.micro_batch_size": batch.micro_batch_size, "bigstep.accumulation_steps": batch.accumulation_steps}
        tracker.set_tags({key: str(value) for key, value in slicing.items()})
        tracker.log_metrics(as_metrics_now({"predicted_peak_bytes": fit.predicted_bytes}, step=0))
        keeping = _Keeping(checkpoints, resumed, mark, fit.predicted_bytes)
        history = _run(stage, state, train, batch, store, tracker, hardware.num_workers, keeping)
        if model.norm == "batch" and model.batch_norm_statistics == "recalibrated" and state.best is not None:
            validation = recalibrate_best(state, store)
            console.print(f"recalibrated: val_loss {validation.loss:.4f}  val_accuracy {validation.accuracy:.4f}")
        _report_noise(state, tracker, batch)
        card = write_results(stage.paths, store, state, model, train, batch, history.rows)
        stage.inputs.check()
        log_results(stage.paths, tracker, store, card)
        state.guard.close()
    stage.inputs.check()  # once more, before the checkpoints are deleted
    checkpoints.clear()


@dataclass(frozen=True)
class _Keeping:
    """What is kept on disk while training."""

    checkpoints: CheckpointWriter
    resumed: ResumePoint | None
    mark: Path
    step_bytes: int


def _report_invariance(invariance: Invariance, model: ModelConfig) -> None:
    if not invariance.holds:
        console.print(f"not slice-invariant: {invariance.reason}")
    for layer in invariance.layers:
        console.print(f"  {layer.name} ({layer.kind}) {layer.reason}; running statistics: {model.batch_norm_statistics}")


def _report_noise(state: TrainingState, tracker: Tracker, batch: BatchSizes) -> None:
    if state.noise is not None:
        advice = advise(state.noise.summary(), batch.effective_batch_size, batch.accumulation_steps)
        console.print(advice)
        tracker.set_tags({"bigstep.advice": advice})


def _run(  # what training needs, each apart
    stage: Stage,
    state: TrainingState,
    train: TrainConfig,
    batch: BatchSizes,
    store: Store,
    tracker: SpoolTracker,
    num_workers: int | None,
    keeping: _Keeping,
) -> MetricLog:
    steps_per_epoch = -(-len(store.indices(0)) // batch.effective_batch_size)
    history = MetricLog(tracker, state.classifier.mean.device, train.epochs, steps_per_epoch)
    if keeping.resumed is not None:
        history.load_state_dict(keeping.resumed.values, state.step)
        tracker.set_tags(keeping.resumed.tags)
        console.print(f"goes on from the checkpoint of step {state.step}, in epoch {state.epoch + 1}")
    started = time.perf_counter()
    batches = TrainingBatches(store, train, batch.effective_batch_size, num_workers)
    marked = LowMemoryMarker(batches, keeping.mark, keeping.step_bytes, lambda: state.accumulator.micro_batch_size)

    def save() -> None:
        history.flush()  # first: what a checkpoint has behind it, the journal must hold
        tracker.spool.sync()
        keeping.checkpoints.save(state, history.state_dict(), micro_batch_size=batch.micro_batch_size)

    try:
        with stage.signals.deferred(), live_line("step", train.epochs * steps_per_epoch) as line:
            line.advance(state.step)
            for record in train_epochs(state, train, store, marked):
                history.add(record)
                if isinstance(record, StepRecord) and line.progress is not None:
                    line.advance(text=history.describe(record))
                ends = isinstance(record, EpochRecord)
                if stage.signals.received is not None or keeping.checkpoints.is_due(at_epoch_end=ends):
                    save()
                stage.signals.raise_if_received()
        if keeping.checkpoints.saved_step != state.step:
            save()  # the results may be refused, or the process killed as it writes them
        stage.signals.raise_if_received()
        stage.inputs.check()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"a batch of images must fit in memory, but: {error}; lower train.effective_batch_size"
        ) from None
    finally:
        marked.clear()
    if state.guard.num_failures:
        size = state.accumulator.micro_batch_size
        console.print(f"memory ran out {state.guard.num_failures} times; the micro-batch was made smaller, in the end {size}")
        tracker.set_tags({"bigstep.out_of_memory": str(state.guard.num_failures), "bigstep.final_micro_batch_size": str(size)})
    console.print(f"trained in {time.perf_counter() - started:.1f} s, {history.images_per_second:,.0f} images/s")
    return history


def _num_parameters(classifier: Classifier) -> int:
    return sum(parameter.numel() for parameter in classifier.parameters())
