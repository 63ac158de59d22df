"""The command `bigstep`: parse, validate, call a stage; one line for each user's error."""

import argparse
import os
import shlex
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from bigstep import __version__
from bigstep.config.yaml_files import Override, parse_overrides
from bigstep.errors import ConfigError, UserError

__all__ = ["main"]

STAGES = {
    "prepare": "read the source's images into data/prepared",
    "train": "train up to results/train, after prepare where that is out of date",
    "evaluate": "judge the model in results/evaluate, after the stages before it",
    "check": "compare accumulated with full-batch gradients of the configured model, layer by layer, in float64",
    "plan": "measure speed and memory over micro-batch sizes, and recommend a slicing of the effective batch",
    "search": "try learning rates and effective batches, the slicing planned, and train the best again with new seeds",
    "repro": "run whatever is out of date of prepare, train and evaluate",
}
SHORT = {
    "learning_rate": "train.learning_rate",
    "effective_batch_size": "train.effective_batch_size",
    "epochs": "train.epochs",
    "accumulation_steps": "hardware.accumulation_steps",
    "micro_batch_size": "hardware.micro_batch_size",
}
SEARCH = {"trials": "search.trials", "workers": "search.workers", "study": "search.study", "storage": "search.storage"}
EXAMPLES = """examples:
  bigstep repro                                       the whole pipeline, as params.yaml says
  bigstep repro --set train.learning_rate=0.01        the same with another value, in a private copy
  bigstep repro --preset fashion-mnist                parameters of presets/fashion-mnist.yaml
  bigstep plan --adopt                                how to cut the batch on this machine, into params.yaml
  bigstep search --trials 20 --workers 2              which learning rate and effective batch?
  bigstep check --set model.name=resnet18 --set data.image_size=32   is accumulating exact for this model?
  bigstep predict photo.jpg                           ask the champion of MLflow's registry
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0, 2 after a user's error, 1 where a stage failed otherwise, 130 after Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        _parser().print_help()
        return 0
    try:
        _check_command(given[0])
        options = _parser().parse_args(given)
        _check_numbers(options)
        return COMMANDS.get(options.command, _repro)(options)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"bigstep: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _check_command(name: str) -> None:
    known = [*STAGES, *COMMANDS]
    if not name.startswith("-") and name not in known:
        from bigstep.config.yaml_files import nearest

        raise ConfigError(f"COMMAND must be one of bigstep's, but is {name!r}; {nearest(name, known)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bigstep",
        description="Train image models with exact gradient accumulation; DVC runs the stages, MLflow keeps the history.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bigstep {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in STAGES.items():
        _add_stage_options(commands.add_parser(name, help=text, description=text, allow_abbrev=False), name)
    text = "read every byte that results rest on, and name what is not what it was"
    commands.add_parser("verify", help=text, description=text, allow_abbrev=False)
    text = "find what a crash, a full disk or another program left in the way"
    doctor = commands.add_parser("doctor", help=text, description=text, allow_abbrev=False)
    doctor.add_argument("--fix", action="store_true", help="put it right; what does not read is moved to .bigstep/set-aside")
    text = "open MLflow's page on the project's history"
    page = commands.add_parser("mlflow", help=text, description=text, allow_abbrev=False)
    page.add_argument("--port", type=int, default=0, metavar="N", help="default: the first free one from 5000 on")
    page.add_argument(
        "--expose",
        metavar="ADDRESS",
        help="listen on this address too, for other machines: whoever reaches it can read and change every run",
    )
    text = "open the page of optuna-dashboard on the study"
    board = commands.add_parser("dashboard", help=text, description=text, allow_abbrev=False)
    board.add_argument("--storage", metavar="ADDRESS", help="of the study; default: search.storage")
    board.add_argument("--port", type=int, default=0, metavar="N", help="default: the first free one from 8080 on")
    board.add_argument(
        "--expose", metavar="ADDRESS", help="listen on this address too: whoever reaches it can read and change every study"
    )
    text = "name the class of images"
    predict = commands.add_parser("predict", help=text, description=text, allow_abbrev=False)
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="a JPEG, PNG or WebP file of any size")
    predict.add_argument(
        "--model",
        metavar="NAME",
        help="a model of MLflow's registry (its champion), a models:/ address, or a folder with model.safetensors; "
        "default: the champion for data.source",
    )
    return parser


def _add_stage_options(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="use another value than params.yaml's; may be repeated. The run then happens in a private copy",
    )
    parser.add_argument("--preset", metavar="NAME", help="use the values of presets/NAME.yaml; --set goes over them")
    if name != "search":
        parser.add_argument("--force", "-f", action="store_true", help="run the stages even where they are up to date")
    if name in ("train", "evaluate", "repro"):
        parser.add_argument(
            "--resume-anyway",
            action="store_true",
            help="go on from a killed training's checkpoint although the code that decides learning has changed",
        )
    if name == "check":
        parser.add_argument("--samples", type=int, default=32, metavar="N", help="samples of the batch compared (default: 32)")
    if name == "plan":
        parser.add_argument("--budget", metavar="SIZE", help="a limit as 8GiB, in the place of hardware.memory_budget")
        parser.add_argument("--again", action="store_true", help="measure also where there is a plan already")
        parser.add_argument("--adopt", action="store_true", help="write the choice into params.yaml, comments kept")
        parser.add_argument("--seconds", type=float, default=60.0, metavar="N", help="to measure for, at most (default: 60)")
    if name == "search":
        parser.add_argument("--adopt", action="store_true", help="write the winner into params.yaml, comments kept")
        parser.add_argument("--prior", metavar="STUDY", help="begin with the best points of an earlier study of the storage")
    if name in ("repro", "plan", "search"):
        short = parser.add_argument_group("short forms of --set (also as `mlflow run . -P name=value`)")
        for key, target in _short(name).items():
            flags = dict.fromkeys((f"--{key.replace('_', '-')}", f"--{key}"))
            short.add_argument(*flags, dest=key, metavar="VALUE", help=f"{target}")
        short.add_argument(
            "--overrides", default="", metavar="TEXT", help='several, as "train.momentum=0.8 data.source=cifar10"'
        )
    if name == "repro":
        parser.add_argument("--stage", choices=("prepare", "train", "evaluate"), help="stop after this stage")


def _short(name: str) -> dict[str, str]:
    return {"epochs": "search.epochs", **SEARCH} if name == "search" else SHORT


def _repro(options: argparse.Namespace) -> int:
    from bigstep.commands.repro import finish_pipeline
    from bigstep.project.dvc import Request, find_project_root, run_pipeline
    from bigstep.project.paths import ProjectPaths

    root = find_project_root(Path.cwd())
    if getattr(options, "resume_anyway", False):
        os.environ["BIGSTEP_RESUME_ANYWAY"] = "1"
    groups = (_preset(root, options.preset), _overrides(options))
    stage = {"repro": getattr(options, "stage", None), "check": "prepare", "plan": "prepare"}.get(
        options.command, options.command
    )
    claiming = threading.Thread(target=_claim_run, args=(root,), name="bigstep-claim")
    claiming.start()  # beside the stages: importing MLflow takes seconds
    request = Request(None if stage == "evaluate" else stage, tuple(group for group in groups if group), options.force)
    code, paths, params = run_pipeline(root, request)
    claiming.join()
    if options.command == "check" and code == 0:
        from bigstep.commands.check import check

        return check(ProjectPaths(root), paths, params, options.samples)
    if options.command == "plan" and code == 0:
        from bigstep.commands.plan import plan

        chosen = {name: getattr(options, name) for name in ("budget", "again", "adopt", "seconds")}
        return plan(ProjectPaths(root), paths, params, **chosen)
    return code if code else finish_pipeline(root, paths, params, stage or "evaluate")


def _claim_run(root: Path) -> None:
    if "MLFLOW_RUN_ID" in os.environ:
        from bigstep.runs.tracked_run import claim_given_run

        claim_given_run(root)


def _check_numbers(options: argparse.Namespace) -> None:
    if getattr(options, "samples", 2) < 2:
        raise ConfigError(f"--samples must be at least 2, but is {options.samples}; write for example 32")
    if not 1 <= getattr(options, "seconds", 60.0) <= 3600:
        raise ConfigError(f"--seconds must be from 1 to 3600, but is {options.seconds:g}; write for example 60")
    if getattr(options, "budget", None) is not None:
        from bigstep.config.hardware import Hardware
        from bigstep.config.yaml_files import parse_section

        parse_section(Hardware, {"hardware": {"memory_budget": options.budget}}, "--budget")


def _overrides(options: argparse.Namespace) -> tuple[Override, ...]:
    from bigstep.config.params import check_overrides

    short = _short(options.command)
    texts = [f"{target}={getattr(options, key)}" for key, target in short.items() if getattr(options, key, None) is not None]
    try:
        texts += shlex.split(getattr(options, "overrides", ""))
    except ValueError as error:
        raise ConfigError(f"--overrides must be words as in a shell, but {error}; balance the quotes") from None
    found = parse_overrides([*texts, *options.set])
    check_overrides(found, "--set")
    return found


def _preset(root: Path, name: str | None) -> tuple[Override, ...]:
    from bigstep.config.params import check_overrides
    from bigstep.config.yaml_files import nearest, read_yaml

    if name is None:
        return ()
    known = sorted(path.stem for path in (root / "presets").glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"--preset must name a file in presets/, but {name!r} is none; {nearest(name, known)}")
    content = read_yaml(root / "presets" / f"{name}.yaml")
    for section, values in content.items():
        if not isinstance(values, dict | None):
            raise ConfigError(f"presets/{name}.yaml: {section} must be a mapping of keys, but is not; indent its keys below it")
    found = tuple((section, key, value) for section, values in content.items() for key, value in (values or {}).items())
    check_overrides(found, f"presets/{name}.yaml")
    return found


def _predict(options: argparse.Namespace) -> int:
    from bigstep.commands.predict import is_exported, predict
    from bigstep.project.dvc import find_project_root

    root = None if options.model is not None and is_exported(options.model) else find_project_root(Path.cwd())
    return predict(root, [Path(name) for name in options.images], options.model)


def _verify(options: argparse.Namespace) -> int:
    from bigstep.config.yaml_files import read_yaml
    from bigstep.diagnostics.verify import verify
    from bigstep.project.dvc import find_project_root
    from bigstep.project.parameters import check_params

    del options
    root = find_project_root(Path.cwd())
    return verify(root, check_params(read_yaml(root / "params.yaml")))


def _doctor(options: argparse.Namespace) -> int:
    from bigstep.diagnostics.doctor import doctor
    from bigstep.project.dvc import find_project_root

    return doctor(find_project_root(Path.cwd()), fix=options.fix)


def _search(options: argparse.Namespace) -> int:
    from bigstep.commands.search import search
    from bigstep.project.dvc import find_project_root

    root = find_project_root(Path.cwd())
    groups = tuple(group for group in (_preset(root, options.preset), _overrides(options)) if group)
    return search(root, groups, adopt=options.adopt, prior=options.prior)


def _dashboard(options: argparse.Namespace) -> int:
    from bigstep.commands.dashboard import serve_dashboard
    from bigstep.project.dvc import find_project_root

    return serve_dashboard(find_project_root(Path.cwd()), storage=options.storage, port=options.port, expose=options.expose)


def _mlflow(options: argparse.Namespace) -> int:
    from bigstep.commands.mlflow_ui import serve_mlflow
    from bigstep.project.dvc import find_project_root

    return serve_mlflow(find_project_root(Path.cwd()), port=options.port, expose=options.expose)


COMMANDS = {
    "predict": _predict,
    "verify": _verify,
    "doctor": _doctor,
    "mlflow": _mlflow,
    "search": _search,
    "dashboard": _dashboard,
}


if __name__ == "__main__":
    raise SystemExit(main())
