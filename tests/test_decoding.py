from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bigstep.data.decoding import Decoded, Layout, Refusal, decode_file, resize_array
from bigstep.data.parallel_decoding import decode_files
from bigstep.data.resize import centre_resize
from conftest import random_images
from images import add_damaged, encode

COLOUR, GREY = Layout(16, 3, 64e6), Layout(16, 1, 64e6)
PIXELS = random_images(1, 16, 3)[0]


def _decoded(path: Path, layout: Layout) -> np.ndarray:
    result = decode_file(path, layout)
    assert isinstance(result, Decoded), result
    assert result.pixels.shape == (layout.size, layout.size, layout.channels)
    assert result.pixels.dtype == np.uint8
    return result.pixels


def _saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_pixels_of_the_wanted_size_come_back_as_they_are(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.png", Image.fromarray(PIXELS))
    assert (_decoded(path, COLOUR) == PIXELS).all()
    path = _saved(tmp_path / "a.webp", Image.fromarray(PIXELS), lossless=True)
    assert (_decoded(path, COLOUR) == PIXELS).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_format_is_in_the_content_not_in_the_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image.dat"
    path.write_bytes(encode(PIXELS, kind))
    assert abs(_decoded(path, COLOUR).astype(int).mean() - PIXELS.mean()) < 10


def test_grey_images_become_three_equal_channels_and_colour_becomes_luma(tmp_path: Path) -> None:
    grey = PIXELS[..., 0]
    path = _saved(tmp_path / "grey.png", Image.fromarray(grey))
    assert (_decoded(path, COLOUR) == grey[..., None]).all()
    path = _saved(tmp_path / "colour.png", Image.fromarray(PIXELS))
    luma = PIXELS @ np.array([0.299, 0.587, 0.114])
    assert abs(_decoded(path, GREY)[..., 0] - luma).max() <= 1


def test_palette_images_show_their_colours(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS // 128 * 255).convert("P", palette=Image.Palette.ADAPTIVE)
    path = _saved(tmp_path / "palette.png", image)
    assert (_decoded(path, COLOUR) == np.asarray(image.convert("RGB"))).all()


def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path) -> None:
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    path = _saved(tmp_path / "deep.png", Image.fromarray(deep))
    assert (_decoded(path, GREY)[..., 0] == np.arange(256).reshape(16, 16)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white_whatever_colour_it_hides(mode: str, tmp_path: Path) -> None:
    image = Image.new(mode, (16, 16), (0,) * (len(mode) - 1) + (0,))
    path = _saved(tmp_path / "clear.png", image)
    assert (_decoded(path, COLOUR) == 255).all()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = _saved(tmp_path / "print.jpg", Image.new("CMYK", (16, 16), (255, 0, 0, 0)))
    red, green, blue = _decoded(path, COLOUR).reshape(-1, 3).mean(axis=0)
    assert red < 50
    assert min(green, blue) > 100


def test_the_exif_orientation_is_obeyed(tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat(np.arange(16, dtype=np.uint8)[:, None] * 16, 16, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by half
    path = _saved(tmp_path / "turned.png", image, exif=exif)
    assert (_decoded(path, GREY)[:, 0, 0] == np.arange(16)[::-1] * 16).all()


def test_every_damaged_file_is_refused_with_its_reason(tmp_path: Path) -> None:
    paths = add_damaged(tmp_path, PIXELS, count=2)
    results = {path.name: decode_file(path, COLOUR) for path in paths}
    assert len(results) == 20
    assert all(isinstance(result, Refusal) for result in results.values()), results
    reasons = {name.split("-")[1]: result.reason for name, result in results.items() if isinstance(result, Refusal)}
    assert reasons["empty"] == "empty: zero bytes"
    assert reasons["bomb"] == "50000 x 50001 pixels, more than 64 megapixels"
    assert reasons["loop"] == "a loop of links"
    assert reasons["pipe"] == "not a regular file: a pipe"
    assert {reasons[kind] for kind in ("text", "html", "random", "eps")} == {"not a JPEG, PNG or WebP image"}
    assert reasons["cut"].startswith("damaged: ")


def test_a_link_to_an_image_is_followed_and_its_target_hashed(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.png", Image.fromarray(PIXELS))
    (tmp_path / "link.png").symlink_to(path)
    direct, linked = decode_file(path, COLOUR), decode_file(tmp_path / "link.png", COLOUR)
    assert isinstance(direct, Decoded)
    assert isinstance(linked, Decoded)
    assert direct.sha256 == linked.sha256


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert isinstance(decode_file(tmp_path, COLOUR), Refusal)
    assert decode_file(tmp_path / "none", COLOUR) == Refusal("unreadable: No such file or directory")


@pytest.mark.parametrize("shape", [(40, 20), (20, 40), (33, 33), (8, 9)])
def test_resizing_crops_the_centre_square(shape: tuple[int, int]) -> None:
    height, width = shape
    side = min(shape)
    pixels = random_images(1, 64, 3)[0][:height, :width]
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    resized = resize_array(pixels, 16)
    assert (resized == resize_array(square, 16)).all()
    reference = np.asarray(Image.fromarray(square).resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert abs(resized - reference).max() <= 1  # Pillow is the reference, to its rounding


def test_resizing_to_the_same_size_changes_nothing() -> None:
    images = torch.from_numpy(random_images(5, 16, 3))
    assert (centre_resize(images, 16).permute(0, 2, 3, 1) == images).all()


def test_workers_give_the_same_results_in_the_same_order(tmp_path: Path) -> None:
    paths = []
    for number, pixels in enumerate(random_images(70, 16, 3)):
        path = tmp_path / f"{number:03}.png"
        path.write_bytes(encode(pixels, "PNG") if number % 7 else b"bad")
        paths.append(path)
    alone = list(decode_files(paths, COLOUR, 0))
    shared = list(decode_files(paths, COLOUR, 2))
    assert [type(result) for result in alone] == [type(result) for result in shared]
    for one, two in zip(alone, shared, strict=True):
        if isinstance(one, Decoded) and isinstance(two, Decoded):
            assert (one.pixels == two.pixels).all()
            assert one.sha256 == two.sha256


def test_a_file_that_kills_the_decoder_is_refused_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers load the sitecustomize below, in which decoding one name ends the process as a crash in a decoder would."""
    (tmp_path / "killer").mkdir()
    (tmp_path / "killer" / "sitecustomize.py").write_text(
        "import os, PIL.Image\n"
        "real = PIL.Image.open\n"
        "def opened(file, *rest, **named):\n"
        "    if file.getvalue().endswith(b'kill'): os.abort()\n"
        "    return real(file, *rest, **named)\n"
        "PIL.Image.open = opened\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "killer"))
    content = encode(PIXELS, "PNG")
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(content + (b"kill" if number == 3 else b""))
    results = list(decode_files(paths, COLOUR, 1))
    assert [isinstance(result, Decoded) for result in results] == [True, True, True, False, True]
    assert results[3] == Refusal("crashes the decoder")


def test_a_bomb_is_refused_without_its_memory(tmp_path: Path) -> None:
    import resource

    with BytesIO() as file:
        Image.new("L", (12_000, 12_000)).save(file, "PNG")
        (tmp_path / "bomb.png").write_bytes(file.getvalue())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert isinstance(decode_file(tmp_path / "bomb.png", COLOUR), Refusal)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB; decoded it would take 140,000


def test_a_progressive_jpeg_of_thousands_of_scans_is_refused_by_name(tmp_path: Path) -> None:
    image = Image.fromarray(random_images(1, 512, 3)[0])
    stream = BytesIO()
    image.save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    last = content.rindex(b"\xff\xda")
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert isinstance(decode_file(path, COLOUR), Decoded)
    path.write_bytes(content + content[last:] * 3000)  # behind the end, as a video that a phone appends
    assert isinstance(decode_file(path, COLOUR), Decoded)
    path.write_bytes(content[:-2] + content[last:-2] * 3000 + content[-2:])
    refusal = decode_file(path, COLOUR)
    assert isinstance(refusal, Refusal)
    assert "scans of 512 x 512 pixels, more than 500 megapixels in all" in refusal.reason
    pair = BytesIO()
    image.save(pair, "MPO", save_all=True, append_images=[image])
    index = pair.getvalue()[2 : pair.getvalue().index(b"\xff\xdb")]  # by which Pillow takes a JPEG for several
    path.write_bytes(content[:2] + index + content[2:-2] + content[last:-2] * 3000 + content[-2:])
    assert isinstance(decode_file(path, COLOUR), Refusal)
