"""Decode one image file into pixels, or return why it cannot be decoded. Files are untrusted input."""

import errno
import hashlib
import io
import os
import stat
import threading
import warnings
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from bigstep.data.pieces import MAX_PIECES, count_pieces

__all__ = ["Decoded", "Layout", "Refusal", "decode_file", "image_pixels", "resize_array", "with_channels"]

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_FILE_BYTES = 1 << 28  # a compressed image above 256 MiB is no photograph

MAX_SCANS = 32  # encoders write about ten
MAX_SCANNED_PIXELS = 500e6

_pillow_limit = threading.Lock()  # Pillow's limit is one for the process


@dataclass(frozen=True)
class Layout:
    """How decoded pixels are laid out: ``size`` pixels a side (None: as they are), 1 or 3 channels; more pixels are refused.

    Samples that are no images have a ``shape`` and a ``dtype`` in place of these.
    """

    size: int | None
    channels: int
    max_pixels: float
    shape: tuple[int, ...] = ()
    dtype: str = "uint8"


@dataclass(frozen=True)
class Decoded:
    """Pixels of one file: uint8 of shape ``(size, size, channels)`` (or the numbers of an array), and the file's SHA-256."""

    pixels: NDArray[Any]
    sha256: str


@dataclass(frozen=True)
class Refusal:
    """Why a file was refused, and its SHA-256 if it could be read."""

    reason: str
    sha256: str = ""


def decode_file(path: Path, layout: Layout) -> Decoded | Refusal:
    """Read, hash and decode one file; never raises for what the file holds."""
    content = _read(path)
    if isinstance(content, Refusal):
        return content
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what matters is whether the pixels decode
            pixels = _decode(content, layout)
    except UnidentifiedImageError:
        return Refusal("not a JPEG, PNG or WebP image", sha256)
    except Exception as error:  # noqa: BLE001 # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        return Refusal(f"damaged: {_reason(error)}", sha256)
    return Refusal(pixels, sha256) if isinstance(pixels, str) else Decoded(pixels, sha256)


def resize_array(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Centre-crop and resize ``(height, width, channels)`` to ``(size, size, channels)``."""
    if pixels.shape[:2] == (size, size):
        return pixels
    import torch  # only to resize: it takes seconds

    from bigstep.data.resize import centre_resize

    if parent_process() is not None:
        torch.set_num_threads(1)  # as many processes decode as there are cores
    images = torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(0)
    return np.ascontiguousarray(centre_resize(images, size)[0].permute(1, 2, 0).numpy())


def with_channels(image: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Turn ``(height, width, 1 or 3)`` into ``(height, width, channels)``: grey is repeated, colour becomes its luma."""
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    luma = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's mode L
    grey: NDArray[np.uint8] = np.rint(luma).astype(np.uint8)[:, :, None]
    return grey


def image_pixels(image: Any, channels: int | None = None) -> NDArray[np.uint8]:
    """Turn an image in memory into pixels, uint8 of shape ``(height, width, channels)``.

    Args:
        image: a PIL image, an array ``(height, width)`` or ``(height, width, 1 or 3)``, or a tensor ``(height, width)`` or
            ``(1 or 3, height, width)``; integers from 0 to 255, or fractions from 0 to 1. A PIL image of mode I or F is
            taken as its array, of mode I;16 the upper eight bits are kept.
        channels: 1 or 3; None: those of the image.

    Raises:
        ValueError: it is another object, or a number is out of range; the text says which.
    """
    if isinstance(image, Image.Image) and image.mode not in ("I", "F"):
        return _to_array(image, channels or (1 if image.mode in ("1", "L") or image.mode.startswith("I;16") else 3)).copy()
    if hasattr(image, "detach"):  # a tensor; importing torch to ask takes seconds
        array = np.asarray(image.detach().cpu())
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    else:
        array = np.asarray(image)
    array = array[:, :, None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3) or array.dtype.kind not in "buif" or not array.size:
        raise ValueError(
            "an image: expected a PIL image, an array (height, width[, 1 or 3]) or a tensor ([1 or 3, ]height, width) of "
            f"numbers, got {type(image).__name__} of shape {tuple(getattr(image, 'shape', ()))}"
        )
    pixels = _as_bytes(array)
    return pixels if channels is None else with_channels(pixels, channels)


def _as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    scale, limit = (255.0, 1) if array.dtype.kind in "fb" else (1, 255)
    if not (array >= 0).all() or not (array <= limit).all():
        raise ValueError(
            f"an image: expected {array.dtype} from 0 to {limit}, got {array.min()} to {array.max()}; "
            "return integers from 0 to 255, or fractions from 0 to 1 (bigstep normalises the pixels itself)"
        )
    pixels: NDArray[np.uint8] = np.rint(array * scale).astype(np.uint8)
    return pixels


def _read(path: Path) -> bytes | Refusal:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return Refusal(f"not a regular file: {_kind(status.st_mode)}")
        if status.st_size == 0:
            return Refusal("empty: zero bytes")
        if status.st_size > MAX_FILE_BYTES:
            return Refusal(f"{status.st_size} bytes, more than {MAX_FILE_BYTES}")
        with open(path, "rb", opener=_open_unblocked) as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        loop = error.errno == errno.ELOOP
        return Refusal("a loop of links" if loop else f"unreadable: {error.strerror}")


def _open_unblocked(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # should the file have become a pipe since


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "a folder or something else")


def _decode(content: bytes, layout: Layout) -> NDArray[np.uint8] | str:
    pieces, scans = count_pieces(content)
    if pieces > MAX_PIECES:
        return f"more than {MAX_PIECES} chunks or segments"
    with _open_of_any_size(content) as image:
        width, height = image.size
        if width * height > layout.max_pixels:
            return f"{width} x {height} pixels, more than {layout.max_pixels / 1e6:g} megapixels"
        if scans > MAX_SCANS and scans * width * height > MAX_SCANNED_PIXELS:
            return f"{scans} scans of {width} x {height} pixels, more than {MAX_SCANNED_PIXELS / 1e6:g} megapixels in all"
        image.load()
        pixels = _to_array(image, layout.channels)
        return pixels if layout.size is None else resize_array(pixels, layout.size)


def _open_of_any_size(content: bytes) -> Image.Image:
    """Read the header. Pillow's own limit must be off for it: ours is checked before the pixels are decoded."""
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(content), formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _to_array(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits a pixel: keep the upper eight
        upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    array = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
    return array[:, :, None] if channels == 1 else array


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return type(error).__name__ if "0x" in text else text  # an address in memory would differ from run to run
