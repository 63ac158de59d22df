"""No code runs from a registered model that was tampered with; `bigstep verify` names it."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from bigstep.commands.predict import _from_registry
from bigstep.config.model import ModelConfig
from bigstep.diagnostics.verify import find_damage
from bigstep.errors import ModelError
from bigstep.models.building import InputShape
from bigstep.models.classifier import ServedClassifier
from bigstep.models.model_files import build_classifier
from bigstep.project.parameters import check_params
from bigstep.project.paths import ProjectPaths
from bigstep.tracking.database import open_client
from bigstep.tracking.mlflow_tracker import open_run
from bigstep.tracking.model_registry import Promotion, describe_version, promote
from bigstep.tracking.sealing import SEAL_TAG
from bigstep.tracking.tracker import ModelPackage

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
    tracker.log_model(ModelPackage(module, example, ("cat", "dog"), tags))
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


WAYS = [_expression, _loader, _extra_code, _pickle, _requirements, _environment, _removed, _link, _linked_folder]


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


@pytest.mark.parametrize("tamper", [_expression, _loader])
def test_the_payloads_run_where_nothing_is_checked(
    registered: Registered, tmp_path: Path, tamper: Callable[[Path, str], None]
) -> None:
    marker = tmp_path / "marker"
    tamper(registered.artifacts, f"__import__('pathlib').Path({str(marker)!r}).touch()")
    code = "import sys, mlflow; mlflow.pyfunc.load_model(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(registered.artifacts)], capture_output=True, check=False)
    assert marker.exists()
