"""Stage ``train``: the store into a model, every step through the accumulator."""

import csv
import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigstep.config.batch import Batch
from bigstep.config.checkpoint import Checkpoint, parse_duration
from bigstep.config.hardware import Hardware
from bigstep.config.memory import Memory
from bigstep.config.model import Model
from bigstep.config.tracking import Tracking
from bigstep.config.train import Train
from bigstep.console import console, live_line
from bigstep.data.batches import ordered_batches
from bigstep.data.keys import derive_key
from bigstep.data.store import Store
from bigstep.errors import ConfigError, ModelError, OutOfMemoryError
from bigstep.files import check_writable, whole_file, write_json
from bigstep.machine import MEMORY_FORMATS, choose_device, set_threads
from bigstep.models.building import InputShape
from bigstep.models.classifier import Classifier
from bigstep.models.saving import ModelCard, build_classifier, save_model
from bigstep.report.curves import draw_curves
from bigstep.stages.entry import Stage, run_stage
from bigstep.stages.history import History
from bigstep.stages.marks import MarkedBatches, read_mark
from bigstep.stages.resume import Checkpoints, Resumed, open_checkpoints
from bigstep.stages.runs import stage_run, timed
from bigstep.step.noise import advise
from bigstep.tracking.base import DatasetRecord, ModelRecord, Tracker
from bigstep.tracking.spool import SpoolTracker
from bigstep.training.batches import TrainingBatches
from bigstep.training.class_weights import class_weights
from bigstep.training.guard import is_out_of_memory
from bigstep.training.invariance import Invariance, find_invariance
from bigstep.training.loop import recalibrate_best, set_training_mode, train_epochs
from bigstep.training.records import EpochRecord, StepRecord
from bigstep.training.state import Best, TrainingState, build_state

if TYPE_CHECKING:
    from bigstep.stages.budget import Fit

__all__ = ["main", "train"]


def main() -> int:
    """Run the stage in the current folder."""

    def body(stage: Stage) -> None:
        sections = stage.section(Model), stage.section(Train), stage.section(Hardware)
        train(stage, *sections, stage.section(Memory), stage.section(Tracking), stage.section(Checkpoint))

    return run_stage("train", body)


def train(  # the sections it reads
    stage: Stage, model: Model, train: Train, hardware: Hardware, memory: Memory, tracking: Tracking, checkpoint: Checkpoint
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
    fit = _fit(stage, store, read_mark(mark))
    batch = fit.batch
    _check_batch_norm(model, batch, len(store.indices(0)))
    state = _begin(stage, store, batch, model, train, hardware, memory, tracking)
    invariance = _judge_invariance(state, train, store)
    console.print(f"{model.name}, {_num_parameters(state.classifier):,} parameters; {batch}")
    _report_invariance(invariance, model)
    checkpoints = open_checkpoints(stage, store, model, parse_duration(checkpoint.every))
    resumed = checkpoints.restore(state, micro_batch_size=batch.micro_batch_size)
    with stage_run(stage, tracking.experiment) as tracker:
        tracker.log_dataset(_dataset(store, "training"))
        tracker.set_tags({"slice_invariant": str(invariance.holds).lower(), "slice_invariant_reason": invariance.reason})
        slicing = {"bigstep.micro_batch_size": batch.micro_batch_size, "bigstep.accumulation_steps": batch.accumulation_steps}
        tracker.set_tags({key: str(value) for key, value in slicing.items()})
        tracker.log_metrics(timed({"predicted_peak_bytes": fit.predicted_bytes}, step=0))
        keeping = _Keeping(checkpoints, resumed, mark, fit.predicted_bytes)
        history = _run(stage, state, train, batch, store, tracker, hardware.num_workers, keeping)
        if model.norm == "batch" and model.batch_norm_statistics == "recalibrated" and state.best is not None:
            validation = recalibrate_best(state, store)
            console.print(f"recalibrated: val_loss {validation.loss:.4f}  val_accuracy {validation.accuracy:.4f}")
        _report_noise(state, tracker, batch)
        card = _write_results(stage, store, state, model, train, batch, history.rows)
        _log_results(stage, tracker, store, card)
        state.guard.close()
    checkpoints.clear()


@dataclass(frozen=True)
class _Keeping:
    """What is kept on disk while training."""

    checkpoints: Checkpoints
    resumed: Resumed | None
    mark: Path
    step_bytes: int


def _fit(stage: Stage, store: Store, died_at: int | None) -> "Fit":
    """Choose the slicing; loaded by name, since it decides nothing that is learned and is no dependency of the stage."""
    budget = importlib.import_module("bigstep.stages.budget")
    checking = importlib.import_module("bigstep.stages.checking")
    found: Fit = budget.fit_batch(stage.project, checking.check_params(stage.content), store, died_at)
    return found


def _judge_invariance(state: TrainingState, train: Train, store: Store) -> Invariance:
    set_training_mode(state)
    images, _ = next(ordered_batches(store, 0, 3))
    return find_invariance(state.classifier, images.to(state.classifier.mean.device), keyed=train.keyed_randomness)


def _report_invariance(invariance: Invariance, model: Model) -> None:
    if not invariance.holds:
        console.print(f"not slice-invariant: {invariance.reason}")
    for layer in invariance.layers:
        console.print(f"  {layer.name} ({layer.kind}) {layer.reason}; running statistics: {model.batch_norm_statistics}")


def _report_noise(state: TrainingState, tracker: Tracker, batch: Batch) -> None:
    if state.noise is not None:
        advice = advise(state.noise.summary(), batch.effective_batch_size, batch.accumulation_steps)
        console.print(advice)
        tracker.set_tags({"bigstep.advice": advice})


def _run(  # what training needs, each apart
    stage: Stage,
    state: TrainingState,
    train: Train,
    batch: Batch,
    store: Store,
    tracker: SpoolTracker,
    num_workers: int | None,
    keeping: _Keeping,
) -> History:
    steps_per_epoch = -(-len(store.indices(0)) // batch.effective_batch_size)
    history = History(tracker, state.classifier.mean.device, train.epochs, steps_per_epoch)
    if keeping.resumed is not None:
        history.go_on(keeping.resumed.values, state.step)
        tracker.set_tags(keeping.resumed.tags)
        console.print(f"goes on from the checkpoint of step {state.step}, in epoch {state.epoch + 1}")
    started = time.perf_counter()
    batches = TrainingBatches(store, train, batch.effective_batch_size, num_workers)
    marked = MarkedBatches(batches, keeping.mark, keeping.step_bytes, lambda: state.accumulator.micro_batch_size)

    def save() -> None:
        history.flush()  # first: what a checkpoint has behind it, the journal must hold
        tracker.spool.sync()
        keeping.checkpoints.save(state, history.kept(), micro_batch_size=batch.micro_batch_size)

    try:
        with stage.signals.deferred(), live_line("step", train.epochs * steps_per_epoch) as line:
            line.advance(state.step)
            for record in train_epochs(state, train, store, marked):
                history.add(record)
                if isinstance(record, StepRecord) and line.progress is not None:
                    line.advance(text=history.describe(record))
                ends = isinstance(record, EpochRecord)
                if stage.signals.told is not None or keeping.checkpoints.is_due(at_epoch_end=ends):
                    save()
                stage.signals.raise_if_told()
        stage.signals.raise_if_told()
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


def _begin(
    stage: Stage,
    store: Store,
    batch: Batch,
    model: Model,
    train: Train,
    hardware: Hardware,
    memory: Memory,
    tracking: Tracking,
) -> TrainingState:
    set_threads(hardware)
    device = choose_device(hardware)
    torch.manual_seed(derive_key("weights", train.seed))
    manifest = store.manifest
    shape = InputShape(manifest.channels, manifest.size, len(manifest.classes))
    classifier = build_classifier(
        model,
        shape,
        mean=manifest.mean,
        std=manifest.std,
        memory_format=MEMORY_FORMATS[hardware.memory_format],
        weights=None if model.weights is None else stage.project.resolve(model.weights),
        checkpoint_activations=memory.checkpoint_activations,
    ).to(device)
    return build_state(
        classifier,
        train,
        batch,
        num_samples=len(store.indices(0)),
        num_classes=len(manifest.classes),
        class_weights=class_weights(train, store),
        model=model,
        noise=tracking.noise_scale,
    )


def _check_batch_norm(model: Model, batch: Batch, num_samples: int) -> None:
    left = num_samples % batch.effective_batch_size
    if model.norm == "batch" and (left == 1 or batch.effective_batch_size == 1 or batch.micro_batch_size == 1):
        raise ConfigError(
            f"with model.norm batch every micro-batch must hold at least two samples, but of {num_samples} training images in "
            f"effective batches of {batch.effective_batch_size} one is left alone; change train.effective_batch_size by one"
        )


def _write_results(
    stage: Stage,
    store: Store,
    state: TrainingState,
    model: Model,
    train: Train,
    batch: Batch,
    rows: list[dict[str, Any]],
) -> ModelCard:
    best = state.best
    if best is None:
        raise ModelError(f"{train.select_by} must be finite in some epoch, but was in none; lower train.learning_rate")
    folder = stage.paths.train
    card = save_model(best.weights, _card(store, state, best, model, train, batch), folder)
    metrics = {
        "val_loss": best.loss,
        "val_accuracy": best.accuracy,
        "best_epoch": best.epoch,
        "epochs": state.epoch,
        "num_updates": state.num_updates,
        "num_dropped": state.num_dropped,
    }
    with whole_file(folder / "history.csv") as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with whole_file(folder / "curves.png") as beside:
        draw_curves(rows, beside)
    write_json(metrics, folder / "metrics.json")
    return card


def _card(store: Store, state: TrainingState, best: Best, model: Model, train: Train, batch: Batch) -> ModelCard:
    manifest = store.manifest
    return ModelCard(
        model=model.model_dump(mode="json"),
        classes=manifest.classes,
        size=manifest.size,
        channels=manifest.channels,
        mean=manifest.mean,
        std=manifest.std,
        precision=train.precision,
        effective_batch_size=batch.effective_batch_size,
        epoch=best.epoch,
        num_updates=state.num_updates,
        val_loss=best.loss,
        val_accuracy=best.accuracy,
        data_digest=manifest.digest,
        validation_digest=manifest.digests["validation"],
    )


def _log_results(stage: Stage, tracker: Tracker, store: Store, card: ModelCard) -> None:
    paths = stage.paths
    for path in (
        paths.train / "curves.png",
        paths.train / "history.csv",
        paths.train / "metrics.json",
        paths.train / "model.json",
    ):
        tracker.log_file(path, "train")
    tracker.log_file(store.paths.refused, "prepare")
    tracker.log_file(store.paths.manifest, "prepare")
    example = np.pad(np.asarray(store.images[store.indices(1)[:2]]), ((0, 0), (1, 2), (0, 1), (0, 0)), mode="edge")
    tags = {
        "bigstep.weights_sha256": card.weights_sha256,
        "bigstep.validation_digest": card.validation_digest,
        "bigstep.val_loss": repr(card.val_loss),
        "bigstep.val_accuracy": repr(card.val_accuracy),
    }
    tracker.log_model(ModelRecord(paths.train, example, card.classes, tags))


def _dataset(store: Store, context: str) -> DatasetRecord:
    manifest = store.manifest
    profile = {f"num_{part}": sum(counts.values()) for part, counts in manifest.counts.items()}
    return DatasetRecord(manifest.source, manifest.digest, manifest.source, context, profile)


def _num_parameters(classifier: Classifier) -> int:
    return sum(parameter.numel() for parameter in classifier.parameters())
