"""What a study's dashboard shows besides Optuna's own plots: feasibility, notes with links, files and our plots."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.trial import FrozenTrial

from bigstep.optuna_mlflow.optuna_internals import id_of, storage_of, trial_id_of
from bigstep.search.dashboard_internals import CONSTRAINTS, note_of, open_ended

__all__ = ["attach_file", "curve_of", "note_ended", "note_run", "show_constraints", "show_plots"]


def show_constraints(trial: optuna.Trial) -> None:
    """Show the dashboard the values of :meth:`optuna.Trial.set_constraint`; without it, infeasible trials look feasible."""
    values = list(trial.study.get_trials(deepcopy=False)[trial.number].constraints.values())
    trial.storage.set_trial_system_attr(trial_id_of(trial), CONSTRAINTS, values)


def note_run(subject: optuna.Trial | optuna.Study, text: str) -> None:
    """Write a note in Markdown, shown on the dashboard."""
    from optuna_dashboard import save_note

    save_note(subject, text)


def note_ended(study: optuna.Study, trial: FrozenTrial, text: str) -> None:
    """Write a note to a trial that has ended, unless it has the same note already."""
    from optuna_dashboard import save_note

    subject = open_ended(study, trial)
    if note_of(subject) != text:
        save_note(subject, text)


def attach_file(trial: optuna.Trial, path: Path, folder: Path) -> None:
    """Copy a file to ``folder``, and show it with the trial."""
    folder.mkdir(parents=True, exist_ok=True)
    store = FileSystemArtifactStore(base_path=str(folder))
    upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)


def curve_of(study: optuna.Study, trial: FrozenTrial | optuna.Trial) -> str:
    """Return the latest picture attached to a trial, in Markdown as the dashboard serves it; empty without one."""
    known = get_all_artifact_meta(study_or_trial=trial, storage=storage_of(study))
    pictures = [item for item in known if item.filename.endswith(".png")]
    if not pictures:
        return ""
    return f"![training curve](/artifacts/{id_of(study)}/{trial_id_of(trial)}/{pictures[-1].artifact_id})"


def show_plots(study: optuna.Study, figures: Mapping[str, Any]) -> None:
    """Show figures of plotly with the study; one of the same name is replaced."""
    from optuna_dashboard import save_plotly_graph_object

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, figure in figures.items():
            save_plotly_graph_object(study, figure, graph_object_id=name)
