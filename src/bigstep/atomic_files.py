"""Atomic writes: a temporary file in the same folder is written, flushed to disk and renamed."""

import csv
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

import psutil
from pydantic import TypeAdapter, ValidationError

from bigstep.errors import ProjectError

__all__ = [
    "check_writable",
    "csv_writer",
    "parse_json",
    "read_json",
    "read_metrics",
    "read_record",
    "sha256",
    "sync",
    "whole_file",
    "whole_folder",
    "write_csv",
    "write_json",
    "write_metrics",
]

T = TypeVar("T")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder to write to; it replaces ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new, empty folder next to ``path`` to fill; it replaces ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.mkdir()
    try:
        yield beside
        if path.exists():
            shutil.rmtree(path)
        beside.replace(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Delete unfinished folders of processes that no longer exist."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        number = left.name.split(".")[-2]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Check that a folder can be written to, before hours of work that end there.

    Raises:
        ProjectError: the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}.tmp"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ProjectError(f"cannot write to {folder}: {error.strerror}; free disk space or fix its permissions") from None


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(content: Any, path: Path) -> None:
    """Write JSON atomically, with keys in the given order; a number that is not finite, which JSON has not, becomes null."""
    with whole_file(path) as beside:
        beside.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_metrics(metrics: Mapping[str, float], path: Path) -> None:
    """Write metrics as JSON atomically, as :func:`read_metrics` reads them."""
    write_json(dict(metrics), path)


def read_metrics(path: Path) -> dict[str, float]:
    """Read what :func:`write_metrics` wrote; null is NaN.

    Raises:
        OSError, ValueError: as :func:`read_json`.
    """
    return {name: math.nan if value is None else value for name, value in read_json(path).items()}


def write_csv(header: Sequence[str], rows: Iterable[Iterable[Any]], path: Path) -> None:
    """Write a table atomically; what UTF-8 cannot hold, as a file's name may, is escaped."""
    with whole_file(path) as beside, beside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv_writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def csv_writer(file: TextIO) -> Any:
    """Return a writer of rows, each ended by a line feed.

    A cell with a carriage return, as a file's name may have, is quoted: before version 3.13 Python does so only where the end
    of a line has one, and does not read what it wrote otherwise.
    """
    return csv.writer(_LineFeeds(file), lineterminator="\r\n")


class _LineFeeds:
    """Writes rows that end in a carriage return and a line feed without the former."""

    def __init__(self, file: TextIO) -> None:
        self._write = file.write

    def write(self, row: str) -> int:
        return self._write(row.removesuffix("\r\n") + "\n")


def read_record(kind: type[T], path: Path) -> T:
    """Read a dataclass from JSON written by :func:`write_json`, and validate every field.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not valid JSON, or does not match the dataclass.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        OSError, ValueError: the file cannot be read, or is not valid JSON.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; text that is nested too deeply for Python's parser is invalid, too.

    Raises:
        ValueError: it is not valid JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
