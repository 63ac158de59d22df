"""No code runs from a registered model that was tampered with; `bigstep verify` names it."""

import json
import pickle
import py_compile
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from bigstep.atomic_files import sha256
from bigstep.commands.predict import _from_registry
from bigstep.config.model import ModelConfig
from bigstep.diagnostics.verify import find_damage
from bigstep.errors import ModelError
from bigstep.models.building import InputShape
from bigstep.models.classifier import CheckedClassifier, ServedClassifier
from bigstep.models.model_files import build_classifier
from bigstep.project.parameters import check_params
from bigstep.project.paths import ProjectPaths
from bigstep.tracking.database import open_client
from bigstep.tracking.exporting import export_module
from bigstep.tracking.mlflow_tracker import MODEL_URI_TAG, open_run
from bigstep.tracking.model_code import CODE_FILE, SHIPPED
from bigstep.tracking.model_registry import Promotion, describe_version, promote
from bigstep.tracking.sealing import SEAL_TAG, seal_source
from bigstep.tracking.tracker import ModelRecord
from dvc_dependencies import imported_names

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")]  # MLflow's own


@dataclass(frozen=True)
class Registered:
    """A project whose store has one registered model."""

    root: Path
    run_id: str
    artifacts: Path
    backup: Path
    module: ServedClassifier


@pytest.fixture(scope="module")
def logged(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    root = tmp_path_factory.mktemp("project")
    shutil.copyfile(empty_database, root / "mlflow.db")
    tracker = open_run(f"sqlite:///{root / 'mlflow.db'}", run_id=None, experiment="models")
    classifier = build_classifier(ModelConfig(width=4), InputShape(1, 8, 2), mean=(0.3,), std=(0.4,))
    example = np.zeros((2, 8, 8, 1), np.uint8)
    tags = {"bigstep.weights_sha256": "w", "bigstep.validation_digest": "d", "bigstep.val_loss": "0.5"}
    module = ServedClassifier(classifier, 8).eval()
    tracker.log_program(ModelRecord(root, example, ("cat", "dog"), tags), export_module(module, example, root))
    assert promote(tracker.client, tracker.run_id, "pets", metric="val_loss", smaller_is_better=True)
    artifacts = next((root / "mlruns").rglob("MLmodel")).parent
    backup = tmp_path_factory.mktemp("backup") / "model"
    shutil.copytree(artifacts, backup)
    return Registered(root, tracker.run_id, artifacts, backup, module)


@pytest.fixture
def registered(logged: Registered, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registered]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield logged
    shutil.rmtree(logged.artifacts)
    shutil.copytree(logged.backup, logged.artifacts)


@pytest.mark.parametrize(
    "address", ["pets", "models:/pets/1", "models:/pets@champion", "models:/pets@challenger", "runs:/{}/model"]
)
def test_an_untouched_model_answers_by_every_address(registered: Registered, address: str) -> None:
    found = _from_registry(ProjectPaths(registered.root), address.format(registered.run_id))
    assert found.classes == ("cat", "dog")
    assert found.predictions(np.zeros((1, 9, 9, 1), np.uint8)).shape == (1, 2)
    assert not list(find_damage(registered.root, check_params({})))


@pytest.mark.parametrize("value", [0, 1, 2, 255])
def test_an_image_of_one_value_however_dark_answers_as_the_exported_folder(registered: Registered, value: int) -> None:
    found = _from_registry(ProjectPaths(registered.root), "pets")
    image = np.full((1, 9, 9, 1), value, np.uint8)
    with torch.no_grad():
        expected = registered.module(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(found.predictions(image), expected, atol=1e-6)


def test_a_version_shows_its_card_and_keeps_what_a_person_wrote(logged: Registered) -> None:
    client = open_client(f"sqlite:///{logged.root / 'mlflow.db'}")
    version = Promotion("pets", "1", is_champion=True, reason="")

    def described(card: str) -> str:
        describe_version(client, version, card)
        return str(client.get_model_version("pets", "1").description)

    assert described("---\ntags: [a]\n---\n\n# Model card\n\ngood\n") == "# Model card\n\ngood"
    long = described("# Model card\n" + "a line\n" * 2000)
    assert 4900 < len(long) <= 5000
    assert long.endswith("a line\n\n(cut; the whole card is the artifact `card.md` of the run)")
    assert described("# Model card\n\nbetter\n") == "# Model card\n\nbetter"
    client.update_model_version("pets", "1", "my own words")
    assert described("# Model card\n\nbest\n") == "my own words"


def _rewrite(pt2: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes] | None = None) -> None:
    with zipfile.ZipFile(pt2) as old:
        content = [(name, old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(pt2, "w") as new:
        for name, data in content:
            new.writestr(name, change(name, data))
        for name, data in (extra or {}).items():
            new.writestr(f"{content[0][0].split('/')[0]}/{name}", data)


def _pt2(model: Path) -> Path:
    return next(model.rglob("*.pt2"))


def _expression(model: Path, payload: str) -> None:
    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        text, count = re.subn(r'"expr_str": ?"[^"]*"', lambda _: f'"expr_str": {json.dumps(payload)}', data.decode())
        assert count
        return text.encode()

    _rewrite(_pt2(model), change)


def _loader(model: Path, payload: str) -> None:
    content = yaml.safe_load((model / "MLmodel").read_text())
    content["flavors"]["python_function"].update(loader_module="evilmod", code="code")
    (model / "MLmodel").write_text(yaml.safe_dump(content))
    (model / "code").mkdir()
    (model / "code" / "evilmod.py").write_text(f"{payload}\n")


def _extra_code(model: Path, payload: str) -> None:
    (model / "code").mkdir()
    (model / "code" / "mlflow_extra.py").write_text(f"{payload}\n")


class _Pickled:
    def __init__(self, payload: str) -> None:
        self.payload = payload

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return exec, (self.payload,)


def _other_code(model: Path, payload: str) -> None:
    with (model / CODE_FILE.name).open("a") as file:
        file.write(f"{payload}\n")


def _bytecode(model: Path, payload: str) -> None:
    """Python would run it instead of the file beside it."""
    (model / "__pycache__").unlink()
    (model / CODE_FILE.name).write_text(payload)
    py_compile.compile(str(model / CODE_FILE.name), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    shutil.copyfile(CODE_FILE, model / CODE_FILE.name)


def _pickled_answers(model: Path, payload: str) -> None:
    content = yaml.safe_load((model / "MLmodel").read_text())
    content["flavors"]["python_function"] |= {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"}
    del content["flavors"]["python_function"]["model_code_path"]
    (model / "MLmodel").write_text(yaml.safe_dump(content))
    (model / "python_model.pkl").write_bytes(pickle.dumps(_Pickled(payload)))


def _path_to_code(model: Path, payload: str) -> None:
    (model.parent / "elsewhere.py").write_text(f"{payload}\n")
    text = (model / "MLmodel").read_text()
    (model / "MLmodel").write_text(text.replace(CODE_FILE.name, "../elsewhere.py"))


def _pickle(model: Path, payload: str) -> None:
    beside = model.parent / "evil.pt"
    torch.save(_Pickled(payload), beside)
    _rewrite(_pt2(model), lambda _, data: data, {"data/constants/model.pt": beside.read_bytes()})
    beside.unlink()


def _requirements(model: Path, payload: str) -> None:
    del payload
    (model / "requirements.txt").write_text("evil-package\n")


def _environment(model: Path, payload: str) -> None:
    del payload
    (model / "python_env.yaml").write_text("dependencies: [evil-package]\n")


def _removed(model: Path, payload: str) -> None:
    del payload
    (model / "conda.yaml").unlink()


def _link(model: Path, payload: str) -> None:
    del payload
    target = model.parent / "elsewhere.pt2"
    shutil.move(_pt2(model), target)
    (model / "data").mkdir(exist_ok=True)
    (model / "data" / "model.pt2").symlink_to(target)


def _linked_folder(model: Path, payload: str) -> None:
    del payload
    shutil.move(model / "data", model.parent / "elsewhere")
    (model / "data").symlink_to(model.parent / "elsewhere")


CODE = [_loader, _other_code, _pickled_answers, _path_to_code]
WAYS = [*CODE, _expression, _extra_code, _bytecode, _pickle, _requirements, _environment, _removed, _link, _linked_folder]


@pytest.mark.parametrize("tamper", WAYS)
def test_a_tampered_model_runs_nothing_and_is_named(
    registered: Registered, tmp_path: Path, tamper: Callable[[Path, str], None]
) -> None:
    marker = tmp_path / "marker"
    tamper(registered.artifacts, f"__import__('pathlib').Path({str(marker)!r}).touch()")
    with pytest.raises(ModelError) as caught:
        _from_registry(ProjectPaths(registered.root), "pets")
    assert len(str(caught.value).splitlines()) == 1
    assert not marker.exists()
    damage = list(find_damage(registered.root, check_params({})))
    assert len(damage) == 1
    assert damage[0].startswith("registered model: ")
    assert not marker.exists()
    shutil.rmtree(registered.artifacts.parent / "elsewhere", ignore_errors=True)


def test_a_version_without_digests_is_refused_with_a_way_out(registered: Registered) -> None:
    client = open_client(f"sqlite:///{registered.root / 'mlflow.db'}")
    source = client.get_model_version("pets", "1").source
    client.create_registered_model("old")
    version = client.create_model_version("old", source).version
    with pytest.raises(ModelError, match=f"expected the tag {SEAL_TAG}.*repro --force"):
        _from_registry(ProjectPaths(registered.root), f"models:/old/{version}")
    assert not list(find_damage(registered.root, check_params({})))
    client.delete_registered_model("old")


@pytest.mark.parametrize(
    "address", ["models:/pets/9", "models:/none@x", "runs:/0/model", "runs:/a'b/model", "models:/a/b/c", "s3://x/y"]
)
def test_an_address_of_nothing_is_one_line(registered: Registered, address: str) -> None:
    with pytest.raises(ModelError) as caught:
        _from_registry(ProjectPaths(registered.root), address)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("tamper", CODE)
def test_a_version_registered_with_other_code_is_named_and_runs_nothing(
    registered: Registered, tmp_path: Path, tamper: Callable[[Path, str], None]
) -> None:
    """Its digests are right: whoever logged it ran another program than bigstep."""
    marker = tmp_path / "marker"
    tamper(registered.artifacts, f"__import__('pathlib').Path({str(marker)!r}).touch()")
    client = open_client(f"sqlite:///{registered.root / 'mlflow.db'}")
    source = client.get_model_version("pets", "1").source
    client.create_registered_model("other")
    client.create_model_version("other", source, run_id=registered.run_id, tags=seal_source(client, source))
    with pytest.raises(ModelError, match=r"^version 1 of other: expected no code but bigstep's own, got .*; use another"):
        _from_registry(ProjectPaths(registered.root), "models:/other/1")
    damage = [line for line in find_damage(registered.root, check_params({})) if "of other:" in line]
    assert len(damage) == 1
    assert "expected no code but bigstep's own" in damage[0]
    assert not marker.exists()
    client.delete_registered_model("other")


def test_a_version_of_before_the_answers_had_names_is_read(
    registered: Registered, empty_database: Path, tmp_path: Path
) -> None:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    tracker = open_run(f"sqlite:///{tmp_path / 'mlflow.db'}", run_id=None, experiment="models")
    example = np.zeros((2, 8, 8, 1), np.float32)
    inputs = Schema([TensorSpec(example.dtype, (-1, -1, -1, 1))])
    with mlflow.start_run(run_id=tracker.run_id):
        info = mlflow.pytorch.log_model(
            CheckedClassifier(registered.module).eval(),
            name="model",
            signature=ModelSignature(inputs=inputs),
            input_example=example,
            serialization_format="pt2",
            pip_requirements=["torch"],
            metadata={"classes": ["cat", "dog"], "task": "classification"},
        )
    tracker.set_tags({**seal_source(tracker.client, info.model_uri), MODEL_URI_TAG: info.model_uri, "bigstep.val_loss": "1"})
    assert promote(tracker.client, tracker.run_id, "pets", metric="val_loss", smaller_is_better=True)
    image = np.full((1, 9, 9, 1), 7, np.uint8)
    old, new = (_from_registry(ProjectPaths(root), "pets") for root in (tmp_path, registered.root))
    assert old.classes == new.classes
    np.testing.assert_array_equal(old.predictions(image), new.predictions(image))
    assert not list(find_damage(tmp_path, check_params({})))


def test_bigstep_runs_no_file_of_the_model_and_knows_the_one_it_ships(registered: Registered) -> None:
    """A change of named_answers.py adds its digest; those of earlier versions stay, or their models would be refused."""
    before = set(sys.modules)
    _from_registry(ProjectPaths(registered.root), "pets").predictions(np.zeros((1, 8, 8, 1), np.uint8))
    assert not [name for name in set(sys.modules) - before if "code_model_" in name or "named_answers" in name]
    assert sha256(CODE_FILE) in SHIPPED
    assert "bigstep" not in {name.split(".")[0] for name in imported_names(CODE_FILE)}
    assert sha256(registered.artifacts / CODE_FILE.name) in SHIPPED


@pytest.mark.parametrize("tamper", [_expression, _loader, _bytecode])
def test_the_payloads_run_where_nothing_is_checked(
    registered: Registered, tmp_path: Path, tamper: Callable[[Path, str], None]
) -> None:
    marker = tmp_path / "marker"
    tamper(registered.artifacts, f"__import__('pathlib').Path({str(marker)!r}).touch()")
    code = "import sys, mlflow; mlflow.pyfunc.load_model(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(registered.artifacts)], capture_output=True, check=False)
    assert marker.exists()
