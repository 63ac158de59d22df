import copy
import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from bigstep.config.model import ModelConfig
from bigstep.errors import ConfigError, ModelError
from bigstep.models.building import InputShape, build_network, head_parameters
from bigstep.models.classifier import Classifier, ServedClassifier
from bigstep.models.model_files import ModelCard, build_classifier, load_classifier, save_model
from bigstep.models.model_names import check_model, registered_names
from bigstep.models.norm_layers import replace_norms
from bigstep.models.starting_weights import read_tensors
from bigstep.step.batch_norm import BATCH_NORMS
from conftest import random_images

SMALL = InputShape(channels=1, size=8, num_classes=10)


def _model(**values: object) -> ModelConfig:
    return ModelConfig.model_validate(values)


def _norms(network: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize("size", [8, 9, 28, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_cnn_takes_eight_to_sixty_four_pixels(size: int, channels: int) -> None:
    network = build_network(_model(), InputShape(channels, size, 7))
    assert network(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("size", [7, 65])
def test_small_cnn_refuses_other_sizes(size: int) -> None:
    with pytest.raises(ConfigError, match=f"got {size}"):
        build_network(_model(), InputShape(1, size, 7))


@pytest.mark.parametrize(
    ("values", "groups", "batches"),
    [({}, 3, 0), ({"norm": "none"}, 0, 0), ({"norm": "batch", "ghost_batch_size": 4}, 0, 3)],
)
def test_the_norm_is_the_one_asked_for(values: dict[str, object], groups: int, batches: int) -> None:
    network = build_network(_model(**values), SMALL)
    assert _norms(network, nn.GroupNorm) == groups
    assert _norms(network, BATCH_NORMS) == batches


@pytest.mark.parametrize("channels", [3, 16, 24, 32, 96, 1000, 1664])
def test_groups_divide_the_channels(channels: int) -> None:
    holder = nn.Sequential(nn.BatchNorm2d(channels))
    assert len(replace_norms(holder, "group")) == 1
    norm = holder[0]
    assert isinstance(norm, nn.GroupNorm)
    assert norm(torch.randn(2, channels, 3, 3)).shape == (2, channels, 3, 3)
    assert norm.num_groups <= 32


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5", "squeezenet1_1", "convnext_tiny"]
)
def test_torchvision_classifiers_are_built_and_freed_of_batch_norm(name: str) -> None:
    network = build_network(_model(name=name), InputShape(1, 64, 5))
    assert _norms(network, BATCH_NORMS) == 0
    assert network.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 299)])
def test_auxiliary_heads_are_there_in_training(name: str, size: int) -> None:
    network = build_network(_model(name=name), InputShape(3, size, 5))
    outputs = network.train()(torch.zeros(2, 3, size, size))
    assert len(outputs) > 1
    assert all(logits.shape == (2, 5) for logits in outputs)


@pytest.mark.slow
def test_every_torchvision_classifier_is_known_and_no_detector() -> None:
    import torchvision

    for name in ("resnet18", "vit_b_16", "swin_t", "efficientnet_b0"):
        check_model(_model(name=name))
    for name in ("resnet_18", "fasterrcnn_resnet50_fpn", "deeplabv3_resnet50"):
        with pytest.raises(ConfigError, match="expected small_cnn or a torchvision classifier"):
            check_model(_model(name=name))
    names = torchvision.models.list_models(module=torchvision.models)
    assert len(names) > 70
    assert sorted(registered_names()) == sorted(names)


def test_a_name_of_torchvision_and_files_of_the_right_size_need_no_torch(tmp_path: Path) -> None:
    """Importing it takes seconds, in the stage and in each of its processes that decode."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "0.png")
    lines = (
        "import sys; from pathlib import Path",
        "from bigstep.config.model import ModelConfig; from bigstep.models.model_names import check_model",
        "from bigstep.data.decoding import Decoded, Layout; from bigstep.data.parallel_decoding import _decode_chunk",
        "check_model(ModelConfig(name='mobilenet_v3_small'))",
        f"assert isinstance(_decode_chunk([Path({str(tmp_path / '0.png')!r})], Layout(8, 3, 1e6))[0], Decoded)",
        "assert 'torch' not in sys.modules",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "size", "error", "message"),
    [
        ({"name": "vit_b_16", "norm": "batch", "ghost_batch_size": 2}, 32, ConfigError, "has no BatchNorm"),
        ({"name": "resnet18", "dropout": 0.5}, 32, ConfigError, "has no dropout, got 0.5"),
        ({"name": "inception_v3"}, 32, ModelError, "does not accept images of 32 x 32 pixels"),
        ({"name": "inception_v3"}, 96, ModelError, "does not accept images of 96 x 96 pixels"),
        ({"name": "vit_b_16"}, 30, ModelError, "does not accept images of 30 x 30 pixels"),
    ],
)
def test_what_an_architecture_cannot_do_is_one_line(
    values: dict[str, object], size: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        build_network(_model(**values), InputShape(3, size, 5))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_the_dropout_asked_for_is_set_everywhere() -> None:
    network = build_network(_model(name="mobilenet_v3_small", dropout=0.45), InputShape(3, 32, 5))
    assert {module.p for module in network.modules() if isinstance(module, nn.Dropout)} == {0.45}


def test_the_same_seed_gives_the_same_weights_whatever_is_checked() -> None:
    torch.manual_seed(0)
    one = build_network(_model(dropout=0.5), SMALL).state_dict()
    torch.manual_seed(0)
    two = build_network(_model(dropout=0.5), SMALL).state_dict()
    assert all((one[name] == two[name]).all() for name in one)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("num_classes", [10, 4])
def test_weights_are_taken_over_and_a_head_for_other_classes_is_fresh(suffix: str, num_classes: int, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    source = build_network(_model(), SMALL).state_dict()
    safetensors.torch.save_file(source, path) if suffix == ".safetensors" else torch.save({"state_dict": source}, path)
    network = build_network(_model(weights="weights/x"), InputShape(1, 8, num_classes), path)
    heads = head_parameters(network, num_classes)
    assert heads == {"head.weight", "head.bias"}
    for name, tensor in network.state_dict().items():
        if name in heads and num_classes != 10:
            assert tensor.shape[0] == num_classes
        else:
            assert (tensor == source[name]).all()


def test_statistics_of_a_replaced_batch_norm_are_left_out(tmp_path: Path) -> None:
    source = build_network(_model(norm="batch", ghost_batch_size=2), SMALL).state_dict()
    torch.save(source, tmp_path / "bn.pth")
    network = build_network(_model(weights="weights/x"), SMALL, tmp_path / "bn.pth")
    assert (network.state_dict()["features.2.weight"] == source["features.2.weight"]).all()


def test_a_frozen_backbone_learns_in_its_head_only(tmp_path: Path) -> None:
    torch.save(build_network(_model(), SMALL).state_dict(), tmp_path / "w.pth")
    network = build_network(_model(weights="weights/x", freeze_backbone=True), SMALL, tmp_path / "w.pth")
    assert {name for name, p in network.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("pwned"),))  # type: ignore[return-value]


def test_weights_that_do_not_fit_are_one_line_and_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = build_network(_model(), SMALL).state_dict()
    cases: dict[str, object] = {
        "bomb.pth": {"head": _Bomb()},
        "list.pth": [1, 2],
        "other.pth": {"weight": torch.zeros(3)},
        "wide.pth": {**good, "features.0.weight": torch.zeros(64, 1, 3, 3)},
        "more.pth": {**good, "extra": torch.zeros(1)},
    }
    for name, content in cases.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(content, tmp_path / name)
    (tmp_path / "text.pth").write_text("no")
    (tmp_path / "text.safetensors").write_text("no")
    for name in [*cases, "text.pth", "text.safetensors", "missing.pth"]:
        with pytest.raises(ModelError, match=name) as caught:
            build_network(_model(weights="weights/x"), SMALL, tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1
    assert not Path("pwned").exists()


def _classifier(channels: int, network_channels: int) -> Classifier:
    mean, std = (0.25, 0.5, 0.75)[:channels], (0.5, 0.25, 0.125)[:channels]
    return Classifier(nn.Flatten(2), mean=mean, std=std, network_channels=network_channels)


def test_stored_images_are_normalised_and_grey_ones_repeated() -> None:
    images = torch.from_numpy(random_images(3, 4, 1)).permute(0, 3, 1, 2)
    pixels = _classifier(1, 3)(images)
    assert pixels.shape == (3, 3, 16)
    expected = (images[:, 0].flatten(1) / 255 - 0.25) / 0.5
    torch.testing.assert_close(pixels, expected[:, None].expand(-1, 3, -1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("stored", [True, False], ids=["as stored", "plane by plane"])
def test_normalised_images_are_the_same_bits_in_every_layout(
    memory_format: torch.memory_format, dtype: torch.dtype, stored: bool
) -> None:
    images = torch.from_numpy(random_images(5, 9, 3)).permute(0, 3, 1, 2).to(dtype)
    images = images if stored else images.contiguous()
    before, options = images.clone(), {"mean": (0.1, 0.3, 0.5), "std": (0.2, 0.3, 0.7), "network_channels": 3}
    classifier = Classifier(nn.Identity(), **options, memory_format=memory_format)
    found = classifier(images)
    assert torch.equal(found, (before.float() / 255 - classifier.mean) / classifier.std)
    assert found.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, before), "the caller's images stay as they are"


def test_float64_samples_are_standardised_before_they_are_rounded() -> None:
    """Times in seconds: float32 has steps of 128 there."""
    mean, std = (1.7e9, 0.0), (10.0, 1.0)
    classifier = Classifier(nn.Identity(), mean=mean, std=std, network_channels=0, sample_shape=(2,), sample_dtype="float64")
    rows = torch.tensor([[1.7e9 + 5, 0.5], [1.7e9 + 25, -0.5]], dtype=torch.float64)
    found = classifier(rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[1] - found[0], torch.tensor([2.0, -1.0]))


def test_colour_images_reach_a_one_channel_network_as_luma() -> None:
    images = torch.from_numpy(random_images(3, 4, 3)).permute(0, 3, 1, 2)
    pixels = _classifier(3, 1)(images)
    normal = (images / 255 - torch.tensor([0.25, 0.5, 0.75]).view(1, 3, 1, 1)) / torch.tensor([0.5, 0.25, 0.125]).view(
        1, 3, 1, 1
    )
    torch.testing.assert_close(
        pixels[:, 0], torch.einsum("nchw,c->nhw", normal, torch.tensor([0.299, 0.587, 0.114])).flatten(1)
    )


CARD = ModelCard(
    model=_model().model_dump(mode="json"),
    classes=tuple("0123456789"),
    size=8,
    channels=1,
    mean=(0.3,),
    std=(0.4,),
    precision="float32",
    effective_batch_size=64,
    epoch=3,
    num_updates=40,
    val_loss=0.5,
    val_accuracy=0.9,
    data_digest="d",
    validation_digest="v",
)


def test_a_model_of_the_former_format_is_read_and_its_epoch_counted_from_one(tmp_path: Path) -> None:
    built = build_classifier(_model(), SMALL, mean=(0.3,), std=(0.4,))
    card = save_model(built.network.state_dict(), CARD, tmp_path)
    path = tmp_path / "model.json"
    former = {**json.loads(path.read_text(encoding="utf-8")), "format": 1, "epoch": CARD.epoch - 1}
    path.write_text(json.dumps(former), encoding="utf-8")
    assert load_classifier(tmp_path)[1] == card


def test_a_saved_model_comes_back_bit_for_bit_and_saves_to_the_same_bytes(tmp_path: Path) -> None:
    built = build_classifier(_model(), SMALL, mean=(0.3,), std=(0.4,)).eval()
    weights = built.network.state_dict()
    save_model(weights, CARD, tmp_path / "a")
    save_model(dict(reversed(weights.items())), CARD, tmp_path / "b")
    for name in ("model.safetensors", "model.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    loaded, card = load_classifier(tmp_path / "a")
    assert card.classes == CARD.classes
    images = torch.from_numpy(random_images(5, 8, 1)).permute(0, 3, 1, 2)
    assert (loaded(images) == built(images)).all()


def test_a_model_without_a_finite_loss_is_json_and_is_read(tmp_path: Path) -> None:
    built = build_classifier(_model(), SMALL, mean=(0.3,), std=(0.4,))
    save_model(built.network.state_dict(), replace(CARD, val_loss=math.nan), tmp_path)
    written = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert written["val_loss"] is None
    card = load_classifier(tmp_path)[1]
    assert math.isnan(card.val_loss)
    assert card.score == CARD.score


def test_a_damaged_model_is_one_line(tmp_path: Path) -> None:
    network = build_network(_model(), SMALL)
    save_model(network.state_dict(), CARD, tmp_path)
    weights, card = (tmp_path / name for name in ("model.safetensors", "model.json"))
    content = copy.copy(weights.read_bytes())
    for path, text in (
        (weights, content[:-1]),
        (weights, b""),
        (card, b"{}"),
        (card, b"["),
        (card, card.read_bytes().replace(b'"size": 8', b'"size": "x"')),
    ):
        before = path.read_bytes()
        assert text != before
        path.write_bytes(text)
        with pytest.raises(ModelError, match="run `bigstep train --force`") as caught:
            load_classifier(tmp_path)
        assert len(str(caught.value).splitlines()) == 1
        path.write_bytes(before)
    weights.unlink()
    with pytest.raises(ModelError):
        load_classifier(tmp_path)


def test_raw_images_of_any_size_and_number_go_into_the_exported_model() -> None:
    served = ServedClassifier(build_classifier(_model(), SMALL, mean=(0.3,), std=(0.4,)), 8).eval()
    example = torch.from_numpy(random_images(2, 16, 1)[:, :12, :9].copy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(served, (example,), dynamic_shapes=[dict.fromkeys(range(3), torch.export.Dim.AUTO)])
    module = exported.module()
    for count, height, width in ((1, 8, 8), (7, 8, 8), (1, 30, 20), (3, 5, 40), (2, 1, 1), (1, 3, 3)):
        images = torch.from_numpy(random_images(count, 40, 1)[:, :height, :width].copy())
        with torch.no_grad():
            np.testing.assert_allclose(module(images), served(images), atol=1e-6)
        assert served(images).shape == (count, 10)


def test_tensors_are_read_from_either_kind_of_file(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    torch.save({"model": tensors}, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        assert (read_tensors(tmp_path / name)["a"] == tensors["a"]).all()
