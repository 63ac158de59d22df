"""Stage ``evaluate``: the trained model on the test part."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bigstep.atomic_files import read_json, whole_file, write_csv, write_json
from bigstep.config.data import short_source
from bigstep.config.evaluate import EvaluateConfig
from bigstep.data.ordered_batches import ordered_batches
from bigstep.data.repeated import count_repeated
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.evaluation import Answers, Scores, predict_probabilities, score
from bigstep.models.classifier import Classifier
from bigstep.models.ensemble import Ensemble
from bigstep.models.model_files import ModelCard, load_classifier
from bigstep.report.evaluation_page import draw_calibration, draw_confusion, draw_mistakes, short_name, write_page
from bigstep.runs.tracked_run import as_metrics_now
from bigstep.runtime.device import choose_device, set_threads
from bigstep.stages.attempt_run import stage_run
from bigstep.stages.stage_runner import Stage, run_stage
from bigstep.tracking.spool_tracker import SpoolTracker
from bigstep.tracking.tracker import DatasetRecord

__all__ = ["evaluate", "main"]

BATCH = 256  # images of a forward pass
MANY_CLASSES = 100  # with more, predictions.csv holds the likeliest classes instead of a column for each
LIKELIEST = ["p_actual", *(f"{column}{rank}" for rank in range(1, 6) for column in ("class", "p"))]


def main(started: float | None = None) -> int:
    """Run the stage in the current folder; ``started`` as for :func:`run_stage`."""
    return run_stage("evaluate", evaluate, started)


def evaluate(stage: Stage) -> None:
    """Write ``results/evaluate``: metrics, scores by class, predictions, pictures and a page.

    Raises:
        DataError: the prepared images are not those that were prepared.
        ModelError: there is no model, or it was trained on other data.
    """
    params = stage.params
    set_threads(params.hardware)
    store = Store(stage.paths.prepared)
    store.verify_former()
    classifier, card = load_classifier(stage.paths.train, code=params.model.name)  # contiguous, whatever the training chose
    classifier.to(choose_device(params.hardware))
    answers = _predict(stage, store, classifier, card.classes)
    scores = score(answers, card.classes, calibration_bins=params.evaluate.calibration_bins)
    _write_results(stage.paths.evaluate, store, answers, scores, card, params.evaluate)
    with stage_run(stage, params.tracking.experiment) as tracker:
        _log_results(stage, tracker, store, scores)
        stage.inputs.check()
        name = params.tracking.registered_model or f"bigstep-{short_source(store.manifest.source)}"
        tracker.promote(name, card.weights_sha256)


def _predict(stage: Stage, store: Store, classifier: Classifier | Ensemble, classes: tuple[str, ...]) -> Answers:
    """Write predictions.csv batch by batch, and return what the scores and pictures need."""
    indices, parts = store.indices(Split.TEST), []
    names = iter(zip(indices, store.names(indices), strict=True))

    def rows() -> Iterator[list[object]]:
        for probabilities, labels in predict_probabilities(classifier, ordered_batches(store, Split.TEST, BATCH)):
            part = Answers.of(probabilities, labels)
            parts.append(part)
            for row, (index, name) in enumerate(islice(names, len(labels))):
                actual, predicted = classes[labels[row]], classes[part.predicted[row]]
                yield [index, name, actual, predicted, *_cells(probabilities[row], part.p_actual[row], classes)]
        stage.inputs.check()

    columns = [f"p:{name}" for name in classes] if len(classes) <= MANY_CLASSES else LIKELIEST
    write_csv(["index", "name", "actual", "predicted", *columns], rows(), stage.paths.evaluate / "predictions.csv")
    return Answers.joined(parts)


def _cells(probabilities: NDArray[np.float32], p_actual: np.float32, classes: tuple[str, ...]) -> Iterator[str]:
    """Return every class's probability; of many classes the true one's, and the likeliest with theirs."""
    if len(classes) <= MANY_CLASSES:
        yield from map(_shortest, probabilities)
        return
    yield _shortest(p_actual)
    for label in np.argsort(-probabilities, kind="stable")[: (len(LIKELIEST) - 1) // 2]:
        yield classes[label]
        yield _shortest(probabilities[label])


def _write_results(
    folder: Path, store: Store, answers: Answers, scores: Scores, card: ModelCard, evaluate: EvaluateConfig
) -> None:
    header = ["class", "precision", "recall", "f1", "support"]
    write_csv(header, (asdict(item).values() for item in scores.classes), folder / "classes.csv")
    _draw(folder, store, answers, evaluate)
    facts = {
        "architecture": card.model["name"],
        "effective batch": card.effective_batch_size,
        "best epoch": card.epoch,
        "validation loss": f"{card.val_loss:.4f}",
        "validation accuracy": f"{card.val_accuracy:.4f}",
    }
    num_repeated = count_repeated(store.paths.repeated, "test")
    if num_repeated:
        facts["test images that are in another part, too"] = num_repeated
    pictures = {"Confusion matrix": "confusion.png", "Calibration": "calibration.png"}
    pictures["Worst mistakes: actual class, then predicted class and its probability"] = "mistakes.png"
    with whole_file(folder / "report.html") as beside:
        write_page(
            f"{short_source(store.manifest.source)}: {scores.accuracy:.2%} test accuracy", scores, facts, pictures, beside
        )
    write_json({f"test_{name}": value for name, value in scores.summary().items()}, folder / "metrics.json")


def _draw(folder: Path, store: Store, answers: Answers, evaluate: EvaluateConfig) -> None:
    indices, classes = store.indices(Split.TEST), store.manifest.classes
    labels, predicted = answers.labels, answers.predicted
    wrong = np.flatnonzero(labels != predicted)
    worst = wrong[np.argsort(answers.p_actual[wrong], kind="stable")][: evaluate.num_mistakes]
    captions = [
        f"{short_name(classes[labels[row]])}\n{short_name(classes[predicted[row]])} {answers.p_predicted[row]:.0%}"
        for row in worst
    ]
    with whole_file(folder / "confusion.png") as beside:
        draw_confusion(labels, predicted, classes, beside)
    with whole_file(folder / "calibration.png") as beside:
        draw_calibration(answers.p_predicted, labels == predicted, evaluate.calibration_bins, beside)
    with whole_file(folder / "mistakes.png") as beside:
        draw_mistakes(np.asarray(store.images[indices[worst]]), captions, beside)


def _log_results(stage: Stage, tracker: SpoolTracker, store: Store, scores: Scores) -> None:
    manifest = store.manifest
    tracker.log_dataset(DatasetRecord(short_source(manifest.source), manifest.digest, manifest.source, "testing", {}))
    metrics = {f"test_{name}": value for name, value in scores.summary().items()}
    trained = read_json(stage.paths.train / "metrics.json")
    metrics.update({name: trained[name] for name in ("best_val_loss", "best_val_accuracy")})
    tracker.log_metrics(as_metrics_now(metrics, step=trained["num_updates"]))
    for path in sorted(stage.paths.evaluate.iterdir()):
        if not path.name.startswith("."):
            tracker.log_file(path, "evaluate")
    tracker.log_file(stage.paths.params)
    tracker.log_file(stage.paths.lock)


def _shortest(value: np.float32) -> str:
    """Return the shortest digits that read back as the same number."""
    return np.format_float_positional(value, unique=True, trim="0")
