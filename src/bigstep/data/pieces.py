"""How many pieces an encoded image has: decoders take microseconds for each, however few bytes it holds."""

import re
from typing import NamedTuple

__all__ = ["MAX_PIECES", "Pieces", "count_pieces"]

MAX_PIECES = 100_000  # a PNG of 256 MiB in libpng's chunks of 8 KiB has a third of it
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")  # those left out have no length
PROFILE_WEIGHT = 1000  # a chunk iCCP may unpack to a megabyte, and each is unpacked


class Pieces(NamedTuple):
    """Pieces of a file, counted until they are more than :data:`MAX_PIECES`, and the scans of a JPEG among them."""

    number: int
    scans: int


def count_pieces(content: bytes) -> Pieces:
    """Count the segments of a JPEG or the chunks of a PNG; other formats are read in C, and have one."""
    if content.startswith(JPEG):
        return _count_segments(content)
    return Pieces(_count_chunks(content), 1) if content.startswith(PNG) else Pieces(1, 1)


def _count_segments(content: bytes) -> Pieces:
    """Count up to the end of the image: what cameras append behind it does not count.

    Before the first scan Pillow reads byte after byte what belongs to no segment, and passes over an end of the image.
    """
    count, scans, position = 0, 0, 2
    while count <= MAX_PIECES:
        found = MARKER.search(content, position)
        if found is None:
            return Pieces(count + (0 if scans else len(content) - position), scans)
        count += 1 if scans else found.start(1) - position
        position = found.end()
        if found[1] != b"\xd9":
            scans += found[1] == b"\xda"
            position += max(2, int.from_bytes(content[position : position + 2]))
        elif scans:
            break
    return Pieces(count, scans)


def _count_chunks(content: bytes) -> int:
    count, position = 0, len(PNG)
    while position < len(content) and count <= MAX_PIECES:
        kind = content[position + 4 : position + 8]
        count += PROFILE_WEIGHT if kind == b"iCCP" else 1
        position += 12 + int.from_bytes(content[position : position + 4])
    return count
