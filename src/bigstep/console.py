"""Console output: a progress bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bigstep.closed_output import drop_output

__all__ = ["LiveLine", "console", "follow", "format_bytes", "format_score", "format_seconds", "live_line", "show_log"]

T = TypeVar("T")
SMALL_SCORE = 1e-3  # smaller ones have too few digits after the point


@final
class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Continue: a training is not lost because the reader of its lines has ended (`| head`)."""
        drop_output()


console = _Console(highlight=False, markup=False, soft_wrap=True)  # names from the data are no markup


@final
class ConsoleHandler(logging.Handler):
    """Prints each log message as a line of the console."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        console.print(record.getMessage())


def show_log() -> None:
    """Show on the console what the library logs from level INFO on; for entry points. A second call changes nothing."""
    logger = logging.getLogger("bigstep")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())
        logger.propagate = False  # a library that sets up the root logger would print each line again


@dataclass
class LiveLine:
    """A progress bar with a text; does nothing if there is no terminal."""

    progress: Progress | None
    task: TaskID

    def advance(self, amount: int = 1, text: str = "") -> None:
        """Move the bar, and change its text."""
        if self.progress is not None:
            self.progress.update(self.task, advance=amount, text=text)


@contextmanager
def live_line(title: str, total: int) -> Iterator[LiveLine]:
    """Show a progress bar with ``total`` steps while the block runs."""
    if not console.is_terminal:
        yield LiveLine(None, TaskID(0))
        return
    columns = (
        TextColumn(title),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield LiveLine(progress, progress.add_task(title, total=total, text=""))


def follow(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Show progress over ``items``: a bar on a terminal, a line every ten seconds elsewhere."""
    last = time.monotonic()
    with live_line(title, total) as line:
        for count, item in enumerate(items, 1):
            yield item
            line.advance()
            if line.progress is None and time.monotonic() - last > 10:
                last = time.monotonic()
                console.print(f"{title} {count:,} of {total:,}")
                sys.stdout.flush()


def format_bytes(count: float) -> str:
    """Write bytes with a binary unit: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def format_score(value: float, sign: str = "") -> str:
    """Write a score with four digits: ``0.9876``, or of a small unit ``1.000e-06``, which YAML reads as a number.

    With ``+`` as ``sign`` positive ones have it, too.
    """
    return f"{value:{sign}#.4g}" if 0 < abs(value) < SMALL_SCORE else f"{value:{sign}.4f}"


def format_seconds(seconds: float) -> str:
    """Write a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
