"""The command `bigstep`: parse the arguments, call a command, print a user's error in one line."""

import argparse
import io
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from bigstep.closed_output import printing_result
from bigstep.commands.argument_values import check_numbers, with_new_names
from bigstep.commands.arguments import STAGES, build_parser
from bigstep.errors import ConfigError, UserError
from bigstep.machine_output import reporting
from bigstep.runtime.environment import GIVEN_RUN, guard_libraries, is_set
from bigstep.runtime.failed_allocation import failed_allocation_line
from bigstep.user_places import user_code_line

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0, 2 after a user's error, 1 if a stage failed for another reason, 130 after Ctrl-C.
    """
    guard_libraries()
    _escape_what_cannot_be_printed()
    given, lines = with_new_names(sys.argv[1:] if arguments is None else arguments)
    if not given:
        with printing_result():
            build_parser().print_help()
        return 0
    for line in lines:
        print(f"bigstep: {line}", file=sys.stderr)
    try:
        _check_command(given[0])
        options = build_parser().parse_args(given)
        check_numbers(options)
        _show_log()
        with reporting(as_json=getattr(options, "as_json", False)) as options.report:
            return COMMANDS.get(options.command, _repro)(options)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"bigstep: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "bigstep").partition(".")[0] == "bigstep":
            raise
        line = f"expected the packages of its extra `pipeline`, got no module {error.name!r}"
        print(f"bigstep: {line}; pip install 'bigstep[pipeline]'", file=sys.stderr)
        return UserError.exit_code
    except Exception as error:
        problem = failed_allocation_line(error) or user_code_line(error)
        if problem is None:
            raise
        print(f"bigstep: {problem}", file=sys.stderr)
        return UserError.exit_code


def _escape_what_cannot_be_printed() -> None:
    """Print names that the output's encoding cannot hold, as a file's may be, with escapes, as the standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _show_log() -> None:
    from bigstep.console import show_log

    show_log()


def _check_command(name: str) -> None:
    known = dict.fromkeys([*STAGES, *COMMANDS])
    if not name.startswith("-") and name not in known:
        from bigstep.config.yaml_files import nearest

        raise ConfigError(f"COMMAND: expected a command of bigstep, got {name!r}; {nearest(name, known)}")


def _repro(options: argparse.Namespace) -> int:
    from bigstep.commands.overrides import chosen_overrides, read_preset
    from bigstep.commands.repro import finish_pipeline
    from bigstep.project.dvc import Request, find_project_root, run_pipeline
    from bigstep.project.paths import ProjectPaths
    from bigstep.runs.installed_code import refresh_code_lists

    root = find_project_root(Path.cwd())
    refresh_code_lists(root)
    groups = (read_preset(root, options.preset), chosen_overrides(options))
    stage = {"repro": getattr(options, "stage", None), "check": "prepare", "plan": "prepare"}.get(
        options.command, options.command
    )
    claiming = threading.Thread(target=_claim_run, args=(root,), name="bigstep-claim")
    claiming.start()  # while the stages run: importing MLflow takes seconds
    request = Request(
        None if stage == "evaluate" else stage,
        tuple(group for group in groups if group),
        options.force,
        ignore_code_change=getattr(options, "ignore_code_change", False),
    )
    if getattr(options, "seeds", 1) > 1:
        from bigstep.commands.seeds import repro_seeds

        code = repro_seeds(
            root, request, options.seeds, lambda paths, params: finish_pipeline(root, paths, params, "evaluate"), options.report
        )
        claiming.join()
        return code
    code, paths, params = run_pipeline(root, request)
    claiming.join()
    if options.command == "check" and code == 0:
        from bigstep.commands.check import check

        return check(ProjectPaths(root), paths, params, options.samples, options.report)
    if options.command == "plan" and code == 0:
        from bigstep.commands.plan import PlanRequest, plan

        chosen = {name: getattr(options, name) for name in ("budget", "remeasure", "apply", "seconds", "compile")}
        return plan(ProjectPaths(root), paths, params, PlanRequest(**chosen), options.report)
    return code if code else finish_pipeline(root, paths, params, stage or "evaluate", options.report)


def _claim_run(root: Path) -> None:
    if is_set(GIVEN_RUN):
        from bigstep.tracking.dead_runs import claim_given_run

        claim_given_run(root)


def _init(options: argparse.Namespace) -> int:
    from bigstep.commands.init import init

    return init(Path(options.folder), None if options.example is None else Path(options.example))


def _ensemble(options: argparse.Namespace) -> int:
    from bigstep.commands.ensemble import ensemble
    from bigstep.project.dvc import find_project_root
    from bigstep.runs.installed_code import refresh_code_lists

    root = find_project_root(Path.cwd())
    refresh_code_lists(root)
    chosen = {name: getattr(options, name) for name in ("seeds", "study", "greedy", "soup", "report")}
    return ensemble(root, options.members, **chosen)


def _compare(options: argparse.Namespace) -> int:
    from bigstep.commands.compare import compare
    from bigstep.project.dvc import find_project_root

    return compare(find_project_root(Path.cwd()), options.runs, options.report)


def _predict(options: argparse.Namespace) -> int:
    from bigstep.commands.predict import is_exported, predict
    from bigstep.project.dvc import find_project_root

    root = None if options.model is not None and is_exported(options.model) else find_project_root(Path.cwd())
    return predict(root, [Path(name) for name in options.images], options.model, options.report)


def _verify(options: argparse.Namespace) -> int:
    from bigstep.config.params import read_params
    from bigstep.diagnostics.verify import verify
    from bigstep.project.dvc import find_project_root
    from bigstep.project.parameters import check_params

    root = find_project_root(Path.cwd())
    return verify(root, check_params(read_params(root / "params.yaml")), options.report)


def _doctor(options: argparse.Namespace) -> int:
    from bigstep.diagnostics.doctor import doctor
    from bigstep.project.dvc import find_project_root

    return doctor(find_project_root(Path.cwd()), fix=options.fix, report=options.report)


def _clean(options: argparse.Namespace) -> int:
    from bigstep.commands.clean import clean
    from bigstep.project.dvc import find_project_root

    return clean(find_project_root(Path.cwd()), days=options.days, dry_run=options.dry_run, report=options.report)


def _search(options: argparse.Namespace) -> int:
    from bigstep.commands.overrides import chosen_overrides, read_preset
    from bigstep.commands.search import search
    from bigstep.project.dvc import find_project_root
    from bigstep.runs.installed_code import refresh_code_lists

    root = find_project_root(Path.cwd())
    refresh_code_lists(root)
    groups = tuple(group for group in (read_preset(root, options.preset), chosen_overrides(options)) if group)
    return search(root, groups, apply=options.apply, warm_start=options.warm_start, report=options.report)


def _dashboard(options: argparse.Namespace) -> int:
    from bigstep.commands.dashboard import serve_dashboard
    from bigstep.project.dvc import find_project_root

    return serve_dashboard(find_project_root(Path.cwd()), storage=options.storage, port=options.port, host=options.host)


def _mlflow(options: argparse.Namespace) -> int:
    from bigstep.commands.mlflow_ui import serve_mlflow
    from bigstep.project.dvc import find_project_root

    return serve_mlflow(find_project_root(Path.cwd()), port=options.port, host=options.host)


def _status(options: argparse.Namespace) -> int:
    from bigstep.commands.status import status
    from bigstep.project.dvc import find_project_root

    return status(find_project_root(Path.cwd()), options.report)


def _completion(options: argparse.Namespace) -> int:
    from bigstep.commands.completion import completion

    return completion(build_parser(), options.shell)


COMMANDS = {
    "init": _init,
    "compare": _compare,
    "ensemble": _ensemble,
    "predict": _predict,
    "verify": _verify,
    "doctor": _doctor,
    "status": _status,
    "clean": _clean,
    "mlflow": _mlflow,
    "completion": _completion,
    "search": _search,
    "dashboard": _dashboard,
}


if __name__ == "__main__":
    raise SystemExit(main())
