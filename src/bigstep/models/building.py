"""Build the network that the section ``model`` describes, with its starting weights."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigstep.config.model import TIMM, ModelConfig
from bigstep.data.manifest import Manifest
from bigstep.errors import ConfigError, ModelError
from bigstep.models.limits import check_small_cnn
from bigstep.models.norm_layers import replace_norms
from bigstep.models.small_cnn import SmallCNN
from bigstep.models.timm_models import build_timm
from bigstep.models.torch_internals import import_torchvision
from bigstep.step.preserved_state import preserved_state
from bigstep.user_code import call_user_code, is_user_code, load_user_code
from bigstep.user_places import place_of, user_code_line

__all__ = ["AUXILIARY_WEIGHTS", "InputShape", "build_network", "head_parameters"]

# share of the auxiliary heads' losses in training: Szegedy et al. 2014 and torchvision's reference training
AUXILIARY_WEIGHTS = {"googlenet": 0.3, "inception_v3": 0.4}


@dataclass(frozen=True)
class InputShape:
    """What a network is built for: images of ``channels`` x ``size`` x ``size``, ``num_classes`` outputs (in every task)."""

    channels: int
    size: int
    num_classes: int
    sample_shape: tuple[int, ...] = ()
    """Of samples that are no images; they have no channels and no size."""
    sample_dtype: str = "uint8"

    @classmethod
    def of(cls, manifest: Manifest) -> "InputShape":
        """Return that of prepared data."""
        counts = manifest.channels, manifest.size, len(manifest.classes)
        return cls(*counts, manifest.sample_shape, manifest.sample_dtype)

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Of one sample in a batch of a store."""
        return self.sample_shape or (self.channels, self.size, self.size)

    def example(self, model: ModelConfig, count: int) -> Tensor:
        """Return zeros for ``count`` samples, as they reach the network."""
        if not self.sample_shape:
            return torch.zeros(count, self.network_channels(model), self.size, self.size)
        is_float = self.sample_dtype.startswith("float")
        return torch.zeros(count, *self.sample_shape, dtype=torch.get_default_dtype() if is_float else torch.int64)

    def network_channels(self, model: ModelConfig) -> int:
        """Channels of the network's input: torchvision's take three."""
        takes_any = model.name == "small_cnn" or is_user_code(model.name) or model.name.startswith(TIMM)
        return self.channels if takes_any else 3


def build_network(model: ModelConfig, shape: InputShape, weights: Path | None = None) -> nn.Module:
    """Build the network with fresh weights, or those of ``weights``; torch's generator decides the fresh ones.

    Raises:
        ConfigError: the architecture does not support an option of the section.
        ModelError: the weights do not fit, or images of this size do not.
    """
    network = _architecture(model, shape)
    if model.dropout is not None:
        _set_dropout(network, model)
    norms = replace_norms(network, model.norm)
    if model.norm == "batch" and not norms:
        raise ConfigError(
            f"model.norm: expected group with model.name {model.name}, which has no BatchNorm, got batch; write group"
        )
    if is_user_code(model.name) and model.norm != "batch":
        network.replaced_norms = norms  # type: ignore[assignment] # the training names them
    _check_size(network, model, shape)
    if weights is not None:
        from bigstep.models.starting_weights import load_weights

        load_weights(network, weights, shape.num_classes)
    if model.freeze_backbone:
        heads = head_parameters(network, shape.num_classes)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in heads)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        fix = "set model.freeze_backbone=false, or end with nn.Linear or nn.Conv2d with one output per class"
        raise ModelError(
            f"model.name {model.name}: expected parameters to train, got none; "
            f"{fix if model.freeze_backbone else 'add some, or have them require a gradient'}"
        )
    return network


def head_parameters(network: nn.Module, num_classes: int) -> set[str]:
    """Return the names of the parameters of the layers with one output per class: the last such layer, and auxiliary heads."""
    layers = [name for name, module in network.named_modules() if _num_outputs(module) == num_classes]
    main = layers[-1:] + [name for name in layers if "aux" in name.lower()]
    return {f"{name}.{kind}" for name in main for kind in ("weight", "bias")}


def _num_outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None


def _architecture(model: ModelConfig, shape: InputShape) -> nn.Module:
    if model.name == "small_cnn" and not shape.sample_shape:
        return SmallCNN(
            channels=shape.channels,
            size=shape.size,
            num_classes=shape.num_classes,
            width=model.width,
            dropout=model.dropout or 0.0,
        )
    if is_user_code(model.name):
        return _own_network(model, shape)
    if shape.sample_shape:
        raise _no_images(model, shape)
    if model.name.startswith(TIMM):
        return build_timm(model, shape.channels, shape.num_classes)
    torchvision = import_torchvision()
    extra: dict[str, object] = {"init_weights": True} if model.name in AUXILIARY_WEIGHTS else {}
    if model.name.startswith("vit_"):
        extra["image_size"] = shape.size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            build = torchvision.models.get_model
            network: nn.Module = build(model.name, weights=None, num_classes=shape.num_classes, **extra)
            return network
    except (ValueError, RuntimeError, AssertionError) as error:
        raise _wrong_size(model, shape, error) from None


def _own_network(model: ModelConfig, shape: InputShape) -> nn.Module:
    function = load_user_code(model.name, "model", "model.name")
    offered: dict[str, object] = {
        "num_classes": shape.num_classes,
        "num_outputs": shape.num_classes,
        "input_shape": shape.tensor_shape,
    }
    if not shape.sample_shape:
        offered |= {"channels": shape.channels, "image_size": shape.size}
    network = call_user_code(function, model.name, "model.name", offered, model.options)
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"model.name {model.name} ({place_of(function)}): expected a torch.nn.Module, got a {type(network).__name__}; "
            "return the network"
        )
    return network


def _set_dropout(network: nn.Module, model: ModelConfig) -> None:
    layers = [module for module in network.modules() if isinstance(module, (nn.Dropout, nn.Dropout2d))]
    if not layers:
        raise ConfigError(
            f"model.dropout: expected null with model.name {model.name}, which has no dropout, got {model.dropout}; write null"
        )
    for layer in layers:
        layer.p = float(model.dropout or 0.0)


def _check_size(network: nn.Module, model: ModelConfig, shape: InputShape) -> None:
    if model.name == "small_cnn":
        check_small_cnn(shape.size)
    if is_user_code(model.name):
        _check_own(network, model, shape)
        return
    modes = (False, True) if model.name in AUXILIARY_WEIGHTS else (False,)  # auxiliary heads run in training only
    try:
        for training in modes:
            _run_once(network.train(training), model, shape)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise _wrong_size(model, shape, error) from None
    network.train()


def _run_once(network: nn.Module, model: ModelConfig, shape: InputShape) -> Any:
    images = shape.example(model, 2)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), preserved_state(network):
        return network(images)


def _check_own(network: nn.Module, model: ModelConfig, shape: InputShape) -> None:
    taken, what = (2, *shape.tensor_shape), "samples" if shape.sample_shape else "images"
    try:
        logits = _run_once(network.eval(), model, shape)
    except Exception as error:
        problem = user_code_line(error) or f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}; correct the code"
        raise ModelError(f"model.name {model.name}: expected a network for {what} of shape {taken}, got {problem}") from error
    network.train()
    for name, value in network.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"model.name {model.name}: expected tensors in its state, which is saved, got a {type(value).__name__} in "
                f"{name!r}; keep it in a buffer (register_buffer)"
            )
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, shape.num_classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        place = place_of(load_user_code(model.name, "model", "model.name"))
        raise ModelError(
            f"model.name {model.name} ({place}): expected logits of shape {(2, shape.num_classes)} for {what} of "
            f"{taken}, got {found}; return one number per class, label or target"
        )


def _no_images(model: ModelConfig, shape: InputShape) -> ConfigError:
    return ConfigError(
        f"model.name: expected a network of your own for samples of shape {shape.sample_shape}, got {model.name}, which takes "
        "images; write custom/model/file.py:name (docs/custom.md)"
    )


def _wrong_size(model: ModelConfig, shape: InputShape, error: Exception) -> ModelError:
    problem = str(error).splitlines()[0]
    return ModelError(
        f"model.name {model.name} does not accept images of {shape.size} x {shape.size} pixels ({problem}); "
        f"set data.image_size, for example to {299 if model.name == 'inception_v3' else 224}"
    )
