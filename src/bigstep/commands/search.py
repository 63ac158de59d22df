"""`bigstep search`: start or continue a study, train its trials with workers, and report the result."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

from bigstep.atomic_files import whole_file
from bigstep.commands.search_findings import print_findings, result_of
from bigstep.config.params import Params, read_params
from bigstep.config.units import parse_duration
from bigstep.config.yaml_files import Override, apply_overrides, write_yaml
from bigstep.console import console
from bigstep.data.store import Store
from bigstep.errors import ProjectError, UserError
from bigstep.machine_output import Report, no_report
from bigstep.memory.measurement import resident_bytes
from bigstep.optuna_mlflow.callback import parent_run
from bigstep.planning.memory_budget import available_bytes
from bigstep.planning.throughput import Plan
from bigstep.project.dvc import Request, run_pipeline
from bigstep.project.parameters import check_params
from bigstep.project.paths import ProjectPaths, StagePaths
from bigstep.runs.cleaning import trim
from bigstep.runs.tracked_run import deliver_others, tracked_run
from bigstep.search.confirmation import has_ended
from bigstep.search.initial_points import ensure_starts
from bigstep.search.patience import OUTAGE, patiently
from bigstep.search.request import SearchRequest
from bigstep.search.results.dashboard_plots import draw_plots, show_study
from bigstep.search.results.in_float64 import settle
from bigstep.search.results.summary import SearchResult, find, winning_params, write_findings
from bigstep.search.setup import (
    check_objectives,
    describe_space,
    fix_memory_format,
    largest_micro,
    num_workers,
    plan_slicings,
    share_machine,
    why_in_full,
)
from bigstep.search.space import Space, build_space
from bigstep.search.storage import STORAGE_ERRORS, storage_is_gone
from bigstep.search.studies import check_same, open_ledgers, study_address
from bigstep.search.trial_queue import TrialQueue, counts_toward_budget
from bigstep.search.workers.supervisor import watch_workers
from bigstep.tracking.database import connect, tracking_uri, without_password
from bigstep.tracking.given_run import given_run, pointing_run
from bigstep.tracking.mlflow_tracker import git_tags, run_exists
from bigstep.tracking.runs_view import open_viewed_experiment

__all__ = ["search"]


def search(
    root: Path,
    overrides: tuple[tuple[Override, ...], ...],
    *,
    apply: bool,
    warm_start: str | None,
    report: Report = no_report,
) -> int:
    """Search until the budget of params.yaml is used up; trials of earlier starts and other machines count.

    Args:
        root: of the project.
        overrides: of params.yaml, in groups.
        apply: write the winner into params.yaml.
        warm_start: a study in the same storage; its best points are tried first.
        report: takes what results/search/summary.json has, and the winner's parameters.

    Returns:
        0, or 130 or 143 if it was stopped by a signal.

    Raises:
        UserError: a rule is broken.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    project = ProjectPaths(root)
    content = read_params(root / "params.yaml")
    for group in overrides:
        content = apply_overrides(content, group)
    params = check_params(content)
    data = tuple(item for group in overrides for item in group if item[0] == "data")
    code, paths, _ = run_pipeline(root, Request("prepare", (data,) if data else ()))
    if code:
        return code
    store = Store(paths.prepared)
    store.verify_former()
    check_objectives(params, store)
    reason = why_in_full(project, params, store)
    space = build_space(params, reason)
    console.print(describe_space(params, space))
    workers = num_workers(params)
    content = share_machine(content, params, workers)
    largest = largest_micro(project, content, space, store)
    plan = plan_slicings(project, content, space, store)
    content = fix_memory_format(project, content, space, store, plan)
    address = study_address(project, params)
    request = _request(project, paths, content, address, reason, largest, params)
    try:
        first, again = open_ledgers(params, address)
        check_same(first.study, params, space, store)
        ensure_starts(first, params, space, warm_start)
        code = _conduct(project, params, space, plan, request, (first, again), workers, apply=apply)
    except STORAGE_ERRORS as error:
        raise storage_is_gone(address, error) from None
    if code == 0:
        report(result_of(StagePaths(root).search, params))
    return code


def _request(
    project: ProjectPaths,
    paths: StagePaths,
    content: dict[str, Any],
    address: str,
    reason: str,
    largest: int | None,
    params: Params,
) -> SearchRequest:
    seconds = parse_duration(params.search.max_time)
    return SearchRequest(
        root=str(project.root),
        prepared=str(paths.prepared),
        content=content,
        address=address,
        uri=tracking_uri(project.root),
        experiment=params.tracking.experiment,
        experiment_id="",
        parent_run="",
        reason=reason,
        largest=largest,
        until=time.time() + min(seconds, 1e9),
    )


def _logged(params: Params) -> dict[str, object]:
    """Return the section ``search`` as it is logged: without a password."""
    logged: dict[str, object] = {f"search.{key}": value for key, value in params.search.model_dump(mode="json").items()}
    if params.search.storage is not None:
        logged["search.storage"] = without_password(params.search.storage)
    return logged


def _conduct(
    project: ProjectPaths,
    params: Params,
    space: Space,
    plan: Plan | None,
    request: SearchRequest,
    ledgers: tuple[TrialQueue, TrialQueue],
    workers: int,
    *,
    apply: bool,
) -> int:
    first, again = ledgers
    request = _with_parent(request, first.study)
    state = project.search / params.search.study
    tags = {**git_tags(project.root), "bigstep.kind": "search", "optuna.study": params.search.study}
    given = request.parent_run or None
    with tracked_run(
        state / "spools" / "search", request.uri, request.experiment, params=_logged(params), tags=tags, given=given
    ) as tracked:
        if (pointing := pointing_run(params.tracking.experiment)) is not None:
            tracked.tracker.point_from(pointing)
        code = 0 if has_ended(params, space, ledgers) else watch_workers(request, params, ledgers, state, workers)
        if code:
            tracked.status = "KILLED" if code > 128 else "FAILED"
        if 0 < code < 128:
            return _report_failure(ledgers, params, code)
        try:
            findings = patiently(lambda: find(params, first, again), request.address, seconds=0.0 if code else OUTAGE)
        except ProjectError as error:
            if not code:
                raise
            console.print(str(error))
            return code
        findings = findings if code else settle(findings, request, space)
        folder = StagePaths(project.root).search
        hardware = check_params(request.content).hardware
        rungs = plan.curves({hardware.memory_format})[0].rungs if plan is not None else ()
        room = available_bytes(hardware, resident_bytes()) if plan is not None else None
        write_findings(findings, params, space, rungs, room, folder)
        draw_plots(findings, params.search.objectives, folder)
        show_study(first.study, findings, params.search.objectives, rungs, room, request)
        for path in sorted(folder.iterdir()):
            tracked.tracker.log_file(path)
        tracked.tracker.set_tags(_tags(findings))
    deliver_others(state / "spools")
    trim(project)
    print_findings(findings, params)
    if apply and code == 0:
        _apply(project.root / "params.yaml", params, space, findings)
    return code


def _report_failure(ledgers: tuple[TrialQueue, TrialQueue], params: Params, code: int) -> int:
    """Report that the search failed: without a winner and results, and with no trial left RUNNING."""
    first, _ = ledgers
    with contextlib.suppress(UserError, *STORAGE_ERRORS):
        for ledger in ledgers:
            ledger.settle()
        done = sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in counts_toward_budget(first.trials()))
        console.print(f"{done} of {params.search.trials} trials are trained and kept")
    console.print("the search failed, so there is no winner; fix what the worker reported and run the same command again")
    return code


def _with_parent(request: SearchRequest, study: optuna.Study) -> SearchRequest:
    """Find or create the run of the whole study; use the run of `mlflow run` if its experiment was named."""
    client = connect(request.uri)
    given = given_run(request.experiment)
    if given is not None and run_exists(client, given):
        experiment_id = str(client.get_run(given).info.experiment_id)
        name = str(client.get_experiment(experiment_id).name)
        return replace(request, experiment=name, experiment_id=experiment_id, parent_run=given)
    experiment_id = open_viewed_experiment(client, request.uri, request.experiment)
    return replace(request, experiment_id=experiment_id, parent_run=parent_run(client, experiment_id, study))


def _tags(findings: SearchResult) -> dict[str, str]:
    winner = findings.winner
    found = {"bigstep.audit": "; ".join(findings.warnings or findings.audits) or "none"}
    return found if winner is None else {**found, "bigstep.winner": str(winner.number)}


def _apply(path: Path, params: Params, space: Space, findings: SearchResult) -> None:
    if findings.winner is None:
        raise ProjectError("--apply: expected a winner, got no trial that was trained to the end; raise search.trials")
    chosen = winning_params(params, space, findings.winner)
    triples = tuple((section, key, value) for section, values in chosen.items() for key, value in values.items())
    with whole_file(path) as beside:
        write_yaml(apply_overrides(read_params(path), triples), beside)
    console.print("params.yaml now has the winner's parameters; `dvc repro` trains them in full")
