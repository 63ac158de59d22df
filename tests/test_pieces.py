"""Images of very many chunks, segments or frames: a fixed limit refuses what would take minutes."""

import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigstep.data.decoding import Decoded, Layout, Refusal, decode_file
from conftest import random_images
from images import encode

COLOUR = Layout(16, 3, 64e6)


def _chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


PROFILE = _chunk(b"iCCP", b"a\0\0" + zlib.compress(b"x" * 1_000_000, 9))
PHOTO = encode(random_images(1, 16, 3)[0], "JPEG")
DRAWING = encode(random_images(1, 16, 3)[0], "PNG")


@pytest.mark.parametrize(
    ("content", "start", "piece", "allowed"),
    [
        (DRAWING, 33, _chunk(b"tEXt", b"a\0b"), 50_000),
        (DRAWING, 33, _chunk(b"IDAT"), 50_000),
        (DRAWING, len(DRAWING) - 12, _chunk(b"prVt"), 50_000),
        (DRAWING, 33, PROFILE, 50),
        (PHOTO, 2, b"\xff\xfe\0\2", 20_000),
        (PHOTO, 2, b"\xff", 50_000),
        (PHOTO, 2, b"\xff\xd0", 20_000),
        (PHOTO, 2, b"\xff\x00", 20_000),
        (PHOTO, len(PHOTO) - 2, b"\xff\xfe\0\2", 50_000),
    ],
    ids=["text", "data", "behind", "profile", "comment", "fill", "restart", "escaped", "in the scan"],
)
def test_an_image_of_very_many_pieces_is_refused_by_name(
    content: bytes, start: int, piece: bytes, allowed: int, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    path.write_bytes(content[:start] + piece * allowed + content[start:])
    assert isinstance(decode_file(path, COLOUR), Decoded)
    path.write_bytes(content[:start] + piece * 200_000 + content[start:])
    started = time.process_time()
    refusal = decode_file(path, COLOUR)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "more than 100000 chunks or segments"
    assert time.process_time() - started < 2  # the profiles alone would take a minute


def test_an_end_of_the_image_before_the_first_scan_ends_no_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(PHOTO[:2] + b"\xff\xd9" + b"\xff\xfe\0\2" * 200_000 + PHOTO[2:])
    assert getattr(decode_file(path, COLOUR), "reason", "") == "more than 100000 chunks or segments"


def test_what_is_behind_the_end_of_a_jpeg_is_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(PHOTO + b"\xff\xfe\0\2" * 200_000)
    assert isinstance(decode_file(path, COLOUR), Decoded)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_thousands_of_frames_the_first_is_decoded(kind: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(pixels) for pixels in random_images(2000, 16, 3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / f"a.{kind.lower()}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    started = time.process_time()
    found = decode_file(path, COLOUR)
    assert isinstance(found, Decoded)
    assert np.array_equal(found.pixels, random_images(2000, 16, 3)[0])
    assert time.process_time() - started < 0.5
