"""Figures of plotly for a study's dashboard: landscape, contours, importance, front, and the cost of micro-batch sizes."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from bigstep.planning.throughput import SizeMeasurement
from bigstep.search.space import is_inside
from bigstep.search.trial_queue import is_feasible, value_of

__all__ = ["contour_figure", "front_figure", "importance_figure", "importances", "landscape_figure", "slicing_figure"]

MIB = 2**20
SYMBOLS = {"trained": "circle", "pruned": "triangle-down-open", "infeasible": "x-thin-open"}
Rows = Sequence[Mapping[str, Any]]


def landscape_figure(rows: Rows, objective: str) -> Any:
    """Draw each trial at its learning rate and effective batch; pruned (with the last value) and infeasible ones are apart."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for kind, symbol in SYMBOLS.items():
        chosen = [row for row in rows if row["kind"] == kind]
        marker: dict[str, Any] = {"symbol": symbol, "size": 12, "line": {"width": 2}}
        marker |= (
            {"color": "#5f6b7a"}
            if kind == "infeasible"
            else {"color": [row["value"] for row in chosen], "coloraxis": "coloraxis"}
        )
        figure.add_scatter(
            x=[row["learning_rate"] for row in chosen],
            y=[row["effective_batch_size"] for row in chosen],
            text=[
                f"trial {row['number']}, {kind}" + ("" if row["value"] is None else f": {row['value']:.4f}") for row in chosen
            ],
            mode="markers",
            marker=marker,
            name=kind,
        )
    figure.update_xaxes(type="log", title="learning rate")
    figure.update_yaxes(type="log", title="effective batch size")
    colors = {"colorscale": "Viridis", "reversescale": True, "colorbar": {"title": objective}}
    title = f"{objective} over learning rate and effective batch"
    return figure.update_layout(title=title, coloraxis=colors, legend={"orientation": "h"})


def importances(study: optuna.Study) -> dict[str, float]:
    """Return the importance of each searched parameter for the first objective, after PED-ANOVA (Watanabe et al., 2023).

    Feasible trials count. Planned sizes have one value in each trial and follow from the others: they are left out. Empty if
    there are too few trials, or if they all have the same value.
    """
    view = _feasible(study)
    trials = view.get_trials(deepcopy=False)
    names = _searched(trials)
    if len(trials) < 2 or not names:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return optuna.importance.get_param_importances(view, params=names)
        except (RuntimeError, ValueError):  # the values do not vary
            return {}


def importance_figure(study: optuna.Study, objective: str) -> Any | None:
    """Draw :func:`importances`; None if they are unknown."""
    import plotly.graph_objects as go

    found = importances(study)
    if not found:
        return None
    names = sorted(found, key=lambda name: found[name])
    figure = go.Figure(go.Bar(x=[found[name] for name in names], y=names, orientation="h"))
    figure.update_xaxes(title=f"importance for {objective}", range=[0, 1])
    return figure.update_layout(title="Importance of what is searched; planned sizes follow from it")


def contour_figure(study: optuna.Study, objective: str) -> Any | None:
    """Draw the objective over the two most important parameters, in plain values; None if they are unknown."""
    names = list(importances(study))[:2]
    if len(names) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = optuna.visualization.plot_contour(_feasible(study), params=names, target_name=objective)
    return figure.update_layout(title=f"{objective} over {names[0]} and {names[1]}")


def slicing_figure(rungs: Sequence[SizeMeasurement], room: int | None) -> Any:
    """Draw measured speed and memory over the micro-batch size; the budget is a line."""
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


def front_figure(rows: Rows, front: Sequence[FrozenTrial], objective: str) -> Any:
    """Draw each trained trial's value over its training time."""
    import plotly.graph_objects as go

    numbers = {trial.number for trial in front}
    trained = [row for row in rows if row["kind"] == "trained"]
    figure = go.Figure()
    for name, chosen in (
        ("on the front", [row for row in trained if row["number"] in numbers]),
        ("trials", [row for row in trained if row["number"] not in numbers]),
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


def _feasible(study: optuna.Study) -> optuna.Study:
    """Return a view of the study: the first objective and what was searched, in feasible trials only."""
    view = optuna.create_study(direction=study.directions[0])
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if is_feasible(trial) and is_inside(trial, trial.params):
            kinds = {name: kind for name, kind in trial.distributions.items() if not kind.single()}
            params = {name: trial.params[name] for name in kinds}
            view.add_trial(optuna.trial.create_trial(value=value_of(trial), params=params, distributions=kinds))
    return view


def _searched(trials: Sequence[FrozenTrial]) -> list[str]:
    """Return the parameters that every trial of a view has."""
    return [name for name in (trials[0].params if trials else ()) if all(name in trial.params for trial in trials)]
