"""The plots of a search, as files and on the study's dashboard."""

from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import TrialState

from bigstep.planning.throughput import SizeMeasurement
from bigstep.report.search_plots import draw_front, draw_landscape
from bigstep.search.optuna_dashboard import curve_of, note_ended, note_run, show_plots
from bigstep.search.request import SearchRequest
from bigstep.search.results.other_slicings import slicing_rows, slicing_table
from bigstep.search.results.study_figures import (
    contour_figure,
    front_figure,
    importance_figure,
    landscape_figure,
    slicing_figure,
)
from bigstep.search.results.summary import SearchResult, plot_rows
from bigstep.search.trial_record import TrialRecord
from bigstep.tracking.mlflow_links import run_page

__all__ = ["draw_plots", "show_study"]


def draw_plots(findings: SearchResult, objectives: Sequence[str], folder: Path) -> None:
    """Write the plots to ``folder``."""
    rows = plot_rows(findings.trials)
    if rows:
        draw_landscape(rows, objectives[0], folder / "landscape.png")
        draw_front(rows, [trial.number for trial in findings.front], objectives[0], folder / "front.png")


def show_study(
    study: optuna.Study,
    findings: SearchResult,
    objectives: Sequence[str],
    rungs: Sequence[SizeMeasurement],
    room: int | None,
    request: SearchRequest,
) -> None:
    """Show on the dashboard our plots, the link to the search's run, and the cost of other micro-batch sizes of each trial."""
    rows, objective = plot_rows(findings.trials), objectives[0]
    figures = {
        "landscape": landscape_figure(rows, objective),
        "contour": contour_figure(study, objective),
        "importance": importance_figure(study, objective),
        "front": front_figure(rows, findings.front, objective),
        "slicing": slicing_figure(rungs, room) if rungs else None,
    }
    if rows:
        show_plots(study, {name: figure for name, figure in figures.items() if figure is not None})
    link = run_page(request.uri, request.experiment_id, request.parent_run, "the search")
    note_run(study, "\n\n".join(part for part in (findings.verdict, link) if part))
    for trial in findings.trials:
        if trial.state == TrialState.COMPLETE and (derived := slicing_rows(trial, rungs, room)):
            run_id, title = TrialRecord.read(trial).run_id, f"trial {trial.number}"
            link = run_page(request.uri, request.experiment_id, run_id, title) if run_id else ""
            table = f"Its effective batch with each micro-batch size, from the plan:\n\n{slicing_table(derived)}"
            note_ended(study, trial, "\n\n".join(filter(None, (link, curve_of(study, trial), table))))
