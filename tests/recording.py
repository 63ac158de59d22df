"""A tracker that keeps everything in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from bigstep.tracking.tracker import DatasetRecord, Metric, ModelRecord, finite, split_params


@final
@dataclass
class RecordingTracker:
    """Keeps everything in memory."""

    params: dict[str, object] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: list[DatasetRecord] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    models: list[ModelRecord] = field(default_factory=list)
    status: str = "RUNNING"

    def log_params(self, params: Mapping[str, object]) -> None:
        """Keep new ones; tag changed ones."""
        new, changed = split_params(params, {key: str(value) for key, value in self.params.items()})
        self.params.update(new)
        self.tags.update(changed)

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        """Keep the finite ones."""
        self.metrics += finite(metrics)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Keep them."""
        self.tags.update(tags)

    def log_dataset(self, dataset: DatasetRecord) -> None:
        """Keep it."""
        self.datasets.append(dataset)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep its name."""
        if path.is_file():
            self.files.append(f"{folder}/{path.name}" if folder else path.name)

    def log_model(self, model: ModelRecord) -> None:
        """Keep it."""
        self.models.append(model)

    def finish(self, status: str) -> None:
        """Keep the status."""
        self.status = status
