"""Blocks of a store are checked as they are read: one that changed is found with the first sample that it holds."""

import json
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigstep.data.manifest import Manifest
from bigstep.data.mapped_array import MappedArray, digest_blocks
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.errors import DataError
from bigstep.training.training_batches import TrainingBatches
from building import quick_train

CHANGED = "expected what prepare wrote, got other pixels"


def _flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def store(digits: Store, tmp_path: Path) -> Store:
    shutil.copytree(digits.paths.root, tmp_path / "store")
    return Store(tmp_path / "store")


def _make_former(root: Path) -> None:
    """Turn a store into one of format 1."""
    content = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    for name in ("block_bytes", "checksums"):
        del content[name]
    (root / "manifest.json").write_text(json.dumps({**content, "format": 1, "record": ""}), encoding="utf-8")
    record = Manifest.read(root / "manifest.json").summed()
    (root / "manifest.json").write_text(json.dumps({**content, "format": 1, "record": record}), encoding="utf-8")
    (root / "images.blocks").unlink()


@settings(max_examples=60)
@given(data=st.data(), sample=st.integers(1, 40), count=st.integers(1, 30), block=st.integers(1, 100))
def test_a_changed_byte_is_found_when_its_block_is_read(
    data: st.DataObject, sample: int, count: int, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "samples.u8"
    content = np.random.default_rng(0).integers(0, 256, (count, sample), dtype=np.uint8)
    path.write_bytes(content.tobytes())
    digests = digest_blocks(path, block)
    position = data.draw(st.integers(0, count * sample - 1))
    index = data.draw(st.integers(0, count - 1))
    kind = data.draw(st.sampled_from(["number", "slice", "array", "behind"]))
    _flip(path, position)
    asked = {"number": index, "slice": slice(index, index + 1), "array": np.array([index]), "behind": np.array([index - count])}
    touched = range(index * sample // block, ((index + 1) * sample - 1) // block + 1)
    array = MappedArray(path, content.shape, digests, block)
    if position // block in touched:
        with pytest.raises(DataError, match=CHANGED) as error:
            array[asked[kind]]
        assert "\n" not in str(error.value)
    else:
        assert (array[asked[kind]] == content[index]).all()
    with pytest.raises(DataError, match=CHANGED):
        array.check_all()


def test_a_store_is_opened_without_its_pixels_and_refuses_a_changed_block(store: Store) -> None:
    _flip(store.paths.images, 100)
    opened = Store(store.paths.root)
    opened.verify_former()
    with pytest.raises(DataError, match=r"samples 0 to 1796; delete the folder and run `bigstep prepare --force`"):
        opened.images[1]
    with pytest.raises(DataError, match=CHANGED):
        Store(store.paths.root).verify()


@pytest.mark.parametrize("name", ["images.blocks", "labels.npy", "parts.npy"])
def test_what_is_read_at_the_start_is_checked_there(name: str, store: Store) -> None:
    _flip(store.paths.root / name, (store.paths.root / name).stat().st_size - 1)
    with pytest.raises(DataError, match=f"{name} does not match its checksum"):
        Store(store.paths.root)


def test_verify_checks_the_lists_too(store: Store) -> None:
    store.verify()
    _flip(store.paths.samples, 200)
    with pytest.raises(DataError, match=r"samples\.csv does not match its checksum"):
        Store(store.paths.root).verify()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_stops_at_a_changed_block(workers: int, store: Store) -> None:
    _flip(store.paths.images, 100)
    transforms = "shift" if workers == 0 else [{"RandomHorizontalFlip": {"p": 0.5}}]
    batches = TrainingBatches(Store(store.paths.root), quick_train(augmentation=transforms), 64, workers)
    with pytest.raises(DataError, match=f"^{store.paths.root}: {CHANGED}") as error:
        next(batches.epoch(0))
    assert "\n" not in str(error.value)


def test_a_store_of_format_1_is_read_whole_and_used(store: Store, digits: Store) -> None:
    _make_former(store.paths.root)
    former = Store(store.paths.root)
    former.verify_former()
    former.verify()
    chosen = former.indices(Split.TEST)
    assert (former.images[chosen] == digits.images[chosen]).all()
    assert former.manifest.digest == digits.manifest.digest
    _flip(store.paths.images, 100)
    with pytest.raises(DataError, match=r"got other pixels or labels in the (train|validation|test) split"):
        Store(store.paths.root).verify_former()


def test_the_process_does_not_grow_with_what_it_reads(tmp_path: Path) -> None:
    size, samples = 2**28, 2**12
    with (tmp_path / "images.u8").open("wb") as file:
        file.truncate(size)
    digests = digest_blocks(tmp_path / "images.u8")
    array = MappedArray(tmp_path / "images.u8", (samples, size // samples), digests)
    before = psutil.Process().memory_info().rss
    for start in range(0, samples, 64):
        array[start : start + 64].max()
    assert psutil.Process().memory_info().rss - before < size / 2
