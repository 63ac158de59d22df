"""A limit on the size of a listing, which is kept in memory: a link can lead to a whole disk."""

from collections import Counter
from pathlib import Path

from bigstep.errors import DataError

__all__ = ["MAX_ENTRIES", "EntryCount"]

MAX_ENTRIES = 20_000_000  # ImageNet-21k has 14 million files; a listing costs about 300 bytes an entry


class EntryCount:
    """Counts files and folders by the folder, or the link to one, that led to them."""

    def __init__(self, limit: int = MAX_ENTRIES) -> None:
        """Count up to ``limit``."""
        self.limit = self.left = limit
        self._counts: Counter[Path] = Counter()

    def add(self, home: Path) -> None:
        """Count one more entry below ``home``.

        Raises:
            DataError: there are more than the limit; it names the folder that led to most of them.
        """
        self._counts[home] += 1
        self.left -= 1
        if self.left < 0:
            (largest, count), *_ = self._counts.most_common(1)
            kind = "the link " if largest.is_symlink() else ""
            raise DataError(
                f"data.root: expected at most {self.limit} files and folders, links followed, got more, {count} of them "
                f"below {kind}{str(largest)!r}; remove what does not belong to a class"
            )
