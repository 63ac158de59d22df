"""A tracker that writes into a spool, and never waits for MLflow."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from bigstep.tracking.spool import Sent, Spool
from bigstep.tracking.spool_index import INDEXED_EVERY, read_index
from bigstep.tracking.tracker import DatasetRecord, Metric, ModelRecord, finite

__all__ = ["SpoolTracker"]


@final
class SpoolTracker:
    """A tracker that writes to a spool."""

    def __init__(self, spool: Spool, wake: Callable[[], None] = lambda: None) -> None:
        """Write to ``spool``; metrics that it contains are not added again.

        Args:
            spool: to write to.
            wake: called after an entry whose delivery takes long.
        """
        self.spool = spool
        self._wake = wake
        self._index = read_index(spool.path)
        self._indexed = self._index.offset
        for entry, offset in spool.entries(self._index.offset):
            self._index.add(entry, offset)
        self._write_index(INDEXED_EVERY)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log the parameters."""
        self._append("params", values={key: str(value) for key, value in params.items()})

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        """Log values that are finite and new."""
        new = [item for item in finite(metrics) if not self._index.has(item.key, item.step)]
        if new:
            self._append("metrics", rows=[[item.key, item.value, item.step, item.timestamp] for item in new])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._append("tags", values=dict(tags))

    def log_dataset(self, dataset: DatasetRecord) -> None:
        """Log the data that was used."""
        self._append("dataset", values={**asdict(dataset), "profile": dict(dataset.profile)})

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file, if it exists."""
        if path.is_file():
            self._append("file", path=self.spool.copy_in(path), folder=folder)

    def log_model(self, model: ModelRecord) -> None:
        """Keep a copy of the model's folder."""
        entry = {"path": self.spool.copy_in(model.folder), "example": model.example.tolist()}
        if model.program is not None:
            entry["program"] = {**asdict(model.program), "path": self.spool.copy_in(model.program.path)}
        self._append("model", classes=list(model.classes), tags=dict(model.tags), **entry)
        self._wake()

    def promote(self, name: str, weights_sha256: str, card: str = "") -> None:
        """Have the model with these weights registered under ``name``, with its card."""
        self._append("promote", name=name, weights_sha256=weights_sha256, card=card)

    def continue_run(self, run_id: str) -> None:
        """Send everything to the run ``run_id`` from the start, if another run got it so far; both are tagged."""
        old = self.spool.sent.run_id
        if old != run_id:
            if old is not None:
                self._append("continues", run_id=old)
            self.spool.sent = Sent(run_id, 0)

    def point_from(self, run_id: str) -> None:
        """Record in another run that this one has the history."""
        self._append("pointer", run_id=run_id)

    def finish(self, status: str) -> None:
        """End the run."""
        self._append("finish", status=status)
        self.spool.sync()
        self._write_index(1)

    def _append(self, kind: str, **values: Any) -> None:
        entry = {"entry": kind, **values}
        self._index.add(entry, self.spool.append(entry))
        self._write_index(INDEXED_EVERY)

    def _write_index(self, least: int) -> None:
        """Write the index if the journal has grown by ``least`` bytes since the last time."""
        if self._index.offset - self._indexed >= least:
            self._indexed = self._index.offset
            with contextlib.suppress(OSError):  # of a full disk: the index is built again
                self._index.write(self.spool.path)
