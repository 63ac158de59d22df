"""Every transform of torchvision.transforms.v2 works in a training, or is refused in one line before it starts."""

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor
from torchvision.transforms import v2

from bigstep.config.params import Params, parse_params
from bigstep.config.train import TrainConfig
from bigstep.data.store import Store
from bigstep.data.transforms import _draw_from_torch_only, build_transforms, check_transforms, transform_sample
from bigstep.errors import ConfigError
from bigstep.training.setup import build_training
from bigstep.training.training_batches import TrainingBatches
from dvc_dependencies import ROOT

SHAPES = {"grey": (1, 8, 8), "colour": (3, 32, 32)}
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")  # JPEG's

ALL = {key for key, kind in vars(v2).items() if isinstance(kind, type) and issubclass(kind, v2.Transform)}
FLIPS = ["RandomVerticalFlip", {"RandomHorizontalFlip": {"p": 0.3}}]

# with these arguments ("size" is the image's) each works at both sizes, but for what follows
WORK: dict[str, list[dict[str, Any]]] = {
    "AugMix": [{}, {"severity": 5}],
    "AutoAugment": [{}, {"policy": "cifar10"}, {"policy": "svhn"}],
    "CenterCrop": [{"size": "size"}],
    "ColorJitter": [{}, {"brightness": 0.2, "contrast": [0.8, 1.2], "saturation": 0.1, "hue": 0.1}],
    "Compose": [{"transforms": FLIPS}],
    "ConvertImageDtype": [{}, {"dtype": "float64"}],
    "ElasticTransform": [{"alpha": 5.0, "sigma": 1.0}],
    "GaussianBlur": [{"kernel_size": 3}, {"kernel_size": [3, 5], "sigma": [0.1, 1.0]}],
    "GaussianNoise": [{}, {"sigma": 0.2}],
    "Identity": [{}],
    "JPEG": [{"quality": [20, 80]}],
    "PILToTensor": [{}],
    "RandAugment": [{}, {"num_ops": 3, "magnitude": 5}],
    "RandomAdjustSharpness": [{"sharpness_factor": 2}],
    "RandomAffine": [{"degrees": 10}, {"degrees": [-5, 5], "translate": [0.1, 0.1], "scale": [0.9, 1.1], "shear": 5}],
    "RandomApply": [{"transforms": FLIPS, "p": 0.4}],
    "RandomAutocontrast": [{}],
    "RandomChannelPermutation": [{}],
    "RandomChoice": [{"transforms": FLIPS}, {"transforms": FLIPS, "p": [0.9, 0.1]}],
    "RandomCrop": [{"size": "size", "padding": 1}, {"size": "size", "padding": 2, "padding_mode": "reflect"}],
    "RandomEqualize": [{}],
    "RandomErasing": [{}, {"p": 1.0, "value": "random"}, {"inplace": True}],
    "RandomGrayscale": [{}],
    "RandomHorizontalFlip": [{}, {"p": 1}],
    "RandomInvert": [{}],
    "RandomOrder": [{"transforms": FLIPS}],
    "RandomPerspective": [{}, {"distortion_scale": 0.2, "interpolation": "nearest"}],
    "RandomPhotometricDistort": [{}, {"hue": [-0.1, 0.1]}],
    "RandomPosterize": [{"bits": 3}],
    "RandomResizedCrop": [{"size": "size"}, {"size": "size", "scale": [0.5, 1.0]}],
    "RandomRotation": [{"degrees": 10}],
    "RandomShortestSize": [{"min_size": "size"}],
    "RandomSolarize": [{"threshold": 100}],
    "RandomVerticalFlip": [{}],
    "Resize": [{"size": "size"}],
    "ToDtype": [{"dtype": "float32", "scale": True}, {"dtype": "uint8", "scale": True}],
    "ToImage": [{}],
    "ToPureTensor": [{}],
    "ToTensor": [{}],
    "TrivialAugmentWide": [{}],
}
MISSING = "does not accept these arguments"
SHAPE = "expected images of shape"
REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "AutoAugment": [({"policy": "mnist"}, "AutoAugment.policy: expected one of imagenet, cifar10, svhn")],
    "CenterCrop": [({}, MISSING), ({"size": 6}, SHAPE), ({"size": "big"}, MISSING)],
    "ClampBoundingBoxes": [({}, "boxes")],
    "ClampKeyPoints": [({}, "boxes")],
    "ColorJitter": [({"hue": 3.0}, MISSING)],
    "Compose": [
        ({}, MISSING),
        ({"transforms": []}, "expected a list of transforms"),
        ({"transforms": ["Resiz"]}, "did you mean"),
    ],
    "ConvertBoundingBoxFormat": [({"format": "XYXY"}, "boxes")],
    "ConvertImageDtype": [
        ({"dtype": "int32"}, "ConvertImageDtype.dtype: expected one of uint8"),
        ({"dtype": [1]}, "expected one"),
    ],
    "CutMix": [({}, "train.cutmix_alpha"), ({"num_classes": 10}, "train.cutmix_alpha")],
    "ElasticTransform": [
        ({"sigma": 50.0}, "expected transforms that accept images"),
        ({"alpha": "much"}, MISSING),
    ],
    "FiveCrop": [({}, "five images"), ({"size": 4}, "five images")],
    "GaussianBlur": [({}, MISSING), ({"kernel_size": 2}, MISSING), ({"kernel_size": 99}, "got from GaussianBlur: ")],
    "JPEG": [({}, MISSING), ({"quality": 200}, MISSING)],
    "Lambda": [({}, "a file cannot hold"), ({"lambd": "x"}, "a file cannot hold")],
    "LinearTransformation": [({}, "matrix")],
    "MixUp": [({}, "train.mixup_alpha")],
    "Normalize": [({}, "data.pixel_statistics"), ({"mean": [0.5], "std": [0.5]}, "data.pixel_statistics")],
    "Pad": [({}, MISSING), ({"padding": 1}, SHAPE), ({"padding": 99, "padding_mode": "reflect"}, "got from Pad: ")],
    "RandomAffine": [({}, MISSING), ({"degrees": 5, "translate": [2.0, 2.0]}, MISSING)],
    "RandomApply": [
        ({}, MISSING),
        ({"transforms": "RandomInvert"}, "expected a list of transforms"),
        ({"transforms": [{"RandomInvert": 3}]}, "expected a name"),
        ({"transforms": [3]}, "expected a name"),
        ({"transforms": FLIPS, "p": 2.0}, MISSING),
        ({"transforms": FLIPS, "p": "often"}, MISSING),
        ({"transforms": [{"Resize": {"size": 6}}], "p": 0.0001}, SHAPE),
        ({"transforms": [{"ToDtype": {"dtype": "float32", "scale": True}}], "p": 0.0001}, "either always"),
        ({"transforms": [{"RandomOrder": {"transforms": ["MixUp"]}}]}, "train.mixup_alpha"),
    ],
    "RandomChoice": [
        ({}, MISSING),
        ({"transforms": FLIPS, "p": [1.0]}, MISSING),
        ({"transforms": FLIPS, "p": [0, 0]}, MISSING),
        ({"transforms": FLIPS, "p": [2.0, -1.0]}, "got from RandomChoice: "),
        ({"transforms": ["Identity", {"Resize": {"size": 6}}], "p": [0.999, 0.001]}, SHAPE),
    ],
    "RandomEqualize": [({"p": -1}, MISSING)],
    "RandomCrop": [({}, MISSING), ({"size": 99}, "got from RandomCrop: "), ({"size": 4}, SHAPE)],
    "RandomHorizontalFlip": [({"p": 3.0}, MISSING), ({"q": 3.0}, MISSING)],
    "RandomIoUCrop": [({}, "RandomResizedCrop instead")],
    "RandomOrder": [({}, MISSING), ({"transforms": [{"RandomCrop": {"size": 99}}]}, "got from RandomCrop: ")],
    "RandomPosterize": [({}, MISSING)],
    "RandomAdjustSharpness": [({}, MISSING)],
    "RandomResize": [({}, MISSING), ({"min_size": 7, "max_size": 40}, SHAPE)],
    "RandomResizedCrop": [({}, MISSING), ({"size": "size", "interpolation": "hamming"}, "got from RandomResizedCrop: ")],
    "RandomRotation": [({}, MISSING), ({"degrees": 45, "expand": True}, SHAPE)],
    "RandomShortestSize": [({}, MISSING), ({"min_size": [6, 7]}, SHAPE)],
    "RandomSolarize": [({}, MISSING)],
    "RandomZoomOut": [({}, SHAPE)],
    "Resize": [
        ({}, MISSING),
        ({"size": 6}, SHAPE),
        ({"size": "size", "interpolation": "bilinera"}, "got from Resize: Invalid interpolation mode"),
    ],
    "SanitizeBoundingBoxes": [({}, "boxes")],
    "SanitizeKeyPoints": [({}, "boxes")],
    "ScaleJitter": [({}, MISSING), ({"target_size": [8, 8]}, SHAPE)],
    "SetClampingMode": [({"clamping_mode": "hard"}, "boxes")],
    "TenCrop": [({"size": 4}, "ten images")],
    "ToDtype": [({}, "scale: expected true"), ({"dtype": "float32"}, "scale: expected true")],
    "ToPILImage": [({}, "an object of class Image; end with ToImage")],
    "Transform": [({}, "no transform 'Transform'")],
    "UniformTemporalSubsample": [({"num_samples": 1}, "videos")],
}
# what the number of channels or the size decides
ONE_SHAPE = {
    ("Grayscale", "grey"): None,
    ("Grayscale", "colour"): r"got \(1, 32, 32\); leave out what changes the number of channels",
    ("RGB", "grey"): r"got \(3, 8, 8\); leave out what changes the number of channels",
    ("RGB", "colour"): None,
    ("ElasticTransform", "grey"): "got from ElasticTransform: ",
    ("ElasticTransform", "colour"): None,
}


def _images(shape: str, count: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (count, *SHAPES[shape]), dtype=torch.uint8, generator=generator))


def _sized(arguments: dict[str, Any], size: int) -> dict[str, Any]:
    return {key: size if value == "size" else value for key, value in arguments.items()}


def _working() -> list[tuple[str, dict[str, Any]]]:
    return [(name, arguments) for name, cases in WORK.items() for arguments in cases]


def test_every_transform_is_in_a_table() -> None:
    assert len(ALL) > 60
    assert WORK.keys() | REFUSED.keys() | {name for name, _ in ONE_SHAPE} == ALL


def test_torchvisions_transforms_draw_from_torch_only() -> None:
    """Python's and NumPy's generators are then left alone, which saves as much time as a flip takes."""
    assert _draw_from_torch_only(build_transforms([{"RandomApply": {"transforms": FLIPS}}]))
    other = re.compile(r"^(import|from) random\b|\b(np|numpy)\.random\b", re.MULTILINE)
    folder = Path(v2.__file__).parent
    assert not [path for path in folder.rglob("*.py") if other.search(path.read_text(encoding="utf-8"))]


def test_a_transform_that_is_not_torchvisions_has_all_generators_keyed() -> None:
    def shift(image: Tensor) -> Tensor:
        return image + int(100 * random.random()) + np.random.randint(100)  # noqa: NPY002 # what is tested

    transforms = v2.Compose([v2.RandomApply([shift], p=1.0)])
    assert not _draw_from_torch_only(transforms)
    image, state = torch.zeros(1, 2, 2, dtype=torch.uint8), random.getstate()
    found = [transform_sample(transforms, image, 3, 1, index) for index in (0, 1, 0)]
    assert random.getstate() == state
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def _apply(items: list[Any], images: list[Tensor]) -> list[Tensor]:
    transforms = build_transforms(items)
    return [transform_sample(transforms, image, 3, 1, index) for index, image in enumerate(images)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "arguments"), _working())
def test_it_works_and_depends_on_the_sample_only(name: str, arguments: dict[str, Any], shape: str) -> None:
    images = _images(shape)
    kept = [image.clone() for image in images]
    items = [{name: _sized(arguments, SHAPES[shape][-1])}]
    check_transforms(items, images, seed=3)
    found = _apply(items, images)
    for image in found:
        assert type(image) is Tensor
        assert image.shape == SHAPES[shape]
        assert image.dtype in (torch.uint8, torch.float32)
        assert float(image.min()) >= 0
        assert float(image.max()) > 1
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 # the generator whose state must not matter
    assert all(torch.equal(one, other) for one, other in zip(found, reversed(_backwards(items, images)), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(images, kept, strict=True))


def _backwards(items: list[Any], images: list[Tensor]) -> list[Tensor]:
    transforms = build_transforms(items)
    return [transform_sample(transforms, images[index], 3, 1, index) for index in reversed(range(len(images)))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "arguments", "message"), [(name, *case) for name, cases in REFUSED.items() for case in cases])
def test_it_is_refused_in_one_line(name: str, arguments: dict[str, Any], message: str, shape: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        check_transforms([{name: _sized(arguments, SHAPES[shape][-1])}], _images(shape), seed=0)
    assert "\n" not in str(caught.value)
    assert re.fullmatch(
        r"train\.augmentation: .+; \S.+|train\.augmentation: \w+ does not accept .+; fix them", str(caught.value)
    )


@pytest.mark.parametrize(("name", "shape", "message"), [(*case, message) for case, message in ONE_SHAPE.items()])
def test_what_depends_on_the_images_is_found_on_them(name: str, shape: str, message: str | None) -> None:
    if message is None:
        check_transforms([name], _images(shape), seed=0)
        return
    with pytest.raises(ConfigError, match=message) as caught:
        check_transforms([name], _images(shape), seed=0)
    assert "\n" not in str(caught.value)


def test_what_changes_the_size_may_be_followed_by_a_crop_or_resize() -> None:
    for items in (["RandomZoomOut", {"Resize": {"size": 8}}], [{"Pad": {"padding": 3}}, {"RandomCrop": {"size": 8}}]):
        check_transforms(items, _images("grey"), seed=0)
        assert all(image.shape == (1, 8, 8) for image in _apply(items, _images("grey")))
    check_transforms(["ToPILImage", "RandomHorizontalFlip", "ToImage"], _images("colour"), seed=0)


def test_nested_lists_do_what_they_say() -> None:
    images = _images("grey")
    invert = {"RandomInvert": {"p": 1.0}}
    assert all(torch.equal(one, 255 - image) for one, image in zip(_apply([invert], images), images, strict=True))
    never, always = ([{"RandomApply": {"transforms": [invert], "p": p}}] for p in (0.0, 1.0))
    assert all(torch.equal(one, image) for one, image in zip(_apply(never, images), images, strict=True))
    assert all(torch.equal(one, 255 - image) for one, image in zip(_apply(always, images), images, strict=True))
    chosen = _apply([{"RandomChoice": {"transforms": ["Identity", invert]}}], images)
    kept = [torch.equal(one, image) for one, image in zip(chosen, images, strict=True)]
    assert 0 < sum(kept) < len(images)
    twice = [{"RandomOrder": {"transforms": [invert, {"Compose": {"transforms": [invert]}}]}}]
    assert all(torch.equal(one, image) for one, image in zip(_apply(twice, images), images, strict=True))


def _params(**train: Any) -> Params:
    return parse_params({"train": train, "model": {"width": 8}})


def test_a_training_is_not_built_with_transforms_that_fail_now_and_then(digits: Store) -> None:
    rare = {"RandomApply": {"transforms": [{"Resize": {"size": 6}}], "p": 0.001}}
    params = _params(augmentation=[rare])
    with pytest.raises(ConfigError, match=r"expected images of shape \(1, 8, 8\), got \(1, 6, 6\)"):
        build_training(digits, params.batch, params, weights=None)
    good = _params(augmentation=[{"RandomApply": {"transforms": [{"RandomCrop": {"size": 8, "padding": 1}}], "p": 0.001}}])
    build_training(digits, good.batch, good, weights=None).guard.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_fails_in_another_process_is_one_line(workers: int, digits: Store) -> None:
    train = TrainConfig.model_validate({"augmentation": [{"RandomCrop": {"size": 12}}]})
    with pytest.raises(ConfigError) as caught:
        next(TrainingBatches(digits, train, 10, workers).epoch(0))
    assert str(caught.value).startswith(
        "train.augmentation: expected transforms that accept images of shape (1, 8, 8), got from "
    )
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_all_that_work_are_the_same_bytes_for_any_number_of_workers(digits: Store) -> None:
    items = [{name: _sized(arguments, 8)} for name, arguments in _working() if name not in ("ToDtype", "ConvertImageDtype")]
    train = TrainConfig.model_validate({"augmentation": [{"RandomChoice": {"transforms": items}}]})
    alone, *others = (list(TrainingBatches(digits, train, 100, workers).epoch(0)) for workers in (0, 1, 3))
    for other in others:
        assert len(other) == len(alone) == 13
        for (images, labels), (same, same_labels) in zip(alone, other, strict=True):
            assert torch.equal(images, same)
            assert torch.equal(labels, same_labels)


def test_the_documented_list_works() -> None:
    text = Path(ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    items = parse_params(YAML(typ="safe", pure=True).load(example)).train.augmentation
    assert not isinstance(items, str)
    check_transforms(items, _images("grey"), seed=0)
    refused = text.partition("Refused by name")[2]
    for name in ("MixUp", "CutMix", "FiveCrop", "TenCrop", "RandomIoUCrop", "Lambda", "Normalize", "LinearTransformation"):
        assert f"`{name}`" in refused
