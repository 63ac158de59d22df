"""The plots of a search, as files and on the study's dashboard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from bigstep.planning.throughput import SizeMeasurement
from bigstep.report.search_plots import draw_front, draw_landscape
from bigstep.search.optuna_dashboard import note_ended, note_run, show_plots
from bigstep.search.request import SearchRequest
from bigstep.search.results.other_slicings import slicing_rows, slicing_table
from bigstep.search.results.summary import SearchResult, plot_rows
from bigstep.search.trial_record import TrialRecord
from bigstep.tracking.mlflow_links import run_page

__all__ = ["draw_plots", "show_study"]

MIB = 2**20


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
    rows = plot_rows(findings.trials)
    figures = {"landscape": _landscape(rows, objectives[0]), "front": _front(rows, findings, objectives[0])}
    if rungs:
        figures["slicing"] = _slicing(rungs, room)
    if rows:
        show_plots(study, figures)
    link = run_page(request.uri, request.experiment_id, request.parent_run, "the search")
    note_run(study, "\n\n".join(part for part in (findings.verdict, link) if part))
    for trial in findings.trials:
        if trial.state == TrialState.COMPLETE and (derived := slicing_rows(trial, rungs, room)):
            run_id, title = TrialRecord.read(trial).run_id, f"trial {trial.number}"
            link = f"{run_page(request.uri, request.experiment_id, run_id, title)}\n\n" if run_id else ""
            note_ended(
                study,
                trial,
                f"{link}Its effective batch with each micro-batch size, from the plan:\n\n{slicing_table(derived)}",
            )


def _landscape(rows: Sequence[Mapping[str, Any]], objective: str) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for feasible, symbol in ((True, "circle"), (False, "x")):
        chosen = [row for row in rows if row["feasible"] is feasible]
        marker: dict[str, Any] = {"symbol": symbol, "size": 12, "color": [row["value"] for row in chosen]}
        if feasible:
            marker |= {"colorscale": "Viridis", "reversescale": True, "colorbar": {"title": objective}}
        figure.add_scatter(
            x=[row["learning_rate"] for row in chosen],
            y=[row["effective_batch_size"] for row in chosen],
            text=[f"trial {row['number']}: {row['value']:.4f}" for row in chosen],
            mode="markers",
            marker=marker,
            name="feasible" if feasible else "infeasible",
            showlegend=False,
        )
    figure.update_xaxes(type="log", title="learning rate")
    figure.update_yaxes(type="log", title="effective batch size")
    return figure.update_layout(title=f"{objective} over learning rate and effective batch size")


def _slicing(rungs: Sequence[SizeMeasurement], room: int | None) -> Any:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2)
    sizes = [rung.micro_batch_size for rung in rungs]
    figure.add_scatter(x=sizes, y=[rung.samples_per_second for rung in rungs], name="samples per second", row=1, col=1)
    grown = [rung.resident_growth_bytes / MIB for rung in rungs]
    figure.add_scatter(x=sizes, y=grown, name="process growth (MiB)", row=1, col=2)
    if room is not None:
        figure.add_scatter(x=sizes, y=[room / MIB] * len(sizes), name="budget (MiB)", row=1, col=2)
    figure.update_xaxes(type="log", title="micro-batch size")
    figure.update_yaxes(title="samples per second", row=1, col=1)
    figure.update_yaxes(title="MiB", type="log", row=1, col=2)
    return figure.update_layout(title="Speed and memory over micro-batch size (from the plan)")


def _front(rows: Sequence[Mapping[str, Any]], findings: SearchResult, objective: str) -> Any:
    import plotly.graph_objects as go

    numbers = {trial.number for trial in findings.front}
    figure = go.Figure()
    for name, chosen in (
        ("on the front", [row for row in rows if row["number"] in numbers]),
        ("trials", [row for row in rows if row["number"] not in numbers]),
    ):
        figure.add_scatter(
            x=[row["seconds"] for row in chosen],
            y=[row["value"] for row in chosen],
            text=[f"trial {row['number']}, {row['peak_bytes'] / MIB:,.0f} MiB" for row in chosen],
            mode="markers",
            name=name,
        )
    figure.update_xaxes(title="training time (s)")
    figure.update_yaxes(title=objective)
    return figure.update_layout(title=f"{objective} over training time")
