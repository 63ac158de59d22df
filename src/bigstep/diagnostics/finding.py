"""What `bigstep doctor` finds: problems, each with its repair if there is one."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Problem", "Quarantine", "remove"]

Repair = Callable[[], str]


@dataclass(frozen=True)
class Problem:
    """A problem, and how to repair it: a function that returns what it did, or None if only a person can."""

    text: str
    repair: Repair | None


@dataclass(frozen=True)
class Quarantine:
    """Where what does not read is kept."""

    folder: Path

    def move(self, path: Path) -> str:
        """Move a file there, and say so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{path.name}"
        shutil.move(path, target)
        return f"moved to {target}"


def remove(path: Path) -> str:
    """Delete a file or a folder, and say so."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return "removed"
