"""What is logged to a run, queued on disk first: a journal of entries, and how far it was delivered.

Logging costs a line in a file, whatever happens to the server. Each (key, step) of a metric is accepted once, so a
training that is resumed from a checkpoint repeats none; each entry is delivered at least once and in order, and delivering it
again changes nothing (a metric keeps the time of its line, and MLflow stores an equal row once).

==================  =============================================================================
``journal.jsonl``   one entry a line; a torn last line, which a kill leaves, is cut off
``origin.json``     the store, the experiment, and a key that no other run has
``sent.json``       the run, and the bytes of the journal that were sent to it
``index.json``      which metrics the journal holds, up to an offset
``files/``          copies of files and models, as they were when they were logged
==================  =============================================================================
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from bigstep.atomic_files import read_record, whole_folder, write_json
from bigstep.runtime.file_locks import Timeout, exclusive_lock
from bigstep.tracking.entries import read_entry
from bigstep.tracking.journal_lines import last_lines

__all__ = [
    "Origin",
    "Sent",
    "Spool",
    "SpoolReader",
    "delivered_spools",
    "end_status",
    "is_complete",
    "is_in_use",
    "spool_lock",
    "unfinished_spools",
]


ROWS = 1000  # of metrics in a message, MLflow's limit


@dataclass(frozen=True)
class Sent:
    """The run that entries are sent to (None: none yet) and the journal's bytes that it knows."""

    run_id: str | None = None
    offset: int = 0


@dataclass(frozen=True)
class Origin:
    """The store and experiment that the run belongs to, and a key that no other run has."""

    uri: str
    experiment: str
    key: str


class SpoolReader:
    """The journal of one attempt, to deliver: what another process adds meanwhile is seen too."""

    def __init__(self, folder: Path) -> None:
        """Read the journal in ``folder``."""
        self.folder = folder
        self.path = folder / "journal.jsonl"

    @property
    def sent(self) -> Sent:
        """What was delivered so far; a file that cannot be read counts as nothing."""
        try:
            found = read_record(Sent, self.folder / "sent.json")
        except (OSError, ValueError):
            return Sent()
        return found if found.offset >= 0 else Sent()

    @sent.setter
    def sent(self, value: Sent) -> None:
        write_json(asdict(value), self.folder / "sent.json")

    @property
    def origin(self) -> Origin | None:
        """The run that the journal is for; None before :meth:`begin`."""
        try:
            return read_record(Origin, self.folder / "origin.json")
        except (OSError, ValueError):
            return None

    @property
    def refused(self) -> Path:
        """Where entries are kept that the server refused."""
        return self.folder / "refused.jsonl"

    def set_aside(self, entry: Mapping[str, Any], reason: str) -> None:
        """Keep an entry that the server refused, with its reason."""
        with self.refused.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": reason, **entry}) + "\n")

    def last(self) -> dict[str, Any] | None:
        """Return the newest entry."""
        whole = (line for line, _ in last_lines(self.path) if line.endswith(b"\n"))
        return next((entry for entry in map(read_entry, whole) if entry is not None), None)

    def entries(self, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield each whole entry from ``offset`` on, and the offset after it; a damaged line is skipped."""
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                entry = read_entry(line)
                if entry is not None:
                    yield entry, offset

    def batches(self, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield the entries from ``offset`` on, metrics that follow one another joined up to a thousand rows."""
        rows: list[Any] = []
        for entry, after in self.entries(offset):
            if entry["entry"] == "metrics" and len(rows) + len(entry["rows"]) <= ROWS:
                rows += entry["rows"]
            else:
                if rows:
                    yield {"entry": "metrics", "rows": rows}, offset
                rows = entry["rows"] if entry["entry"] == "metrics" else []
                if not rows:
                    yield entry, after
            offset = after
        if rows:
            yield {"entry": "metrics", "rows": rows}, offset

    def is_delivered(self) -> bool:
        """Return whether everything was sent to the run."""
        return self.sent.offset >= self.path.stat().st_size


@final
class Spool(SpoolReader):
    """The journal of one attempt; one process at a time has it open."""

    def __init__(self, folder: Path) -> None:
        """Open or create the journal in ``folder``; what a kill left half is cut off."""
        super().__init__(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        self._truncate_torn_tail()

    def begin(self, uri: str, experiment: str) -> None:
        """Set the store that the journal is for; if it changed, everything is sent again."""
        known = self.origin
        if known is None or (known.uri, known.experiment) != (uri, experiment):
            write_json(
                asdict(Origin(uri, experiment, uuid.uuid4().hex if known is None else known.key)), self.folder / "origin.json"
            )
            if known is not None and known.uri != uri:
                self.sent = Sent()

    def append(self, entry: Mapping[str, Any]) -> int:
        """Write one entry, and return the offset after it."""
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        return os.fstat(self._file.fileno()).st_size

    def sync(self) -> None:
        """Wait until the journal is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the journal."""
        self._file.close()

    def copy_in(self, path: Path) -> str:
        """Copy a file or a folder beside the journal, and return its name there."""
        name = f"files/{sum(1 for _ in (self.folder / 'files').glob('*'))}-{path.name}"
        with whole_folder((self.folder / name).with_suffix(".kept")) as beside:
            target = beside / path.name
            shutil.copytree(path, target) if path.is_dir() else shutil.copyfile(path, target)
        return f"{Path(name).with_suffix('.kept').as_posix()}/{path.name}"

    def _truncate_torn_tail(self) -> None:
        """Cut after the last complete line, and lower the delivered offset to the end of the file if it is beyond it."""
        ends = (start + len(line) for line, start in last_lines(self.path) if line.endswith(b"\n") and read_entry(line))
        start = next(ends, 0)
        if start != self.path.stat().st_size:
            self._file.truncate(start)
        if self.sent.offset > start:
            self.sent = Sent(self.sent.run_id, start)


@contextmanager
def spool_lock(folder: Path, patience: float = 0) -> Iterator[bool]:
    """Hold the lock of a spool while the block runs; returns False if another process keeps it for ``patience`` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = exclusive_lock(folder.with_name(f"{folder.name}.lock"), patience)
    except Timeout:
        yield False
        return
    with lock:
        yield True


def is_in_use(folder: Path) -> bool:
    """Return whether another process writes to a spool, and delivers it."""
    with spool_lock(folder) as alone:
        return not alone


def unfinished_spools(folder: Path) -> list[Path]:
    """Return the spools below ``folder`` that are not delivered or do not end with the end of their run, oldest first."""
    return [path for path in _by_age(folder) if not is_complete(path)]


def delivered_spools(folder: Path) -> list[Path]:
    """Return the spools below ``folder`` that are delivered up to the end of their run, oldest first."""
    return [path for path in _by_age(folder) if is_complete(path)]


def is_complete(folder: Path) -> bool:
    """Return whether a spool ends with the end of its run, and is delivered up to there."""
    try:
        offset = read_record(Sent, folder / "sent.json").offset
        return (folder / "journal.jsonl").stat().st_size == offset and end_status(folder) is not None
    except (OSError, ValueError):
        return False


def _by_age(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob("*/journal.jsonl"), key=lambda path: path.stat().st_mtime)]


def end_status(folder: Path) -> str | None:
    """Return the status that a spool's run ended with; None if it has not ended."""
    line, _ = next(last_lines(folder / "journal.jsonl"), (b"", 0))
    entry = read_entry(line) if line.endswith(b"\n") else None
    return str(entry["status"]) if entry is not None and entry["entry"] == "finish" else None
