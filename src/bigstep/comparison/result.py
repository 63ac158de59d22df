"""The results of one finished run, wherever they are."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigstep.errors import ProjectError

__all__ = ["FILES", "Predictions", "RunResult", "read_files", "read_folder", "read_predictions"]

FILES = {
    "predictions": "results/evaluate/predictions.csv",
    "history": "results/train/history.csv",
    "train": "results/train/metrics.json",
    "evaluate": "results/evaluate/metrics.json",
}


@dataclass(frozen=True)
class Predictions:
    """A row for each test sample: its name, the true class and the predicted one, and the probability of the true one."""

    names: tuple[str, ...]
    actual: tuple[str, ...]
    predicted: tuple[str, ...]
    p_actual: NDArray[np.float64] | None
    """None in tasks without classes."""

    @property
    def is_right(self) -> NDArray[np.float64]:
        """1 where the prediction is the true class, else 0."""
        return np.array([one == other for one, other in zip(self.actual, self.predicted, strict=True)], np.float64)


@dataclass(frozen=True)
class RunResult:
    """What is known of a run."""

    name: str
    """As the user called it."""
    params: Mapping[str, str]
    """Of params.yaml, as ``section.key``; values as JSON."""
    metrics: Mapping[str, float]
    history: tuple[Mapping[str, float], ...] = ()
    """A row for each epoch."""
    predictions: Predictions | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    """Code, seconds and memory, as far as they are known."""


def read_files(
    name: str, texts: Mapping[str, str | None], params: Mapping[str, str], facts: Mapping[str, str] | None = None
) -> RunResult:
    """Read what the stages left.

    Args:
        name: of the run.
        texts: contents by the keys of :data:`FILES`; None where there is no such file.
        params: as ``section.key``.
        facts: anything else, by name.

    Raises:
        ProjectError: a file is damaged.
    """
    try:
        return _read(name, texts, params, facts or {})
    except (csv.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProjectError(
            f"{name}: expected the files of a run that ended, got one that cannot be read ({error}); run `bigstep repro` there"
        ) from None


def _read(name: str, texts: Mapping[str, str | None], params: Mapping[str, str], facts: Mapping[str, str]) -> RunResult:
    metrics: dict[str, Any] = {}
    for key in ("train", "evaluate"):
        metrics |= json.loads(texts.get(key) or "{}")
    rows = [{key: float(value) for key, value in row.items()} for row in _rows(texts.get("history"))]
    table = _rows(texts.get("predictions"))
    numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
    return RunResult(name, params, numbers, tuple(rows), read_predictions(table) if table else None, facts)


def read_folder(folder: Path) -> dict[str, str | None]:
    """Return the contents of the files below ``folder``."""
    return {
        key: (folder / path).read_text(encoding="utf-8", errors="replace") if (folder / path).is_file() else None
        for key, path in FILES.items()
    }


def _rows(text: str | None) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""))) if text else []  # names of files may hold any separator of lines


def read_predictions(table: list[dict[str, str]]) -> Predictions | None:
    """Read the rows of predictions.csv; None where it has no column for the target, as with several numbers."""
    if not {"name", "actual", "predicted"} <= table[0].keys():
        return None
    column = "p_actual" if "p_actual" in table[0] else None
    has_each = all(f"p:{row['actual']}" in row for row in table)  # not where samples have several labels
    p_actual = None
    if column or has_each:
        p_actual = np.array([float(row[column or f"p:{row['actual']}"]) for row in table])
    names, actual, predicted = (tuple(row[key] for row in table) for key in ("name", "actual", "predicted"))
    return Predictions(names, actual, predicted, p_actual)
