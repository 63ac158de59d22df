"""params.yaml as a whole: every section, and the rules between them.

A stage reads its own sections only; this module is loaded to refuse a bad file before anything is written.
"""

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bigstep.config.batch_sizes import BatchSizes, resolve_batch
from bigstep.config.data import DataConfig
from bigstep.config.evaluate import EvaluateConfig
from bigstep.config.former_keys import update_content
from bigstep.config.hardware import HardwareConfig
from bigstep.config.model import ModelConfig
from bigstep.config.search import SearchConfig
from bigstep.config.section import Section, code_of
from bigstep.config.tracking import TrackingConfig
from bigstep.config.train import TrainConfig
from bigstep.config.yaml_files import Override, nearest, parse_section, problems_of_key, read_yaml
from bigstep.errors import ConfigError

__all__ = ["SECTIONS", "Params", "check_compile", "check_overrides", "flatten", "parse_params", "read_params"]

log = logging.getLogger(__name__)
ADDED = (
    "data.table",
    "data.columns",
    "train.loss",
    "evaluate.metrics",
)  # keys that count only where they are set: runs of earlier versions lack them

SECTIONS: tuple[type[Section], ...] = (
    DataConfig,
    ModelConfig,
    TrainConfig,
    EvaluateConfig,
    HardwareConfig,
    TrackingConfig,
    SearchConfig,
)


@dataclass(frozen=True)
class Params:
    """All of params.yaml, validated."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    hardware: HardwareConfig
    tracking: TrackingConfig
    search: SearchConfig

    @property
    def training_code(self) -> tuple[str, ...]:
        """Names of the user's own code that decides what is learned, given the data."""
        return tuple(dict.fromkeys(code_of([self.model.name, self.train.loss, self.train.augmentation])))

    @property
    def batch(self) -> BatchSizes:
        """The sizes of one optimizer step."""
        return resolve_batch(self.train, self.hardware, self.model)


def read_params(path: Path) -> dict[str, Any]:
    """Read params.yaml, comments kept; former names become those of now, and each is logged.

    Raises:
        ConfigError: the file cannot be read, or has a key under both names.
    """
    content = read_yaml(path)
    for line in update_content(content, path.name):
        _log_once(line)
    return content


@functools.cache  # a command may read the file more than once
def _log_once(line: str) -> None:
    log.warning(line)


def parse_params(content: Mapping[str, Any], origin: str = "params.yaml") -> Params:
    """Validate all sections and the rules between them.

    Raises:
        ConfigError: one line for each invalid value.
    """
    problems = [
        f"{origin}: {name}: unknown section; {nearest(str(name), [s.title for s in SECTIONS])}"
        for name in content
        if name not in {section.title for section in SECTIONS}
    ]
    sections: dict[str, Any] = {}
    for section in SECTIONS:
        try:
            sections[section.title] = parse_section(section, content, origin)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    params = Params(**sections)
    try:
        _ = params.batch
        check_compile(params.model, params.hardware)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    return params


def check_compile(model: ModelConfig, hardware: HardwareConfig) -> None:
    """Check that a training may be compiled, if it is to be.

    Raises:
        ConfigError: it may not.
    """
    statistics = model.batch_norm_statistics
    if hardware.compile and hardware.activation_checkpointing:
        raise ConfigError(
            "hardware.compile: expected false with hardware.activation_checkpointing, since compiled code decides itself what "
            "it recomputes, got true; write false for one of the two"
        )
    if hardware.compile and model.norm == "batch" and statistics in ("corrected", "recalibrated"):
        raise ConfigError(
            f"hardware.compile: expected false with model.batch_norm_statistics {statistics}, which are collected outside of "
            "compiled code, got true; write false, or set model.batch_norm_statistics to plain or frozen"
        )


def check_overrides(overrides: Iterable[Override], origin: str) -> None:
    """Check each override by itself, so that the message says where it comes from.

    Raises:
        ConfigError: one line for each unknown key and each invalid value.
    """
    sections = {section.title: section for section in SECTIONS}
    problems = []
    for section, key, value in overrides:
        if section in sections:
            problems += problems_of_key(sections[section], key, value, origin)
        else:
            problems.append(f"{origin}: {section}: unknown section; {nearest(section, sections)}")
    if problems:
        raise ConfigError("\n".join(problems))


def flatten(params: Params) -> dict[str, Any]:
    """Return every key of a training as ``section.key``, with B, m and A completed where no plan has to choose."""
    flat = {
        f"{part.name}.{key}": value
        for part in fields(params)
        if part.name != SearchConfig.title
        for key, value in _items(getattr(params, part.name))
    }
    flat["train.effective_batch_size"] = params.batch.effective_batch_size
    if params.batch.is_planned:
        flat["hardware.micro_batch_size"] = params.batch.micro_batch_size
        flat["hardware.accumulation_steps"] = params.batch.accumulation_steps
    return flat


def _items(section: Section) -> Iterator[tuple[str, Any]]:
    for key, value in section.model_dump(mode="json").items():
        if key == "options":
            yield from ((f"options.{name}", option) for name, option in value.items())
        elif f"{section.title}.{key}" not in ADDED or value:
            yield key, value
