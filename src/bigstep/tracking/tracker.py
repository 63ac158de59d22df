"""What stages log to a tracker; the tracker that keeps nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

__all__ = [
    "CHAMPION_TAG",
    "DatasetRecord",
    "Metric",
    "ModelProgram",
    "ModelRecord",
    "NullTracker",
    "Tracker",
    "finite",
    "split_params",
]

CHAMPION_TAG = "bigstep.champion_by"  # of a run: the metric by which its model is compared, where it is not val_loss


@dataclass(frozen=True)
class Metric:
    """A value of a run; ``step`` counts steps of the training, ``timestamp`` is in milliseconds since 1970."""

    key: str
    value: float
    step: int
    timestamp: int


@dataclass(frozen=True)
class DatasetRecord:
    """The data a run used: its name, digest, folder, how it was used, and counts."""

    name: str
    digest: str
    source: str
    context: str
    profile: Mapping[str, int]


@dataclass(frozen=True)
class ModelProgram:
    """A model as it is served: a program of torch.export, and what it takes and gives."""

    path: Path
    torch_version: str
    sample_shape: tuple[int, ...]
    """-1 where any size is taken."""
    sample_dtype: str
    task: str = "classification"
    output: str = "probabilities"
    """What the outputs are, for the metadata."""


@dataclass(frozen=True)
class ModelRecord:
    """A trained model to be kept: the folder it was saved in, a raw batch it takes, and what is known about it."""

    folder: Path
    example: Any
    classes: tuple[str, ...]
    tags: Mapping[str, str]
    program: ModelProgram | None = None
    """Where it has been exported already; else its delivery exports it."""


class Tracker(Protocol):
    """The history of one run."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log the parameters; one that was logged with another value becomes a tag ``resumed.<key>``."""
        ...

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        """Log values, all in one message; those that are not finite are skipped."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        ...

    def log_dataset(self, dataset: DatasetRecord) -> None:
        """Log the data that was used."""
        ...

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file, if it exists."""
        ...

    def log_model(self, model: ModelRecord) -> None:
        """Keep the model in a form that can be served."""
        ...

    def finish(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        ...


@final
class NullTracker:
    """Keeps nothing."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        """Do nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def log_dataset(self, dataset: DatasetRecord) -> None:
        """Do nothing."""

    def log_file(self, path: Path, folder: str = "") -> None:
        """Do nothing."""

    def log_model(self, model: ModelRecord) -> None:
        """Do nothing."""

    def finish(self, status: str) -> None:
        """Do nothing."""


def finite(metrics: Sequence[Metric]) -> list[Metric]:
    """Leave out infinities and NaN: MLflow stores infinity as 1.8e308, which breaks its plots."""
    return [metric for metric in metrics if abs(metric.value) < float("inf")]


def split_params(params: Mapping[str, object], known: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Part parameters into new ones, and tags for those known with another value (MLflow allows no change)."""
    texts = {key: str(value) for key, value in params.items()}
    new = {key: value for key, value in texts.items() if key not in known}
    changed = {f"resumed.{key}": value for key, value in texts.items() if key in known and known[key] != value}
    return new, changed
