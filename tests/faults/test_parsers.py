"""What people and crashes write into files: every parser gives a value or one of our errors, whatever the bytes."""

import contextlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.model import ModelConfig
from bigstep.config.params import SECTIONS
from bigstep.config.train import TrainConfig
from bigstep.config.yaml_files import apply_overrides, parse_overrides, read_yaml
from bigstep.data.manifest import Manifest
from bigstep.data.store import Store
from bigstep.errors import CheckpointError, UserError
from bigstep.models.building import InputShape
from bigstep.models.model_files import build_classifier
from bigstep.planning.plan import read_measured
from bigstep.project.attempts import read_attempt
from bigstep.project.parameters import check_params
from bigstep.runs.checkpoint_files import check_folder, load_latest, read_commit, save_checkpoint
from bigstep.runs.checkpoints import CheckpointWriter
from bigstep.tracking.spool import Spool
from bigstep.training.snapshot import Snapshot, take_snapshot
from bigstep.training.state import build_state
from building import ten_classes
from faults.mutations import Damage, mutated, mutated_json, read_damaged

KEYS = [f"{section.title}.{key}" for section in SECTIONS for key in section.model_fields]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["auto", "none", "1e-3", "60s", "4GiB", "digits", "batch", "image-folder", "0x10", "1_000", "~", "=", "<<"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)
CASES = settings(max_examples=6 * settings.default.max_examples)  # with `make faults` ten thousand in all


def _ours(function: Callable[[], Any]) -> Any:
    """Call; an error must be ours."""
    with contextlib.suppress(UserError):
        return function()
    return None


@CASES
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")),
        st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=4).map(
            lambda items: json.dumps(_sections(items), allow_nan=True).encode()
        ),
    )
)
def test_params_yaml(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_bytes(content)
    _ours(lambda: check_params(read_yaml(path)))


def _sections(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in items:
        section, _, key = name.partition(".")
        found.setdefault(section, {})[key] = value
    return found


@CASES
@given(
    text=st.one_of(
        st.text(max_size=30),
        st.tuples(st.sampled_from(KEYS), st.one_of(st.text(max_size=20), SCALARS.map(str))).map("=".join),
    )
)
def test_overrides(text: str) -> None:
    _ours(lambda: check_params(apply_overrides({"train": {"epochs": 2}}, parse_overrides([text]))))


def _mutated(original: Any, draw: st.DrawFn) -> bytes:
    """A record with some fields changed, left out or added; or bytes that are no record."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=80))
    content = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.one_of(st.sampled_from(sorted(content)), st.text(max_size=5))) if content else "x"
        if draw(st.booleans()):
            content[key] = draw(VALUES)
        else:
            content.pop(key, None)
    text = json.dumps(content).encode()
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 3)) == 0 else text


@CASES
@given(data=st.data())
def test_manifests(data: st.DataObject, digits: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "manifest.json"
    original = json.loads(digits.paths.manifest.read_text(encoding="utf-8"))
    path.write_bytes(data.draw(st.composite(lambda draw: _mutated(original, draw))()))
    _ours(lambda: Manifest.read(path))


def test_commits(tmp_path: Path) -> None:
    """A checkpoint whose commit was changed is refused by name, or it is the one that was saved."""
    path = save_checkpoint(tmp_path, Snapshot(1, {"a": torch.ones(2)}, {"x": 1}), {"torch": "2"}) / "commit.json"
    commit, original, taken = read_commit(path.parent), json.loads(path.read_bytes()), Counter[str]()

    @CASES
    @given(data=st.data())
    def change(data: st.DataObject) -> None:
        path.write_bytes(data.draw(st.composite(lambda draw: _mutated(original, draw))()))
        problem = check_folder(path.parent)
        taken["refused" if problem else "loaded"] += 1
        if problem is None:
            loaded = load_latest(tmp_path)
            assert loaded is not None
            assert (loaded[0].step, loaded[0].tensors["a"].tolist(), loaded[0].values) == (1, [1.0, 1.0], {"x": 1})
            assert (loaded[1].step, loaded[1].files) == (commit.step, commit.files)
        else:
            with pytest.raises(CheckpointError, match=re.escape(problem)):
                load_latest(tmp_path)

    change()
    assert min(taken["refused"], taken["loaded"]) > 100, taken


@settings(max_examples=400)
@given(data=st.data())
def test_values_of_a_checkpoint(data: st.DataObject, digits: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, model, train = tmp_path_factory.getbasetemp() / "values", ModelConfig(width=4), TrainConfig()
    shape = InputShape(1, 8, 10)
    classifier = build_classifier(model, shape, mean=digits.manifest.mean, std=digits.manifest.std)
    options: Any = {"num_samples": 400, **ten_classes(train), "model": model}
    state = build_state(classifier, train, BatchSizes(64, 32, 2), **options)
    whole = take_snapshot(state, micro_batch_size=32)
    text = data.draw(st.composite(lambda draw: _mutated({**whole.values, "kept": {}}, draw))())
    try:
        values = json.loads(text)
    except (ValueError, UnicodeDecodeError):
        values = {}
    if not isinstance(values, dict):
        values = {"kept": values}
    shutil.rmtree(folder, ignore_errors=True)
    save_checkpoint(folder, Snapshot(0, whole.tensors, values), {})
    with contextlib.suppress(CheckpointError):  # either outcome is right, any other error is not
        CheckpointWriter(folder, 60.0, {}).restore(state, micro_batch_size=32)


@CASES
@given(content=st.one_of(st.binary(max_size=80), VALUES.map(lambda value: json.dumps(value).encode())))
def test_plans_and_attempts(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp()
    for name in ("measured.json", "key.json"):
        (base / name).write_bytes(content)
    read_measured(base)
    read_attempt(base, "key")


@CASES
@given(
    content=st.one_of(
        st.binary(max_size=80), st.lists(VALUES, max_size=3).map(lambda v: "\n".join(map(json.dumps, v)).encode())
    )
)
def test_journals(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = Path(tmp_path_factory.getbasetemp() / "spool")
    folder.mkdir(exist_ok=True)
    for name in ("journal.jsonl", "sent.json", "origin.json"):
        (folder / name).write_bytes(content)
    spool = Spool(folder)
    spool.append({"entry": "tags", "values": {}})
    assert spool.last() == {"entry": "tags", "values": {}}
    assert spool.origin is None
    spool.close()


@pytest.fixture
def store(digits: Store, tmp_path: Path) -> Store:
    """A real prepared store that may be damaged."""
    shutil.copytree(digits.paths.root, tmp_path / "store")
    return Store(tmp_path / "store")


def _same(root: Path, whole: Store) -> None:
    """Open a store as the stages do; what is read must be what prepare wrote."""
    found = Store(root)
    found.verify()
    if found.manifest.record:  # stores of earlier versions have none
        assert found.manifest == whole.manifest
    assert found.manifest.counts == whole.manifest.counts
    assert np.array_equal(found.labels, whole.labels)
    assert np.array_equal(found.parts, whole.parts)
    assert np.array_equal(found.images[:], whole.images[:])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *[(name, mutated) for name in ("manifest.json", "parts.npy", "labels.npy", "images.u8", "images.blocks")],
        ("manifest.json", mutated_json),
        *[(name, lambda content, dice: mutated(content[:128], dice) + content[128:]) for name in ("parts.npy", "labels.npy")],
    ],
    ids=["manifest", "parts", "labels", "images", "blocks", "manifest-fields", "parts-header", "labels-header"],
)
def test_damaged_files_of_a_store(name: str, damage: Damage, store: Store, digits: Store) -> None:
    found = read_damaged(store.paths.root / name, lambda: _same(store.paths.root, digits), damage)
    assert found["refused"] > found["read"]


def test_damaged_lists_of_samples(store: Store) -> None:
    found = read_damaged(store.paths.samples, lambda: [store.names(), store.origins()])
    assert min(found["read"], found["refused"]) > 0
