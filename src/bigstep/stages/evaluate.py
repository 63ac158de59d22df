"""Stage ``evaluate``: the trained model on the test part."""

import contextlib
import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bigstep.atomic_files import read_metrics, read_record
from bigstep.config.data import short_source
from bigstep.config.params import Params
from bigstep.config.section import Section
from bigstep.config.yaml_files import apply_overrides, read_yaml, write_yaml
from bigstep.console import format_score
from bigstep.data.ordered_batches import ordered_batches
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.evaluation.more_metrics import MoreMetrics
from bigstep.evaluation.predictions import Predictions, predict_batches
from bigstep.models.classifier import Classifier
from bigstep.models.ensemble import Ensemble
from bigstep.models.model_files import ModelCard, load_classifier
from bigstep.planning.slicing_record import SLICING, SlicingRecord
from bigstep.report.card import CardStory
from bigstep.report.evaluation_page import PageStory
from bigstep.report.evaluation_results import write_predictions, write_results
from bigstep.report.machine_section import machine_section, write_copy
from bigstep.report.reports import report_of
from bigstep.report.run_sections import changed_parameters, curve_section, parameter_section
from bigstep.report.slicing_section import slicing_section
from bigstep.runs.tracked_run import as_metrics_now
from bigstep.runtime.device import choose_device, set_threads
from bigstep.runtime.environment import DVC_EXPERIMENT, read_variable
from bigstep.runtime.heap import keep_heap, return_memory
from bigstep.stages.attempt_run import stage_run
from bigstep.stages.stage_runner import Stage, run_stage
from bigstep.tracking.database import without_password
from bigstep.tracking.delivery import Deliverer
from bigstep.tracking.mlflow_tracker import git_tags
from bigstep.tracking.spool_tracker import SpoolTracker
from bigstep.tracking.tracker import DatasetRecord

__all__ = ["evaluate", "main"]

PAGE, CARD = "report.html", "card.md"
BATCH = 256  # samples of a forward pass


def main(started: float | None = None, delivery: Deliverer | None = None) -> int:
    """Run the stage in the current folder; the arguments are those of :func:`run_stage`."""
    return run_stage("evaluate", evaluate, started, delivery)


def evaluate(stage: Stage) -> None:
    """Write ``results/evaluate``: metrics, scores by class, predictions, pictures, a page and a model card.

    Raises:
        DataError: the prepared images are not those that were prepared.
        ModelError: there is no model, or it was trained on other data.
    """
    params = stage.params
    set_threads(params.hardware)
    store = Store(stage.paths.prepared)
    store.verify_former()
    classifier, card = load_classifier(stage.paths.train, code=params.model.name)  # contiguous, whatever the training chose
    device = choose_device(params.hardware)
    if device.type == "cpu":
        keep_heap()
    classifier.to(device)
    report = report_of(card.output, params.evaluate)
    metrics = MoreMetrics(params.evaluate.metrics, card.output, report.score_names)
    write_predictions(stage.paths.evaluate, store, metrics.watch(_predict(stage, store, classifier, card)), report)
    return_memory()
    more = metrics.values()
    scores = write_results(
        stage.paths.evaluate, store, report, _facts(card), more, _story(stage, card), _card_story(stage, card)
    )
    with stage_run(stage, params.tracking.experiment) as tracker:
        _log_results(stage, tracker, store, scores.summary() | more)
        _log_page(stage, tracker, card)
        tracker.set_tags({"mlflow.note.content": _note(stage, card, scores.title)})
        stage.inputs.check()
        name = params.tracking.registered_model or f"bigstep-{short_source(store.manifest.source)}"
        tracker.promote(name, card.weights_sha256, (stage.paths.evaluate / CARD).read_text(encoding="utf-8"))


def _predict(stage: Stage, store: Store, classifier: Classifier | Ensemble, card: ModelCard) -> Iterator[Predictions]:
    """Yield the predictions of each batch; the files are complete only if nothing changed until then."""
    yield from predict_batches(classifier, card.output, ordered_batches(store, Split.TEST, BATCH))
    stage.inputs.check()


def _story(stage: Stage, card: ModelCard) -> PageStory:
    """Return what the page says of the training; parameters that decide no result are not among it."""
    params, metrics = stage.params, read_metrics(stage.paths.train / "metrics.json")
    with (stage.paths.train / "history.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    monitor = params.train.monitor.replace("val_", "validation ")
    kept = f"The weights kept are those of epoch {card.epoch} of {metrics['epochs']}, by {monitor}."
    parameters = parameter_section(_deciding(params))
    return PageStory(kept, (curve_section(rows, card.epoch, card.output.score),), (parameters,))


def _deciding(params: Params) -> tuple[Section, ...]:
    return params.data, params.model, params.train, params.evaluate


def _card_story(stage: Stage, card: ModelCard) -> CardStory:
    """Return how the model was trained, in a few words; nothing of this machine, which decides no result."""
    train, epochs = stage.params.train, read_metrics(stage.paths.train / "metrics.json")["epochs"]
    procedure = {
        "architecture": card.model["name"],
        "starting weights": card.model.get("weights") or "random",
        "effective batch": f"{card.effective_batch_size} samples, by exact gradient accumulation",
        "precision": card.precision,
        "optimizer": f"{train.optimizer}, learning rate {train.learning_rate:g}, schedule {train.schedule}",
        "epochs": f"{epochs}; the weights are those of epoch {card.epoch}, chosen by {train.monitor}",
        "optimizer steps": f"{card.num_updates:,}",
        "validation": _validation(card),
        "seed": train.seed,
    }
    return CardStory(card, procedure, changed_parameters(_deciding(stage.params)))


def _validation(card: ModelCard) -> str:
    return f"loss {format_score(card.val_loss)}, {card.output.score} {format_score(card.score)}"


def _note(stage: Stage, card: ModelCard, found: str) -> str:
    """Describe a run for the top of its page in MLflow."""
    commit = git_tags(stage.project.root).get("mlflow.source.git.commit")
    experiment = read_variable(DVC_EXPERIMENT)
    lines = [
        f"**{found}** on the test part of {short_source(stage.params.data.source)}.",
        f"Kept from epoch {card.epoch}: validation {_validation(card)}.",
        "The report is the artifact `evaluate/report.html`.",
        *([f"Code: git commit `{commit[:10]}`."] if commit else []),
        *([f"DVC experiment: `{experiment}`."] if experiment else []),
    ]
    return "\n\n".join(lines)


def _facts(card: ModelCard) -> dict[str, object]:
    return {
        "architecture": card.model["name"],
        "effective batch": card.effective_batch_size,
        "best epoch": card.epoch,
        "validation loss": format_score(card.val_loss),
        f"validation {card.output.score}": format_score(card.score),
    }


def _log_results(stage: Stage, tracker: SpoolTracker, store: Store, totals: dict[str, float]) -> None:
    manifest = store.manifest
    tracker.log_dataset(DatasetRecord(short_source(manifest.source), manifest.digest, manifest.source, "testing", {}))
    metrics = {f"test_{name}": value for name, value in totals.items()}
    trained = read_metrics(stage.paths.train / "metrics.json")
    metrics.update({name: value for name, value in trained.items() if name.startswith("best_val_")})
    tracker.log_metrics(as_metrics_now(metrics, step=int(trained["num_updates"])))
    for path in sorted(stage.paths.evaluate.iterdir()):
        if not path.name.startswith(".") and path.name != PAGE:
            tracker.log_file(path, "evaluate")
    _log_params(stage, tracker)
    tracker.log_file(stage.paths.lock)


def _log_params(stage: Stage, tracker: SpoolTracker) -> None:
    """Log params.yaml as it is, but for the password that the address of the study's storage may hold."""
    storage = stage.params.search.storage
    shown = storage if storage is None else without_password(storage)
    if shown == storage:
        tracker.log_file(stage.paths.params)
        return
    with tempfile.TemporaryDirectory(prefix="bigstep-params-") as scratch:
        copy = Path(scratch, stage.paths.params.name)
        write_yaml(apply_overrides(read_yaml(stage.paths.params), [("search", "storage", shown)]), copy)
        tracker.log_file(copy)


def _log_page(stage: Stage, tracker: SpoolTracker, card: ModelCard) -> None:
    """Log the page with what depends on this run and machine, as far as this attempt trained the model."""
    metrics: dict[str, list[tuple[int, float]]] = {}
    tags: dict[str, str] = {}
    record: SlicingRecord | None = None
    for entry, _ in tracker.spool.entries():
        if entry["entry"] == "tags":
            tags |= entry["values"]
        elif entry["entry"] == "metrics":
            for name, value, step, _time in entry["rows"]:
                metrics.setdefault(name, []).append((step, value))
        elif entry["entry"] == "file" and Path(entry["path"]).name == SLICING:
            with contextlib.suppress(OSError, ValueError):  # of an earlier version, or deleted since
                record = read_record(SlicingRecord, tracker.spool.folder / entry["path"])
    with tempfile.TemporaryDirectory(prefix="bigstep-page-") as scratch:
        page, copy = stage.paths.evaluate / PAGE, Path(scratch, PAGE)
        if "gradient_norm" in metrics:
            slicing = [] if record is None else [slicing_section(record, metrics)]
            write_copy(page, [*slicing, machine_section(metrics, tags, card.effective_batch_size)], copy)
        else:
            copy = page
        tracker.log_file(copy, "evaluate")
