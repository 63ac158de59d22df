"""A network and a data set that the project brings: how they are found, called, refused, and what a whole run makes of them."""

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

from bigstep.config.data import DataConfig
from bigstep.config.model import ModelConfig
from bigstep.config.params import flatten, parse_params
from bigstep.config.yaml_files import apply_overrides, parse_overrides
from bigstep.data.decoding import image_pixels
from bigstep.data.repeated import count_repeated
from bigstep.data.sources import open_source
from bigstep.data.store import Store
from bigstep.data.store_writer import prepare_store
from bigstep.errors import ConfigError, DataError, ModelError, UserError
from bigstep.models.building import InputShape, build_network
from bigstep.models.model_files import ANY_CODE, ModelCard, load_classifier, save_model
from bigstep.models.model_names import check_model
from bigstep.planning.plan import plan_folder
from bigstep.project.paths import ProjectPaths
from bigstep.project.stage_inputs import read_inputs
from bigstep.runs.code_digest import digest_code
from bigstep.search.space import build_space
from conftest import copy_project
from faults.project import Project

NETWORK = """
from torch import nn

from custom.model.blocks import block


class Net(nn.Module):
    def __init__(self, num_classes, channels, width=8, depth=1):
        super().__init__()
        self.blocks = nn.Sequential(*(block(channels if i == 0 else width, width) for i in range(depth)))
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.head(self.dropout(self.blocks(images).mean(dim=(2, 3))))
"""
BLOCKS = """
from torch import nn


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(1, outputs), nn.ReLU())
"""
DATASET = """
import numpy as np


class Stripes:
    classes = ["across", "down"]

    def __init__(self, root, count=60):
        self.root, self.count = root, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        image = rng.integers(0, 60, (12, 12)).astype(np.uint8)
        image[:: 2 if index % 2 else 1, :: 1 if index % 2 else 2] += 150
        return image, "across" if index % 2 else "down"
"""
TORN = """

def torn(image):
    import io
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:60]))  # Pillow reads the pixels when they are asked for
"""
SHAPE = InputShape(channels=1, size=8, num_classes=3)
NET = "custom/model/net.py:Net"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """A folder with params.yaml that the process works in; call it to write a file."""
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    write("custom/model/net.py", NETWORK)
    write("custom/model/blocks.py", BLOCKS)
    write("custom/data/stripes.py", DATASET)
    return write


def network(name: str, **options: object) -> torch.nn.Module:
    return build_network(ModelConfig(name=name, options=options), SHAPE)


@pytest.mark.usefixtures("project")
def test_a_network_of_the_project_is_called_with_what_it_asks_for() -> None:
    built = network(NET, depth=2)
    assert len(built.blocks) == 2
    assert built.blocks[0][0].in_channels == 1
    assert built.head.out_features == 3
    assert built.training


def test_what_is_above_the_network_in_custom_holds_no_code(project: Callable[[str, str], Path]) -> None:
    project("custom/__init__.py", "\n")
    assert network(NET).head.out_features == 3
    project("custom/__init__.py", "WIDTH = 8\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "custom"]:
        del sys.modules[name]
    with pytest.raises(ConfigError, match=r"expected imports from custom/model only, .*, got one of custom/__init__\.py"):
        network(NET)


def test_a_network_may_use_a_package_that_is_installed_in_place(
    project: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))  # as `pip install -e .` does
    project("own_package_in_place/blocks.py", BLOCKS)
    project("custom/model/net.py", NETWORK.replace("custom.model.blocks", "own_package_in_place.blocks"))
    assert network(NET).head.out_features == 3


@pytest.mark.usefixtures("project")
def test_a_class_of_an_installed_package_is_a_network() -> None:
    built = build_network(
        ModelConfig(name="bigstep.models.small_cnn:SmallCNN", options={"width": 8, "size": 8, "dropout": 0.0}), SHAPE
    )
    assert type(built).__name__ == "SmallCNN"
    assert built(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("def Net(:\n", {}, "custom/model/net.py:1: SyntaxError: "),
        ("import not_there\n", {}, "custom/model/net.py:1: ModuleNotFoundError: No module named 'not_there'"),
        ("x = 1\n", {}, "has no attribute 'Net'"),
        ("Net = 3\n", {}, "a int; name a function or class"),
        ("def Net(num_classes):\n    return 3\n", {}, "(custom/model/net.py:1): expected a torch.nn.Module, got a int"),
        ("def Net(num_classes, depth):\n    pass\n", {}, "missing a required argument: 'depth'"),
        ("def Net(num_classes):\n    pass\n", {"depth": 2}, "got an unexpected keyword argument 'depth'"),
        ("def Net():\n    raise OSError('no such thing')\n", {}, "custom/model/net.py:2: OSError: no such thing"),
        (
            "import torch\ndef Net():\n    return torch.nn.Flatten()\n",
            {},
            "expected logits of shape (2, 3) for images of (2, 1, 8, 8)",
        ),
        (
            "import torch\ndef Net():\n    return torch.nn.Linear(5, 3)\n",
            {},
            "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        ),
        (NETWORK.replace("dim=(2, 3)", "dim=(2, 9)"), {}, "custom/model/net.py:15: IndexError: Dimension out of range"),
        (
            "from torch.nn import *\ndef Net():\n    return Sequential(Flatten(), Linear(64, 3)).requires_grad_(False)\n",
            {},
            "expected parameters to train, got none",
        ),
        (NETWORK + "    def get_extra_state(self):\n        return {}\n", {}, "got a dict in '_extra_state'"),
        ("from custom.data.stripes import Stripes as Net\n", {}, "expected imports from custom/model only"),
        ("from shared.blocks import block as Net\n", {}, "got one of shared/blocks.py; move what both need into an"),
    ],
)
def test_what_is_wrong_with_a_network_is_one_line_with_its_place(
    project: Callable[[str, str], Path], text: str, options: dict[str, object], expected: str
) -> None:
    project("custom/model/net.py", text)
    project("shared/blocks.py", BLOCKS)
    for _ in range(2):
        with pytest.raises(UserError) as raised:
            network(NET, **options)
        assert expected in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("custom/model/away.py:Net", "expected a file, got custom/model/away.py"),
        ("custom/data/stripes.py:Stripes", "move the file into custom/model/"),
        ("../custom/model/net.py:Net", "move the file into custom/model/"),
        ("custom/model/../data/stripes.py:Stripes", "a name that Python can import"),
        ("custom/model/net.py:", "a name that Python can import"),
        ("os:system;rm", "expected custom/model/file.py:name or package.module:name"),
        ("not_there:Net", "No module named 'not_there'"),
    ],
)
@pytest.mark.usefixtures("project")
def test_a_name_that_leads_nowhere_is_one_line(name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.name: ") as raised:
        check_model(ModelConfig(name=name))
    assert expected in str(raised.value)


@pytest.mark.usefixtures("project")
def test_each_project_has_its_own_module_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network(NET).head.in_features == 8
    shutil.copytree(tmp_path / "custom", tmp_path / "other" / "custom", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "other" / "params.yaml").touch()
    path = tmp_path / "other" / "custom" / "model" / "net.py"
    path.write_text(NETWORK.replace("width=8", "width=4"), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "other")
    assert network(NET).head.in_features == 4


def test_code_of_the_network_belongs_to_what_a_training_is_resumed_with(project: Callable[[str, str], Path]) -> None:
    plain, before = digest_code("small_cnn"), digest_code(NET)
    assert before != plain
    project("custom/model/blocks.py", BLOCKS + "\n# changed\n")
    changed = digest_code(NET)
    assert changed != before
    project("custom/model/.blocks.py.swp", "an editor's")
    project("custom/model/__pycache__/blocks.pyc", "bytecode")
    assert digest_code(NET) == changed
    project("custom/model/depths.json", "[1, 2]")
    assert digest_code(NET) != changed
    assert digest_code("small_cnn") == plain


def test_code_of_a_package_is_that_of_all_its_modules(
    project: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package hands out names of its modules."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    project("site/nets_of_others/__init__.py", "from nets_of_others.net import Net\n")
    project("site/nets_of_others/net.py", "Net = dict\n")
    project("site/one_of_others.py", "Net = dict\n")
    before = [digest_code("nets_of_others:Net"), digest_code("one_of_others:Net"), digest_code("small_cnn")]
    assert len(set(before)) == 3
    project("site/nets_of_others/net.py", "Net = list\n")
    project("site/one_of_others.py", "Net = list\n")
    after = [digest_code("nets_of_others:Net"), digest_code("one_of_others:Net"), digest_code("small_cnn")]
    assert [was == now for was, now in zip(before, after, strict=True)] == [False, False, True]


@pytest.mark.usefixtures("project")
def test_measurements_of_a_network_are_those_of_its_code(tmp_path: Path, digits: Store) -> None:
    params = parse_params({"model": {"name": NET}})
    before = plan_folder(ProjectPaths(tmp_path), params, digits)
    (tmp_path / "custom" / "model" / "blocks.py").write_text(BLOCKS.replace("3, padding=1", "5, padding=2"), encoding="utf-8")
    assert plan_folder(ProjectPaths(tmp_path), params, digits) != before


def test_a_foreign_model_names_no_code_that_is_run(project: Callable[[str, str], Path], tmp_path: Path) -> None:
    built = network(NET)
    shape = {"classes": ("a", "b", "c"), "size": 8, "channels": 1, "mean": (0.5,), "std": (0.25,), "precision": "float32"}
    numbers = {"effective_batch_size": 4, "epoch": 1, "num_updates": 1, "val_loss": 1.0, "val_accuracy": 0.5}
    card = ModelCard(ModelConfig(name=NET).model_dump(), **shape, **numbers, data_digest="", validation_digest="")
    save_model(dict(built.state_dict()), card, tmp_path / "exported")
    project("custom/model/net.py", NETWORK + "\nopen('was_run', 'w')\n")
    for code in ("", "custom/model/other.py:Net"):
        with pytest.raises(ModelError, match="which would be run"):
            load_classifier(tmp_path / "exported", code=code)
    assert not (tmp_path / "was_run").exists()
    for code in (NET, ANY_CODE):
        loaded, _ = load_classifier(tmp_path / "exported", code=code)
        assert torch.equal(loaded.network.head.weight, built.head.weight)


def prepare(tmp_path: Path, **keys: object) -> Store:
    data = DataConfig(**{"source": "custom/data/stripes.py:Stripes", **keys})
    folder = tmp_path / "store"
    folder.mkdir()
    for _ in prepare_store(open_source(data, tmp_path, num_workers=0), data, folder):
        pass
    return Store(folder)


@pytest.mark.usefixtures("project")
def test_a_data_set_of_the_project_is_prepared(tmp_path: Path) -> None:
    store = prepare(tmp_path, options={"count": 40}, image_size=8)
    assert store.images.shape == (40, 8, 8, 1)
    assert store.manifest.classes == ("across", "down")
    assert store.labels.tolist() == [1, 0] * 20
    assert not store.paths.repeated.exists()


def test_images_that_are_in_two_parts_are_listed(project: Callable[[str, str], Path], tmp_path: Path) -> None:
    part = '["train", "validation", "test"][index % 3]'
    text = DATASET.replace("default_rng(index)", "default_rng(0 if index in (3, 5, 9) else index)")
    project("custom/data/stripes.py", text.replace('else "down"', f'else "down", {part}'))
    store = prepare(tmp_path)
    with store.paths.repeated.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["index"], row["part"]) for row in rows] == [
        ("1", "3", "train"),
        ("1", "5", "test"),
        ("1", "9", "train"),
    ]
    assert (count_repeated(store.paths.repeated), count_repeated(store.paths.repeated, "test")) == (3, 1)
    assert "repeated.csv" in store.manifest.checksums


@pytest.mark.parametrize("kind", ["generator", "parts", "tensors", "iterable"])
def test_a_data_set_may_stream_name_parts_and_yield_tensors(
    project: Callable[[str, str], Path], tmp_path: Path, kind: str
) -> None:
    text = """
import torch
class Stream:
    classes = ("a", "b")
    def __iter__(self):
        for i in range(30):
            yield %s
def Stripes(channels):
    return Stream()
"""
    shown = "torch.full((3, 8, 8), (i % 2) / 2), i % 2"
    project("custom/data/stripes.py", text % (f"{shown}, 'test' if i < 10 else None" if kind == "parts" else shown))
    if kind == "iterable":
        stream = "class Stream(torch.utils.data.IterableDataset):\n    def __len__(self):\n        return 30\n"
        written = (tmp_path / "custom" / "data" / "stripes.py").read_text(encoding="utf-8")
        project("custom/data/stripes.py", written.replace("class Stream:\n", stream))
    store = prepare(tmp_path)
    assert store.images.shape == (30, 8, 8, 3)
    assert np.unique(store.images[1]).tolist() == [128]
    if kind == "parts":
        assert sum(store.manifest.counts["test"].values()) == 10


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (('    classes = ["across", "down"]\n', ""), "expected a data set with the attribute classes"),
        (('"across" if', '"up" if'), "sample 1: a target: expected an integer from 0 to 1 or the name of a class, got 'up'"),
        (("return image,", "return image / 7,"), "expected float64 from 0 to 1, got"),
        (("return image,", "return image[None, None],"), "sample 0: an image: expected a PIL image"),
        (("rng = ", "assert index < 5, 'no more'; rng = "), "sample 5: custom/data/stripes.py:15: AssertionError: no more"),
        (("return image, ", "return "), "a sample: expected (image, target)"),
        (("return image,", "return [[1], [1, 2]],"), "sample 0: setting an array element with a sequence"),
        (("return image,", "return torn(image) if index == 3 else image,"), "sample 3: OSError: "),
        (('classes = ["across", "down"]', "targets = list(range(10**5))"), "a list of at least two names, labels"),
        (("self.count\n\n    def __getitem__", "0\n\n    def __getitem__"), "expected samples, got an empty data set"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_one_line_with_its_place(
    project: Callable[[str, str], Path], tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    assert change[0] in DATASET
    project("custom/data/stripes.py", DATASET.replace(*change) + TORN)
    with pytest.raises(DataError, match=r"custom/data/stripes\.py:") as raised:
        prepare(tmp_path)
    assert expected in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 500


def test_pixels_of_every_kind_of_image() -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    assert np.array_equal(image_pixels(Image.fromarray(grey))[:, :, 0], grey)
    assert np.array_equal(image_pixels(Image.fromarray(colour)), colour)
    assert np.array_equal(image_pixels(torch.from_numpy(colour).permute(2, 0, 1)), colour)
    assert np.array_equal(image_pixels(torch.from_numpy(colour).permute(2, 0, 1) / 255), colour)
    assert np.array_equal(image_pixels(grey.astype(np.int64), 3), colour)
    assert np.array_equal(image_pixels(grey > 20)[:, :, 0], (grey > 20) * 255)
    assert image_pixels(colour, 1).shape == (6, 8, 1)
    assert np.array_equal(image_pixels(Image.fromarray(grey.astype(np.int32)))[:, :, 0], grey)
    assert np.array_equal(image_pixels(Image.fromarray((grey / 255).astype(np.float32)))[:, :, 0], grey)
    assert np.array_equal(image_pixels(Image.fromarray(grey.astype(np.uint16) << 8))[:, :, 0], grey)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4), 4000, np.int32), "expected int32 from 0 to 255, got 4000 to 4000"),
        (np.full((4, 4), 200, np.float32), "expected float32 from 0 to 1, got 200.0 to 200.0"),
    ],
)
def test_images_that_would_come_out_black_or_white_are_refused(array: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        image_pixels(Image.fromarray(array))


def test_images_that_all_come_out_the_same_are_refused(project: Callable[..., None], tmp_path: Path) -> None:
    """As those of 8 bits in an image of 16, of which the upper eight are kept."""
    sixteen = "from PIL import Image; return Image.fromarray(image.astype(np.uint16)),"
    project("custom/data/stripes.py", DATASET.replace("return image,", sixteen))
    with pytest.raises(DataError, match="expected images that differ, got 0 of 255 in all pixels of the training images"):
        prepare(tmp_path)


def test_options_are_overridden_and_searched_by_their_own_names() -> None:
    content = {"model": {"name": NET, "options": {"width": 8}}, "search": {}}
    changed = apply_overrides(content, parse_overrides(["model.options.depth=3"]))
    changed["search"] = {"parameters": {"model.options.width": {"low": 4, "high": 16}}}
    params = parse_params(changed)
    assert params.model.options == {"width": 8, "depth": 3}
    assert flatten(params)["model.options.depth"] == 3
    space = build_space(params)
    assert space.point(params)["model.options.width"] == 8
    changed["search"] = {"parameters": {"model.options.heads": [1, 2]}}
    with pytest.raises(ConfigError, match=r"expected a key of model\.options, got model\.options\.heads"):
        build_space(parse_params(changed))


@pytest.mark.parametrize(("section", "name"), [("model", "small_cnn"), ("data", "digits")])
def test_options_of_what_takes_none_are_refused(section: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{section}.options: expected {{}} with .* {name}"):
        parse_params({section: {"options": {"depth": 2}}})
    assert not [key for key in flatten(parse_params({})) if "options" in key]


@pytest.mark.long
@pytest.mark.slow
def test_a_project_with_its_own_network_and_data(tmp_path: Path, empty_database: Path) -> None:
    """Trained, evaluated and verified; with another micro-batch the same weights to 1e-9; an error in it is one line."""
    project = Project(copy_project(tmp_path / "project", empty_database))
    for name, text in (("model/net", NETWORK), ("model/blocks", BLOCKS), ("data/stripes", DATASET)):
        (project.root / "custom" / f"{name}.py").write_text(text, encoding="utf-8")
    project.set("model.name=" + NET, "model.options={depth: 2}", "data.source=custom/data/stripes.py:Stripes")
    project.set("data.image_size=8", "train.precision=float64", "train.epochs=3", "train.effective_batch_size=8")
    project.bigstep("repro")
    weights = project.root / "results" / "train" / "model.safetensors"
    expected = safetensors.numpy.load_file(weights)
    card = json.loads((weights.parent / "model.json").read_text(encoding="utf-8"))
    assert (card["model"]["name"], card["classes"]) == (NET, ["across", "down"])
    assert "all files match" in project.bigstep("verify")
    project.set("hardware.micro_batch_size=3")
    project.bigstep("train", "--force")
    found = safetensors.numpy.load_file(weights)
    assert max(np.abs(found[name] - expected[name]).max() for name in expected) < 1e-9
    net = project.root / "custom" / "model" / "net.py"
    net.write_text(NETWORK.replace("self.dropout(", "self.dropout(1 / 0 * "), encoding="utf-8")
    output = project.bigstep("train", code=2)
    assert "custom/model/net.py:15: ZeroDivisionError: division by zero" in output
    assert "Traceback" not in output
    assert "Stage 'prepare' didn't change" in output


def test_what_an_import_writes_beside_the_code_is_no_change_of_a_stages_inputs(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("data: {}\n", encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text("stages: {prepare: {cmd: x, deps: [custom/data]}}\n", encoding="utf-8")
    (tmp_path / "custom" / "data" / "__pycache__").mkdir(parents=True)
    before = read_inputs(tmp_path, "prepare")
    (tmp_path / "custom" / "data" / "__pycache__" / "stripes.cpython-311.pyc").write_bytes(b"code")
    assert read_inputs(tmp_path, "prepare") == before
    (tmp_path / "custom" / "data" / "stripes.py").write_text("x = 1\n", encoding="utf-8")
    assert read_inputs(tmp_path, "prepare") != before
