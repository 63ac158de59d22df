"""Image files of every kind that `prepare` must take, and of every kind that it must refuse."""

import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def encode(pixels: np.ndarray, kind: str) -> bytes:
    image = Image.fromarray(pixels.squeeze() if pixels.shape[-1] == 1 else pixels)
    with BytesIO() as file:
        image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
        return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header promises pixels that are not there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _cut(pixels: np.ndarray, number: int) -> bytes:
    content = encode(pixels, "PNG" if number % 2 else "JPEG")
    return content[: len(content) // 2]


def _header(pixels: np.ndarray, number: int) -> bytes:
    return encode(pixels, "PNG" if number % 2 else "JPEG")[:24]


DAMAGED: dict[str, Callable[[np.ndarray, int], bytes]] = {
    "empty": lambda _pixels, _number: b"",
    "text": lambda _pixels, number: f"not an image {number}\n".encode(),
    "html": lambda _pixels, _number: b"<!doctype html><html><body>404 Not Found</body></html>",
    "cut": _cut,
    "header": _header,
    "random": lambda _pixels, number: np.random.default_rng(number).bytes(500),
    "bomb": lambda _pixels, number: png_header(50_000, 50_000 + number),
    "eps-svg": lambda _pixels, number: (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
        if number % 2
        else b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    ),
}


def add_damaged(folder: Path, pixels: np.ndarray, count: int = 4) -> list[Path]:
    """Add ``count`` of each kind, and as many link loops and pipes, under image names."""
    made = []
    for kind, content in DAMAGED.items():
        for number in range(count):
            path = folder / f"bad-{kind}-{number}.{'png' if number % 2 else 'jpg'}"
            path.write_bytes(content(pixels, number))
            made.append(path)
    for number in range(count):
        loop, pipe = folder / f"bad-loop-{number}.png", folder / f"bad-pipe-{number}.png"
        loop.symlink_to(loop.name)
        os.mkfifo(pipe)
        made += [loop, pipe]
    return made
