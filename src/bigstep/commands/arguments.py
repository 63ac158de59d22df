"""The arguments of `bigstep`: its commands, their options and help."""

import argparse

from bigstep import __version__

__all__ = ["EXAMPLES", "SEARCH", "SHORT", "STAGES", "build_parser", "short_forms"]
STAGES = {
    "prepare": "read the source's images and write data/prepared",
    "train": "train and write results/train; runs prepare first if it is out of date",
    "evaluate": "evaluate the model and write results/evaluate; runs earlier stages first if they are out of date",
    "check": "compare accumulated with full-batch gradients for the configured model, layer by layer, in float64",
    "plan": "measure speed and memory over micro-batch sizes, and recommend a micro-batch size",
    "search": "search learning rates and effective batch sizes with planned micro-batches, and retrain the best with new seeds",
    "repro": "run the stages prepare, train and evaluate that are out of date",
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
  bigstep init flowers                                make a project of your own in flowers
  bigstep repro                                       run the whole pipeline with params.yaml
  bigstep repro --set train.learning_rate=0.01        the same with one value changed, in a separate workspace
  bigstep repro --preset fashion-mnist                use presets/fashion-mnist.yaml
  bigstep plan --apply                                choose the micro-batch size for this machine
  bigstep search --trials 20 --workers 2              tune learning rate and effective batch size
  bigstep check --set model.name=resnet18 --set data.image_size=32   is accumulation exact for this model?
  bigstep predict photo.jpg                           classify with the champion of MLflow's registry
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="bigstep",
        description="Train image models with exact gradient accumulation; DVC runs the stages, MLflow tracks the runs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bigstep {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in STAGES.items():
        _add_stage_options(commands.add_parser(name, help=text, description=text, allow_abbrev=False), name)
    _add_init(commands)
    _add_maintenance(commands)
    _add_ensemble(commands)
    _add_compare(commands)
    _add_server(commands, "mlflow", "start the MLflow UI for the project's runs", 5000, "runs")
    board = _add_server(commands, "dashboard", "start optuna-dashboard for the study", 8080, "studies")
    board.add_argument("--storage", metavar="ADDRESS", help="storage of the study (default: search.storage)")
    _add_predict(commands)
    text = "print the completion of commands and options for a shell"
    completion = commands.add_parser("completion", help=text, description=text, allow_abbrev=False)
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")
    return parser


def _add_maintenance(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "show what runs, what was interrupted, what is queued, and what MLflow has not received"
    _add_json(commands.add_parser("status", help=text, description=text, allow_abbrev=False))
    text = "verify checksums of data, models and caches"
    _add_json(commands.add_parser("verify", help=text, description=text, allow_abbrev=False))
    text = "find problems left by a crash, a full disk or another program"
    doctor = commands.add_parser("doctor", help=text, description=text, allow_abbrev=False)
    _add_json(doctor)
    doctor.add_argument("--fix", action="store_true", help="fix them; damaged files are moved to .bigstep/set-aside")
    text = "remove from .bigstep what no run, study or MLflow server needs any more"
    clean = commands.add_parser("clean", help=text, description=text, allow_abbrev=False)
    _add_json(clean)
    clean.add_argument("--dry-run", action="store_true", help="print what would be removed, and its size")
    clean.add_argument(
        "--days", type=float, default=30.0, metavar="N", help="keep what was used in the last N days (default: 30)"
    )


def _add_predict(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "predict images with a registered model, or with one in a folder"
    predict = commands.add_parser("predict", help=text, description=text, allow_abbrev=False)
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="a JPEG, PNG or WebP file of any size")
    predict.add_argument(
        "--model",
        metavar="NAME",
        help="a registered model (its champion), a models:/ URI, or a folder with model.safetensors "
        "(default: the champion for data.source)",
    )
    _add_json(predict)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", dest="as_json", action="store_true", help="print the result as JSON, everything else on stderr"
    )


def _add_init(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "make a project in a new folder: files to start from, git and DVC"
    start = commands.add_parser("init", help=text, description=text, allow_abbrev=False)
    start.add_argument("folder", metavar="NAME", help="a new or an empty folder")
    start.add_argument(
        "--from",
        dest="example",
        metavar="FOLDER",
        help="copy the files of this folder, too; its params.yaml holds what differs (see examples)",
    )


def _add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "compare finished runs: parameters, curves, and whether test accuracy differs by more than chance"
    parser = commands.add_parser("compare", help=text, description=text, allow_abbrev=False)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="`workspace`, a git revision, a DVC experiment, or an MLflow run's id or name; each is compared with the first",
    )
    _add_json(parser)


def _add_ensemble(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "combine several trained models into one, and compare it with the best of them"
    parser = commands.add_parser("ensemble", help=text, description=text, allow_abbrev=False)
    parser.add_argument(
        "members", nargs="*", metavar="MODEL", help="a folder with model.json, runs:/ID, or models:/NAME/VERSION"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="run the pipeline with N seeds from train.seed on, and combine those"
    )
    parser.add_argument(
        "--study", action="store_true", help="combine the models that search.study retrained with new seeds on this machine"
    )
    parser.add_argument("--greedy", action="store_true", help="choose members on the validation part; one may count twice")
    parser.add_argument(
        "--soup", action="store_true", help="average weights instead of probabilities; members must share a start"
    )
    _add_json(parser)


def _add_server(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, first_port: int, shown: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0, metavar="N", help=f"default: the first free port from {first_port}")
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        help=f"listen here instead of on 127.0.0.1; anyone who can reach it can modify or delete {shown} (no authentication)",
    )
    return parser


def _add_stage_options(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override values of params.yaml; may be repeated. The pipeline then runs in a separate workspace",
    )
    parser.add_argument("--preset", metavar="NAME", help="use the values of presets/NAME.yaml; --set overrides them")
    _add_json(parser)
    if name != "search":
        parser.add_argument("--force", "-f", action="store_true", help="run the stages even if they are up to date")
    if name in ("train", "evaluate", "repro"):
        parser.add_argument(
            "--ignore-code-change",
            action="store_true",
            help="resume from the checkpoint even if the training code changed",
        )
    if name == "check":
        parser.add_argument("--samples", type=int, default=32, metavar="N", help="number of samples to compare (default: 32)")
    if name == "plan":
        parser.add_argument("--budget", metavar="SIZE", help="memory limit such as 8GiB; overrides hardware.memory_budget")
        parser.add_argument("--remeasure", action="store_true", help="measure again even if there is a plan")
        parser.add_argument(
            "--compile", action="store_true", help="also measure what hardware.compile gains (a minute or more)"
        )
        parser.add_argument("--apply", action="store_true", help="write the choice into params.yaml, keeping comments")
        parser.add_argument("--seconds", type=float, default=60.0, metavar="N", help="time limit for measuring (default: 60)")
    if name == "search":
        parser.add_argument("--apply", action="store_true", help="write the winner into params.yaml, keeping comments")
        parser.add_argument(
            "--warm-start", metavar="STUDY", help="start from the best trials of another study in the same storage"
        )
    if name in ("repro", "plan", "search"):
        _add_short_forms(parser, name)
    if name == "repro":
        parser.add_argument("--stage", choices=("prepare", "train", "evaluate"), help="stop after this stage")
        parser.add_argument(
            "--seeds", type=int, default=1, metavar="N", help="run with N seeds from train.seed on; print mean and spread"
        )


def _add_short_forms(parser: argparse.ArgumentParser, name: str) -> None:
    short = parser.add_argument_group("short forms of --set (also as `mlflow run . -P name=value`)")
    for key, target in short_forms(name).items():
        flags = dict.fromkeys((f"--{key.replace('_', '-')}", f"--{key}"))
        short.add_argument(*flags, dest=key, metavar="VALUE", help=f"{target}")
    short.add_argument(
        "--overrides",
        default="",
        metavar="TEXT",
        help='several overrides, such as "train.momentum=0.8 data.source=cifar10"',
    )


def short_forms(name: str) -> dict[str, str]:
    """Return the short options of a command, and the keys that they set."""
    return {"epochs": "search.epochs", **SEARCH} if name == "search" else SHORT
