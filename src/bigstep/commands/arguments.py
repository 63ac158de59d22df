"""The arguments of `bigstep`: its commands, their options and help."""

import argparse
from collections.abc import Sequence

from bigstep import __version__
from bigstep.errors import ConfigError

__all__ = ["EXAMPLES", "FORMER", "SEARCH", "SHORT", "STAGES", "build_parser", "check_numbers", "short_forms", "with_new_names"]
STAGES = {
    "prepare": "read the source's images into data/prepared",
    "train": "train up to results/train, after prepare where that is out of date",
    "evaluate": "evaluate the model in results/evaluate, after the stages before it",
    "check": "compare accumulated with full-batch gradients of the configured model, layer by layer, in float64",
    "plan": "measure speed and memory over micro-batch sizes, and recommend a slicing of the effective batch",
    "search": "try learning rates and effective batches, the slicing planned, and train the best again with new seeds",
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
  bigstep repro                                       the whole pipeline, as params.yaml says
  bigstep repro --set train.learning_rate=0.01        the same with another value, in a private copy
  bigstep repro --preset fashion-mnist                parameters of presets/fashion-mnist.yaml
  bigstep plan --apply                                how to cut the batch on this machine, into params.yaml
  bigstep search --trials 20 --workers 2              which learning rate and effective batch?
  bigstep check --set model.name=resnet18 --set data.image_size=32   is accumulating exact for this model?
  bigstep predict photo.jpg                           predict with the champion of MLflow's registry
"""

FORMER = {
    "--again": "--remeasure",
    "--adopt": "--apply",
    "--prior": "--warm-start",
    "--expose": "--host",
    "--resume-anyway": "--ignore-code-change",
}  # until 0.3


def with_new_names(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Put the new name in the place of an option's former one.

    Returns:
        The arguments, and a line for each name that was replaced.
    """
    found, lines = [], []
    for argument in arguments:
        name, mark, value = argument.partition("=")
        if name in FORMER:
            lines.append(f"{name} is now {FORMER[name]}; the former name works until version 0.3")
        found.append(f"{FORMER.get(name, name)}{mark}{value}")
    return found, lines


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
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
    text = "verify checksums of data, models and caches"
    commands.add_parser("verify", help=text, description=text, allow_abbrev=False)
    text = "find what a crash, a full disk or another program left behind"
    doctor = commands.add_parser("doctor", help=text, description=text, allow_abbrev=False)
    doctor.add_argument("--fix", action="store_true", help="repair it; damaged files are moved to .bigstep/set-aside")
    text = "open MLflow's page on the project's history"
    page = commands.add_parser("mlflow", help=text, description=text, allow_abbrev=False)
    page.add_argument("--port", type=int, default=0, metavar="N", help="default: the first free one from 5000 on")
    page.add_argument(
        "--host",
        metavar="ADDRESS",
        help="listen on this address too: anyone who can reach it can modify or delete runs (no authentication)",
    )
    text = "open the page of optuna-dashboard on the study"
    board = commands.add_parser("dashboard", help=text, description=text, allow_abbrev=False)
    board.add_argument("--storage", metavar="ADDRESS", help="of the study; default: search.storage")
    board.add_argument("--port", type=int, default=0, metavar="N", help="default: the first free one from 8080 on")
    board.add_argument(
        "--host",
        metavar="ADDRESS",
        help="listen on this address too: anyone who can reach it can modify or delete studies (no authentication)",
    )
    text = "classify images"
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
            "--ignore-code-change",
            action="store_true",
            help="resume from the checkpoint even if the training code changed",
        )
    if name == "check":
        parser.add_argument("--samples", type=int, default=32, metavar="N", help="samples of the batch compared (default: 32)")
    if name == "plan":
        parser.add_argument("--budget", metavar="SIZE", help="memory limit such as 8GiB; overrides hardware.memory_budget")
        parser.add_argument("--remeasure", action="store_true", help="measure even if there is a plan already")
        parser.add_argument("--apply", action="store_true", help="write the choice into params.yaml, comments kept")
        parser.add_argument("--seconds", type=float, default=60.0, metavar="N", help="to measure for, at most (default: 60)")
    if name == "search":
        parser.add_argument("--apply", action="store_true", help="write the winner into params.yaml, comments kept")
        parser.add_argument(
            "--warm-start", metavar="STUDY", help="start from the best trials of another study in the same storage"
        )
    if name in ("repro", "plan", "search"):
        short = parser.add_argument_group("short forms of --set (also as `mlflow run . -P name=value`)")
        for key, target in short_forms(name).items():
            flags = dict.fromkeys((f"--{key.replace('_', '-')}", f"--{key}"))
            short.add_argument(*flags, dest=key, metavar="VALUE", help=f"{target}")
        short.add_argument(
            "--overrides", default="", metavar="TEXT", help='several, as "train.momentum=0.8 data.source=cifar10"'
        )
    if name == "repro":
        parser.add_argument("--stage", choices=("prepare", "train", "evaluate"), help="stop after this stage")


def short_forms(name: str) -> dict[str, str]:
    """Return the options of a command that are short for ``--set``, and the keys they set."""
    return {"epochs": "search.epochs", **SEARCH} if name == "search" else SHORT


def check_numbers(options: argparse.Namespace) -> None:
    """Check what argparse cannot: ranges and sizes.

    Raises:
        ConfigError: a value is out of range.
    """
    if getattr(options, "samples", 2) < 2:
        raise ConfigError(f"--samples must be at least 2, but is {options.samples}; write for example 32")
    if not 1 <= getattr(options, "seconds", 60.0) <= 3600:
        raise ConfigError(f"--seconds must be from 1 to 3600, but is {options.seconds:g}; write for example 60")
    if getattr(options, "budget", None) is not None:
        from bigstep.config.hardware import HardwareConfig
        from bigstep.config.yaml_files import parse_section

        parse_section(HardwareConfig, {"hardware": {"memory_budget": options.budget}}, "--budget")
