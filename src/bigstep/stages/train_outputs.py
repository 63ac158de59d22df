"""Write a training run's outputs, which depend only on what was learned, and log them to MLflow."""

import contextlib
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bigstep.atomic_files import whole_file, write_csv, write_json, write_metrics
from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.data import short_source
from bigstep.config.params import Params
from bigstep.data.store import Store
from bigstep.errors import ModelError
from bigstep.models.model_files import ModelCard, save_model
from bigstep.planning.slicing_record import SLICING, SlicingRecord
from bigstep.project.paths import StagePaths
from bigstep.report.training_curves import draw_curves
from bigstep.runs.trained_model import model_card, model_record
from bigstep.tracking.tracker import DatasetRecord, Tracker
from bigstep.training.state import TrainingState

__all__ = ["dataset_record", "log_model", "log_results", "log_slicing", "write_model", "write_results"]


def write_model(paths: StagePaths, store: Store, state: TrainingState, params: Params, batch: BatchSizes) -> ModelCard:
    """Write the best epoch's weights, and how to rebuild the model.

    Raises:
        ModelError: no epoch had a finite loss.
    """
    if state.best is None:
        raise ModelError(f"{params.train.monitor}: expected a finite value in some epoch, got none; lower train.learning_rate")
    return save_model(state.best.weights, model_card(store, state, state.best, params, batch), paths.train)


def write_results(paths: StagePaths, state: TrainingState, rows: list[dict[str, Any]]) -> None:
    """Write metrics, history and curves; epochs are counted from 1."""
    best, folder = state.best, paths.train
    assert best is not None
    metrics = {
        "best_val_loss": best.loss,
        f"best_val_{state.task.score}": best.score,
        "best_epoch": best.epoch + 1,
        "epochs": state.epoch,
        "num_updates": state.num_updates,
        "num_dropped": state.num_dropped,
    }
    write_csv(list(rows[0]), ([row[name] for name in rows[0]] for row in rows), folder / "history.csv")
    with whole_file(folder / "curves.png") as beside:
        draw_curves(rows, beside, state.task.score)
    write_metrics(metrics, folder / "metrics.json")


def log_model(paths: StagePaths, tracker: Tracker, store: Store, card: ModelCard, *, export: bool) -> None:
    """Log the model, whose export takes long: as early as it can be.

    With ``export`` it is exported here, where torch is imported, and not by the process that delivers the run.
    """
    record = model_record(paths.train, store, card)
    with tempfile.TemporaryDirectory(prefix="bigstep-export-") as scratch:
        if export:
            from bigstep.tracking.exporting import export_model  # imports what builds each kind of network

            with contextlib.suppress(Exception):  # it is tried again where it is delivered, and the problem said there
                record = replace(record, program=export_model(paths.train, record.example, Path(scratch)))
        tracker.log_model(record)


def log_results(paths: StagePaths, tracker: Tracker, store: Store) -> None:
    """Log the files."""
    for path in (
        paths.train / "curves.png",
        paths.train / "history.csv",
        paths.train / "metrics.json",
        paths.train / "model.json",
    ):
        tracker.log_file(path, "train")
    tracker.log_file(store.paths.skipped, "prepare")
    tracker.log_file(store.paths.manifest, "prepare")


def log_slicing(tracker: Tracker, record: SlicingRecord) -> None:
    """Log what was known of the slicings, for the stage ``evaluate`` to show."""
    with tempfile.TemporaryDirectory(prefix="bigstep-slicing-") as scratch:
        write_json(asdict(record), Path(scratch, SLICING))
        tracker.log_file(Path(scratch, SLICING), "train")


def dataset_record(store: Store, context: str) -> DatasetRecord:
    """Describe the data that a run used."""
    manifest = store.manifest
    profile = {f"num_{part}": count for part, count in manifest.part_sizes.items()}
    return DatasetRecord(short_source(manifest.source), manifest.digest, manifest.source, context, profile)
