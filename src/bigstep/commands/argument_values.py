"""What argparse does not do: former names of options, and ranges of their values."""

import argparse
from collections.abc import Sequence

from bigstep.errors import ConfigError

__all__ = ["FORMER", "check_numbers", "with_new_names"]

FORMER = {
    "--again": "--remeasure",
    "--adopt": "--apply",
    "--prior": "--warm-start",
    "--expose": "--host",
    "--resume-anyway": "--ignore-code-change",
}  # until 0.3


def with_new_names(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace former names of options by the new ones.

    Returns:
        The arguments, and one line for each name that was replaced.
    """
    found, lines = [], []
    for argument in arguments:
        name, mark, value = argument.partition("=")
        if name in FORMER:
            lines.append(f"{name} is now {FORMER[name]}; the former name works until version 0.3")
        found.append(f"{FORMER.get(name, name)}{mark}{value}")
    return found, lines


def check_numbers(options: argparse.Namespace) -> None:
    """Check what argparse cannot: ranges and sizes.

    Raises:
        ConfigError: a value is out of range.
    """
    if getattr(options, "samples", 2) < 2:
        raise ConfigError(f"--samples: expected at least 2, got {options.samples}; use for example 32")
    if not 1 <= getattr(options, "seeds", 1) <= 1000:
        raise ConfigError(f"--seeds: expected 1 to 1000, got {options.seeds}; use for example 5")
    if getattr(options, "seeds", 1) > 1 and getattr(options, "stage", None) is not None:
        raise ConfigError(f"--seeds: expected no --stage beside it, got {options.stage}; leave one of them out")
    if not 1 <= getattr(options, "seconds", 60.0) <= 3600:
        raise ConfigError(f"--seconds: expected 1 to 3600, got {options.seconds:g}; use for example 60")
    if not 0 <= getattr(options, "days", 30.0) <= 36500:
        raise ConfigError(f"--days: expected 0 to 36500, got {options.days:g}; use for example 30")
    if not 0 <= getattr(options, "port", 0) <= 65535:
        raise ConfigError(f"--port: expected 0 to 65535, got {options.port}; use for example 8080")
    if getattr(options, "budget", None) is not None:
        from bigstep.config.hardware import HardwareConfig
        from bigstep.config.yaml_files import parse_section

        parse_section(HardwareConfig, {"hardware": {"memory_budget": options.budget}}, "--budget")
