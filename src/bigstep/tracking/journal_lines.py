"""The last lines of a journal, read from its end: the time does not depend on its length."""

from collections.abc import Iterator
from pathlib import Path

__all__ = ["last_lines"]

BLOCK_BYTES = 2**16


def last_lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the lines of a file from the last to the first, each with the offset at which it starts; the last may be torn."""
    with path.open("rb") as file:
        start = file.seek(0, 2)
        pieces: list[bytes] = []  # of a line whose start has not been found, the last first
        while start:
            size = min(BLOCK_BYTES, start)
            start -= size
            file.seek(start)
            block = file.read(size)
            while (cut := block.rfind(b"\n", 0, len(block) if pieces else len(block) - 1)) >= 0:
                yield block[cut + 1 :] + b"".join(reversed(pieces)), start + cut + 1
                block, pieces = block[: cut + 1], []
            pieces.append(block)
        if pieces:
            yield b"".join(reversed(pieces)), 0
