import gzip
import hashlib
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from bigstep.config.data import DataConfig
from bigstep.data.manifest import Manifest
from bigstep.data.mapped_array import MappedArray
from bigstep.data.sources import Source, open_source
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.data.store_writer import prepare_store
from bigstep.errors import DataError
from conftest import random_images, read_rows
from images import add_damaged, encode

FASHION = Path("/usr/share/datasets/fashion-mnist")


def _prepare(data: DataConfig, root: Path, folder: Path, workers: int = 0) -> Store:
    folder.mkdir()
    source: Source = open_source(data, root, workers)
    assert sum(1 for _ in prepare_store(source, data, folder)) == len(source)
    return Store(folder)


def _folder(root: Path, classes: int = 2, count: int = 10) -> Path:
    for label in range(classes):
        (root / f"class{label}").mkdir(parents=True)
        for number, pixels in enumerate(random_images(count, 12, 3, seed=label)):
            kind = "PNG" if number % 2 else "JPEG"
            (root / f"class{label}" / f"{number}.{kind.lower()}").write_bytes(encode(pixels, kind))
    return root


def _image_folder(**values: object) -> DataConfig:
    return DataConfig.model_validate({"source": "image-folder", "image_size": 8, **values})


def test_digits_are_all_there_and_split(digits: Store) -> None:
    manifest = digits.manifest
    assert manifest.num_samples == 1797
    assert [len(digits.indices(part)) for part in range(3)] == [1222, 216, 359]
    assert manifest.classes == tuple("0123456789")
    assert manifest.files[0].name == "digits.csv.gz"
    assert len(manifest.files[0].sha256) == 64
    training = digits.images[digits.indices(Split.TRAIN)].astype(np.float64) / 255
    np.testing.assert_allclose(manifest.mean, [training.mean()], atol=1e-8)
    np.testing.assert_allclose(manifest.std, [training.std()], atol=1e-8)


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    root = _folder(tmp_path / "images")
    add_damaged(root / "class0", random_images(1, 8, 3)[0], count=1)
    stores = [_prepare(_image_folder(), root, tmp_path / name, workers) for name, workers in (("one", 0), ("two", 2))]
    for path in stores[0].paths.root.iterdir():
        assert path.read_bytes() == (stores[1].paths.root / path.name).read_bytes(), path.name


def test_the_store_is_mapped_and_says_where_each_sample_came_from(tmp_path: Path) -> None:
    root = _folder(tmp_path / "images")
    store = _prepare(_image_folder(), root, tmp_path / "store")
    assert isinstance(store.images, MappedArray)
    assert not store.images[:2].flags.owndata
    assert store.images.shape == (20, 8, 8, 3)
    rows = read_rows(store.paths.samples)
    for index, row in enumerate(rows):
        assert row["sha256"] == hashlib.sha256((root / row["name"]).read_bytes()).hexdigest()
        assert row["class"] == store.manifest.classes[store.labels[index]]
        assert row["part"] == ("train", "validation", "test")[store.parts[index]]
    assert store.names() == [row["name"] for row in rows]
    assert store.manifest.files[0].sha256 == hashlib.sha256(store.paths.samples.read_bytes()).hexdigest()


def test_forty_damaged_files_are_skipped_and_listed(tmp_path: Path) -> None:
    root = _folder(tmp_path / "images")
    bad = add_damaged(root / "class1", random_images(1, 8, 3)[0])
    assert len(bad) == 40
    store = _prepare(_image_folder(), root, tmp_path / "store")
    skipped = {row["name"]: row["reason"] for row in read_rows(store.paths.skipped)}
    assert set(skipped) == {path.relative_to(root).as_posix() for path in bad}
    assert all(skipped.values())
    assert store.manifest.num_refused == sum(store.manifest.refused.values()) == 40
    assert store.manifest.num_samples == 20


def test_names_with_the_end_of_a_line_in_them_are_read_back(tmp_path: Path) -> None:
    root = _folder(tmp_path / "images", count=5)
    names = [f"class0/1{letter}0.png" for letter in ("\r", "\n", "\r\n", '"', ",")]
    for name in names:
        (root / name).write_bytes((root / "class0" / "1.png").read_bytes())
    (root / "class0" / "\r.png").touch()
    store = _prepare(_image_folder(), root, tmp_path / "store")
    assert set(names) < set(store.names())
    assert [row["name"] for row in read_rows(store.paths.skipped)] == ["class0/\r.png"]


def test_a_damaged_file_is_fatal_where_that_is_asked_for(tmp_path: Path) -> None:
    root = _folder(tmp_path / "images")
    (root / "class0" / "zero.png").touch()
    with pytest.raises(DataError, match=r"got 'class0/zero.png': empty: zero bytes; remove the file"):
        _prepare(_image_folder(on_bad_image="fail"), root, tmp_path / "store")


def test_a_class_of_damaged_files_only_is_one_line(tmp_path: Path) -> None:
    root = _folder(tmp_path / "images")
    (root / "class2").mkdir()
    add_damaged(root / "class2", random_images(1, 8, 3)[0])
    with pytest.raises(DataError, match="class 'class2': expected at least one readable sample"):
        _prepare(_image_folder(), root, tmp_path / "store")


def test_imagenet_normalisation_and_channels_are_taken_as_asked(tmp_path: Path) -> None:
    root = _folder(tmp_path / "images")
    store = _prepare(_image_folder(pixel_statistics="imagenet"), root, tmp_path / "colour")
    assert store.manifest.mean == (0.485, 0.456, 0.406)
    grey = _prepare(_image_folder(pixel_statistics="imagenet", channels=1), root, tmp_path / "grey")
    assert grey.images.shape == (20, 8, 8, 1)
    np.testing.assert_allclose(grey.manifest.mean, [0.458971], atol=1e-6)
    repeated = _prepare(DataConfig(channels=3), tmp_path, tmp_path / "digits")
    assert repeated.images.shape == (1797, 8, 8, 3)
    assert (repeated.images[:][..., 0] == repeated.images[:][..., 2]).all()


@pytest.mark.parametrize("is_constant", [False, True])
def test_a_constant_channel_is_not_divided_by_zero_and_constant_images_are_refused(
    tmp_path: Path, *, is_constant: bool
) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4, :, 0] = 0 if is_constant else 255
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "images" / label / f"{number}.png").write_bytes(encode(image, "PNG"))
    if is_constant:
        with pytest.raises(DataError, match="expected images that differ, got 0 of 255 in all pixels"):
            _prepare(_image_folder(), tmp_path / "images", tmp_path / "store")
    else:
        assert _prepare(_image_folder(), tmp_path / "images", tmp_path / "store").manifest.std == (0.5, 1.0, 1.0)


def test_the_split_seed_changes_the_split_and_nothing_else(tmp_path: Path) -> None:
    one, two = (_prepare(DataConfig(split_seed=seed), tmp_path, tmp_path / str(seed)) for seed in (0, 1))
    assert (one.images[:] == two.images[:]).all()
    assert (one.parts != two.parts).any()
    assert one.manifest.digests["validation"] != two.manifest.digests["validation"]


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _write_fashion(root: Path, *, compressed: bool) -> None:
    root.mkdir(parents=True)
    for part, count in (("train", 60), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        arrays = {"images-idx3-ubyte": random_images(count, 28, 1)[..., 0], "labels-idx1-ubyte": labels}
        for name, array in arrays.items():
            content = _idx(array)
            path = root / f"{part}-{name}{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(content) if compressed else content)


@pytest.mark.parametrize(("place", "compressed"), [(".", True), ("FashionMNIST/raw", False), ("raw", True)])
def test_fashion_mnist_is_found_where_debian_and_torchvision_put_it(place: str, compressed: bool, tmp_path: Path) -> None:
    _write_fashion(tmp_path / "source" / place, compressed=compressed)
    store = _prepare(DataConfig(source="fashion-mnist"), tmp_path / "source", tmp_path / "store")
    assert store.images.shape == (80, 28, 28, 1)
    assert (store.images[:60] == random_images(60, 28, 1)).all()
    assert (store.parts[60:] == 2).all()
    assert (store.parts[:60] != 2).all()
    assert store.manifest.classes[9] == "Ankle boot"
    assert len(store.manifest.files) == 4


def test_a_torn_idx_file_is_one_line(tmp_path: Path) -> None:
    _write_fashion(tmp_path / "source", compressed=True)
    path = tmp_path / "source" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="expected an IDX file"):
        open_source(DataConfig(source="fashion-mnist"), tmp_path / "source", 0)


def test_missing_sources_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.download=true to download them, or data.root="):
        open_source(DataConfig(source="fashion-mnist"), tmp_path, 0)
    with pytest.raises(DataError, match=r"Set data.download=true"):
        open_source(DataConfig(source="cifar10"), tmp_path, 0)


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist: apt install dataset-fashion-mnist")
def test_debians_fashion_mnist_is_whole(tmp_path: Path) -> None:
    store = _prepare(DataConfig(source="fashion-mnist"), FASHION, tmp_path / "store")
    assert np.bincount(store.labels).tolist() == [7000] * 10
    assert len(store.indices(Split.TEST)) == 10_000


def test_cifar10_is_read_as_torchvision_lays_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader is torchvision's own; only its list of MD5 sums is that of the small files made here."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for kind, names in (("train_list", CIFAR10.train_list), ("test_list", CIFAR10.test_list)):
        for number, (name, _) in enumerate(names):
            data = random_images(20, 32, 3, seed=number).transpose(0, 3, 1, 2).reshape(20, -1)
            content = pickle.dumps({"data": data, "labels": [index % 10 for index in range(20)]})
            (folder / name).write_bytes(content)
            lists[kind].append([name, hashlib.md5(content).hexdigest()])
    meta = pickle.dumps({"label_names": [f"name{index}" for index in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()})
    for kind, files in lists.items():
        monkeypatch.setattr(CIFAR10, kind, files)
    store = _prepare(DataConfig(source="cifar10"), tmp_path, tmp_path / "store")
    assert store.images.shape == (120, 32, 32, 3)
    assert (store.images[:20] == random_images(20, 32, 3, seed=0)).all()
    assert (store.parts == 2).sum() == 20
    (folder / "test_batch").write_bytes(b"cposix\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(DataError):
        open_source(DataConfig(source="cifar10"), tmp_path, 0)
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda store: store.paths.manifest.write_text("{}"),
        lambda store: store.paths.manifest.write_text("["),
        lambda store: store.paths.manifest.unlink(),
        lambda store: store.paths.images.write_bytes(b"x"),
        lambda store: store.paths.labels.write_bytes(b"x"),
        lambda store: store.paths.parts.unlink(),
        lambda store: store.paths.manifest.write_text(
            json.dumps({**json.loads(store.paths.manifest.read_text()), "size": "8"})
        ),
        lambda store: store.paths.manifest.write_text(
            json.dumps({**json.loads(store.paths.manifest.read_text()), "format": 3})
        ),
    ],
)
def test_a_damaged_store_is_one_line(damage: object, tmp_path: Path) -> None:
    store = _prepare(_image_folder(), _folder(tmp_path / "images"), tmp_path / "store")
    assert callable(damage)
    damage(store)
    with pytest.raises(DataError, match="prepare") as caught:
        Store(store.paths.root)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["labels.npy", "parts.npy"])
@pytest.mark.parametrize("damage", ["empty", "header", "value", "kind", "length"])
def test_damaged_labels_and_parts_are_one_line(name: str, damage: str, digits: Store, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "prepared"
    shutil.copytree(digits.paths.root, folder)
    path, values = folder / name, np.load(folder / name)
    content = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "header":
        path.write_bytes(content.replace(b"{", b"(((", 1))
    else:
        changed = {"value": np.where(values == 2, 77, values).astype(values.dtype), "kind": values * 1.0, "length": values[1:]}
        np.save(path, changed[damage])
    with pytest.raises(DataError, match="expected complete prepared data, got:") as error:
        Store(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [0.9]}, "fields with values of the wrong kind"),
        ({"std": [0.9]}, "fields with values of the wrong kind"),
        ({"classes": list("abcdefghij")}, "fields with values of the wrong kind"),
        ({"counts": {}}, "fields with values of the wrong kind"),
        ({"mean": [float("nan")], "record": ""}, "one finite number"),
        ({"std": [], "record": ""}, "one finite number"),
        ({"std": [0.0], "record": ""}, "std is not positive"),
        ({"num_samples": 0, "record": ""}, "no samples"),
    ],
)
def test_a_changed_manifest_is_one_line(change: dict[str, object], message: str, digits: Store, tmp_path: Path) -> None:
    content = json.loads(digits.paths.manifest.read_text(encoding="utf-8"))
    path = tmp_path / "manifest.json"
    former = {name: value for name, value in content.items() if name not in ("block_bytes", "checksums")}
    path.write_text(json.dumps({**former, "format": 1, "record": ""}), encoding="utf-8")
    assert Manifest.read(path).digest == digits.manifest.digest  # of an earlier version
    path.write_text(json.dumps({**content, **change}), encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        Manifest.read(path)
    assert "\n" not in str(error.value)
