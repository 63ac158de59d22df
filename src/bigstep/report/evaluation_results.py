"""The files of an evaluation: predictions, scores by class, pictures, a page and metrics."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

from bigstep.atomic_files import whole_file, write_csv, write_metrics
from bigstep.config.data import short_source
from bigstep.data.repeated import count_repeated
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.evaluation.predictions import Predictions
from bigstep.report.card import CardStory, PartResult, write_card
from bigstep.report.evaluation_page import NO_STORY, PageStory, PageTable, write_page
from bigstep.report.evaluation_report import EvaluationReport, EvaluationScores
from bigstep.report.run_sections import data_section

__all__ = ["write_predictions", "write_results"]


def write_predictions(folder: Path, store: Store, batches: Iterable[Predictions], report: EvaluationReport) -> None:
    """Write predictions.csv batch by batch; the report keeps what it needs of them.

    Args:
        folder: to write to.
        store: of the samples.
        batches: predictions and targets of the test part, in order.
        report: with nothing in it yet.
    """
    indices = store.indices(Split.TEST)
    names = iter(zip(indices, store.names(indices), strict=True))

    def rows() -> Iterator[list[object]]:
        for predictions, targets in batches:
            for cells, (index, name) in zip(report.add(predictions, targets), names, strict=False):
                yield [index, name, *cells]

    write_csv(["index", "name", *report.columns], rows(), folder / "predictions.csv")


def write_results(
    folder: Path,
    store: Store,
    report: EvaluationReport,
    facts: dict[str, object],
    more: dict[str, float] | None = None,
    story: PageStory = NO_STORY,
    card: CardStory | None = None,
) -> EvaluationScores:
    """Write classes.csv, the pictures, report.html, card.md and metrics.json.

    Args:
        folder: to write to.
        store: of the samples.
        report: with the predictions of the test part.
        facts: about the model, by name, for the page.
        more: scores beside those of the task.
        story: of the training, for the page; its verdict follows that of the test.
        card: what the model card says beside the scores; None: no card.

    Returns:
        The scores.
    """
    scores = report.scores()
    totals = scores.summary() | (more or {})
    table = report.table(scores)
    header = [table.header[0], *(item.name for item in fields(scores.classes[0])[1:])]
    write_csv(header, (asdict(item).values() for item in scores.classes), folder / "classes.csv")
    pictures = report.draw(store, folder)
    title = f"{short_source(store.manifest.source)}: {scores.title}"
    num_samples, num_repeated = len(store.indices(Split.TEST)), count_repeated(store.paths.repeated, "test")
    found, weakest = f"{scores.title[0].upper()}{scores.title[1:]} over {num_samples:,} samples.", _weakest(table)
    data = data_section(store.manifest, num_repeated)
    story = replace(story, verdict=" ".join(filter(None, (found, weakest, story.verdict))), after=(*story.after, data))
    with whole_file(folder / "report.html") as beside:
        write_page(title, totals, facts, table, pictures, beside, story)
    if card is not None:
        tested = PartResult(found, weakest, totals, table, report.calibration(scores), num_samples, num_repeated)
        with whole_file(folder / "card.md") as beside:
            write_card(card, store.manifest, tested, beside)
    write_metrics({f"test_{name}": value for name, value in totals.items()}, folder / "metrics.json")
    return scores


def _weakest(table: PageTable) -> str:
    """Return where the model is worst; empty if there is nothing to choose from."""
    row, metric = table.rows[table.worst_first[0]], table.worst.split()[-1]
    weakest = f"{row[0]} ({metric} {row[table.header.index(metric)]})"
    return f"The weakest {table.header[0]} is {weakest}." if len(table.rows) > 1 else ""
