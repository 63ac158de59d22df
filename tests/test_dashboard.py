"""The pages of a study and of its runs, in a browser: feasible trials shown as feasible, infeasible ones as infeasible."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from bigstep.commands.dashboard import make_dashboard
from bigstep.report.figures import save_figure
from bigstep.search.optuna_dashboard import attach_file, note_ended, note_run, show_constraints, show_plots
from bigstep.search.storage import open_storage, open_study
from browser import look
from faults.project import Project
from serving import has_ipv6, unused_port
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, optuna.Study]]:
    """A study of eight trials, two of them infeasible and better in value, and its page."""
    import plotly.graph_objects as go

    folder = tmp_path_factory.mktemp("dashboard")
    address = str(folder / "study.journal")
    study = open_study(open_storage(address), "digits", ["minimize"])
    picture = _picture(folder / "curves.png")
    for number in range(8):
        trial = study.ask()
        rate = trial.suggest_float("train.learning_rate", 1e-4, 1e-1, log=True)
        infeasible = number in (2, 5)
        trial.set_constraint("memory", 64.0 if infeasible else -1.0)
        show_constraints(trial)
        link = f"[trial {number} in MLflow](http://127.0.0.1:5000/#/experiments/1/runs/abc{number})"
        note_run(trial, "**infeasible**: its step goes over the budget" if infeasible else link)
        attach_file(trial, picture, folder / "artifacts")
        study.tell(trial, 0.01 if infeasible else 0.2 + rate)
    for _ in range(2):
        note_ended(
            study, study.best_trial, f"[trial {study.best_trial.number} in MLflow](http://x)\n\n| a | b |\n| - | - |\n| 1 | 2 |"
        )
    note_run(study, "**the search** of the digits")
    show_plots(study, {"landscape": go.Figure(go.Scatter(x=[1, 2], y=[3, 4]), layout={"title": "our own landscape"})})
    port = unused_port()
    server = make_dashboard(address, folder / "artifacts", "127.0.0.1", port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{port}", study
    server.shutdown()
    server.server_close()
    thread.join(10)


def _picture(path: Path) -> Path:
    from matplotlib.figure import Figure

    save_figure(Figure(figsize=(2, 2)), path)
    return path


def _ask(address: str, **headers: str) -> dict:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
        return json.load(answer)


def test_the_page_knows_which_trials_are_feasible_and_new_ones_appear(page: tuple[str, optuna.Study]) -> None:
    address, study = page
    trials = _ask(f"{address}/api/studies/0")["trials"]
    assert [trial["number"] for trial in trials if any(value > 0 for value in trial["constraints"])] == [2, 5]
    assert all(trial["constraints"] for trial in trials)
    assert all(trial["artifacts"] for trial in trials)
    assert "in MLflow" in trials[0]["note"]["body"]
    assert study.best_trial.number not in (2, 5)
    trial = study.ask()
    trial.suggest_float("train.learning_rate", 1e-4, 1e-1, log=True)
    study.tell(trial, state=TrialState.FAIL)
    wait_until(lambda: len(_ask(f"{address}/api/studies/0")["trials"]) == 9, "the page does not show the new trial", seconds=10)


def test_a_browser_shows_the_trials_their_feasibility_and_our_plot(page: tuple[str, optuna.Study], tmp_path: Path) -> None:
    address, study = page
    listed = look(f"{address}/dashboard/studies/0/trials", tmp_path / "trials.png")
    for number in range(8):
        assert f"Trial {number}" in listed
    assert "infeasible" in look(f"{address}/dashboard/studies/0/trials?numbers=2", tmp_path / "infeasible.png")
    feasible = look(f"{address}/dashboard/studies/0/trials?numbers={study.best_trial.number}", tmp_path / "feasible.png")
    assert "infeasible" not in feasible
    assert f"trial {study.best_trial.number} in MLflow" in feasible
    assert "<table" in feasible  # of the note
    front = look(f"{address}/dashboard/studies/0", tmp_path / "study.png")
    assert f"Best Trial (number={study.best_trial.number})" in front
    assert "our own landscape" in front


def test_a_page_elsewhere_does_not_reach_the_study(page: tuple[str, optuna.Study]) -> None:
    address, _ = page
    for headers in ({"Host": "evil.com"}, {"Origin": "http://evil.com"}):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            _ask(f"{address}/api/studies", **headers)


def test_a_study_is_served_on_ipv6_too(page: tuple[str, optuna.Study], tmp_path: Path) -> None:
    del page  # which has shown that IPv4 is
    if not has_ipv6():
        pytest.skip("this machine has no ::1")
    address, port = str(tmp_path / "study.journal"), unused_port()
    open_study(open_storage(address), "six", ["minimize"])
    server = make_dashboard(address, tmp_path / "artifacts", "::1", port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        (study,) = _ask(f"http://[::1]:{port}/api/studies")["study_summaries"]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
    assert study["study_name"] == "six"


def test_no_study_is_one_line(tmp_path: Path, empty_database: Path) -> None:
    from conftest import copy_project

    project = Project(copy_project(tmp_path / "project", empty_database))
    assert "search.storage: expected a study, got " in project.bigstep("dashboard", code=2)
