"""`bigstep ensemble`: several trained models as one, evaluated, registered, and compared with the best of them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table

from bigstep.atomic_files import write_csv, write_metrics
from bigstep.commands.seeds import run_seeds
from bigstep.config.data import short_source
from bigstep.config.params import Params, flatten, read_params
from bigstep.console import console, format_score
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.ensembles.building import Comparison, EnsemblePlan, build, compare, plan_ensemble
from bigstep.ensembles.members import Member, check_members, predict_part, read_members
from bigstep.ensembles.registered import confirmed_models, member_folders
from bigstep.ensembles.soup import check_soup
from bigstep.machine_output import Report, no_report
from bigstep.models.model_files import ModelCard, save_model
from bigstep.project.dvc import Request
from bigstep.project.parameters import check_params
from bigstep.project.paths import ProjectPaths, StagePaths
from bigstep.report.card import CardStory
from bigstep.report.evaluation_results import write_predictions, write_results
from bigstep.report.reports import report_of
from bigstep.runs.tracked_run import as_metrics_now, tracked_run
from bigstep.runs.trained_model import model_record
from bigstep.runtime.device import choose_device, set_threads
from bigstep.tracking.database import tracking_uri
from bigstep.tracking.mlflow_tracker import git_tags
from bigstep.tracking.spool_delivery import SpoolDelivery

__all__ = ["combine", "ensemble"]


def ensemble(
    root: Path,
    names: Sequence[str],
    *,
    seeds: int,
    study: bool,
    greedy: bool,
    soup: bool,
    report: Report = no_report,
) -> int:
    """Combine the models that are named, those of ``seeds`` runs of the pipeline if that is more than one, and the study's.

    Returns:
        0, or the exit code of a run that failed.

    Raises:
        UserError: a parameter, or a member.
    """
    params = check_params(read_params(root / "params.yaml"))
    trained: list[tuple[str, Path]] = []
    if seeds > 1:
        code = run_seeds(root, Request(), seeds, lambda paths, each: trained.append((f"seed {each.train.seed}", paths.train)))
        if code:
            return code
    confirmed = confirmed_models(ProjectPaths(root), params.search.study) if study else []
    with member_folders(root, names) as found:
        return combine(root, params, [*found, *trained, *confirmed], greedy=greedy, soup=soup, report=report)


def combine(
    root: Path,
    params: Params,
    folders: Sequence[tuple[str, Path]],
    *,
    greedy: bool,
    soup: bool,
    report: Report = no_report,
) -> int:
    """Write ``results/ensemble``, log a run with the model, and print what the ensemble gained.

    Args:
        root: of the project.
        params: of params.yaml; its data must be prepared.
        folders: a name for each member, and where its model is.
        greedy: choose members on the validation part, instead of taking each once.
        soup: average weights instead of predictions.
        report: takes the members, and the metrics of the ensemble.

    Returns:
        0

    Raises:
        ModelError: a member cannot be read, or does not fit the others.
    """
    paths, store = StagePaths(root), Store(StagePaths(root).prepared)
    set_threads(params.hardware)
    device = choose_device(params.hardware)
    members = read_members(folders, code=params.model.name)
    check_members(members, store)
    if soup:
        check_soup(members)
    plan = plan_ensemble(members, store, device, greedy=greedy)
    tested = [predict_part(member.classifier, store, Split.TEST, device) for member in members]  # before a soup replaces one
    tensors, card, ensemble = build(members, plan, store, device, soup=soup)
    bins = params.evaluate.calibration_bins
    found = compare(ensemble, tested, plan, store, device, calibration_bins=bins)
    card = save_model(tensors, card, paths.ensemble)
    _write(paths, store, members, plan, found, card, params)
    _track(ProjectPaths(root), paths, params, store, card, found)
    _print(members, plan, found, card)
    counts = {member.name: count for member, count in zip(members, plan.counts, strict=True)}
    report({"members": counts, "best": members[found.best].name, "metrics": _metrics(found, card)})
    return 0


def _write(
    paths: StagePaths,
    store: Store,
    members: Sequence[Member],
    plan: EnsemblePlan,
    found: Comparison,
    card: ModelCard,
    params: Params,
) -> None:
    folder = paths.ensemble
    measure, best = plan.measure, members[found.best].name
    header = ["member", "count", card.output.champion, f"test_{measure.name}", "test_loss"]
    write_csv(header, _rows(members, plan, found), folder / "members.csv")
    report = report_of(card.output, params.evaluate)
    write_predictions(folder, store, [(found.part.predictions.astype(np.float32), found.part.targets)], report)
    facts: dict[str, object] = {
        "members": ", ".join(f"{member.name} x {count}" for member, count in zip(members, plan.counts, strict=True) if count),
        **(
            {"temperature": f"{card.temperature:.3f}", "validation loss before calibration": format_score(card.val_loss)}
            if _is_calibrated(card)
            else {"validation loss": format_score(card.val_loss)}
        ),
        f"{measure.title} {'gained' if card.output.higher_is_better else 'saved'} over {best}": measure.gains[0].text(
            found.score
        ),
        f"loss saved against {best}": measure.gains[1].text(found.loss),
    }
    write_results(folder, store, report, facts, card=CardStory(card, facts, folder="results/ensemble"))
    write_metrics(_metrics(found, card), folder / "metrics.json")


def _rows(members: Sequence[Member], plan: EnsemblePlan, found: Comparison) -> list[list[object]]:
    totals = [scores.summary() for scores in found.members]
    return [
        [member.name, count, value, total[plan.measure.name], total["loss"]]
        for member, count, value, total in zip(members, plan.counts, plan.values, totals, strict=True)
    ]


def _metrics(found: Comparison, card: ModelCard) -> dict[str, float]:
    totals = {f"test_{name}": value for name, value in found.scores.summary().items()}
    score, gains = card.output.score, dict[str, float]()
    for name, interval in ((f"{score}_gain", found.score), ("loss_gain", found.loss)):
        gains |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {**totals, **gains, "val_loss": card.val_loss, f"val_{score}": card.score, "temperature": card.temperature}


def _track(project: ProjectPaths, paths: StagePaths, params: Params, store: Store, card: ModelCard, found: Comparison) -> None:
    """Log a run of its own; the same members come back to the same run."""
    folder = project.spools / f"ensemble-{card.weights_sha256[:12]}.1"
    tags = {**git_tags(project.root), "bigstep.stage": "ensemble", "bigstep.members": str(len(card.members))}
    flat, experiment = flatten(params), params.tracking.experiment
    delivery = partial(SpoolDelivery, expects_model=True)
    with tracked_run(
        folder, tracking_uri(project.root), experiment, params=flat, tags=tags, wait_seconds=0, delivery=delivery
    ) as tracked:
        tracker = tracked.tracker
        tracker.log_metrics(as_metrics_now(_metrics(found, card), step=card.num_updates))
        for path in sorted(paths.ensemble.iterdir()):
            if path.suffix != ".safetensors" and not path.name.startswith("."):
                tracker.log_file(path, "ensemble")
        tracker.log_model(model_record(paths.ensemble, store, card))
        name = params.tracking.registered_model or f"bigstep-{short_source(store.manifest.source)}"
        tracker.promote(name, card.weights_sha256, (paths.ensemble / "card.md").read_text(encoding="utf-8"))


def _print(members: Sequence[Member], plan: EnsemblePlan, found: Comparison, card: ModelCard) -> None:
    measure, table = plan.measure, Table(title=f"{len(members)} members", title_justify="left")
    by = f"validation {'loss' if card.output.champion == 'val_loss' else measure.title}"
    for name in ("model", "count", by, f"test {measure.title}", "test loss"):
        table.add_column(name, justify="left" if name == "model" else "right")
    total = found.scores.summary()
    chosen_by = card.val_loss if card.output.champion == "val_loss" else card.score
    for row in [*_rows(members, plan, found), ["ensemble", "", chosen_by, total[measure.name], total["loss"]]]:
        table.add_row(*(format_score(value) if isinstance(value, float) else str(value) for value in row))
    console.print(table)
    verdict = "beyond chance" if found.score.is_beyond_chance else "no difference beyond chance"
    console.print(
        f"test {measure.title} against {members[found.best].name}, the best on the validation part: "
        f"{measure.gains[0].text(found.score)}{'' if card.output.higher_is_better else ' lower'}: {verdict}"
    )
    calibrated = f"; temperature {card.temperature:.3f}" if _is_calibrated(card) else ""
    console.print(f"test loss: {measure.gains[1].text(found.loss)} lower{calibrated}")
    console.print("results: results/ensemble   try it: bigstep predict --model results/ensemble IMAGE")


def _is_calibrated(card: ModelCard) -> bool:
    """Return whether the outputs are probabilities, which a temperature calibrates."""
    return card.output.output == "probabilities"
