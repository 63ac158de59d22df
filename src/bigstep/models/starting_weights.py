"""Starting weights from a local file. Nothing is unpickled: safetensors, or torch's files under ``weights_only``."""

import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from bigstep.errors import ModelError

__all__ = ["load_weights", "read_tensors"]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a ``.safetensors``, ``.pt`` or ``.pth`` file.

    Raises:
        ModelError: the file is missing, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file makes torch warn of what is refused below
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"model.weights: cannot read {path.name}: {error.strerror}; fix the path") from None
    except Exception as error:  # noqa: BLE001 # torch lets KeyError, struct.error and others out of its parsers
        raise ModelError(
            f"model.weights: expected a safetensors file or a state_dict that torch loads with weights_only, got "
            f"{path.name} ({type(error).__name__}); save the state_dict again"
        ) from None
    for name in ("state_dict", "model"):
        content = content.get(name, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"model.weights: expected a state_dict, got something else in {path.name}; save model.state_dict()")
    return content


def load_weights(network: nn.Module, path: Path, num_classes: int) -> None:
    """Copy tensors into ``network`` by name; a head for other classes, and statistics of replaced BatchNorm, are left out.

    Raises:
        ModelError: a tensor is missing or of another shape, elsewhere than in a head.
    """
    tensors = read_tensors(path)
    own = network.state_dict()
    for name, tensor in own.items():
        if name not in tensors:
            raise ModelError(
                f"model.weights: expected {name!r}, which {path.name} does not contain; use weights of the same architecture"
            )
        if tensors[name].shape != tensor.shape:
            if not _is_head(tensor, tensors[name], num_classes):
                raise ModelError(
                    f"model.weights: expected {name!r} of shape {tuple(tensor.shape)}, got "
                    f"{tuple(tensors[name].shape)} in {path.name}; use weights of the same architecture and image size"
                )
            tensors[name] = tensor
    surplus = [name for name in tensors if name not in own and not name.endswith(STATISTICS)]
    if surplus:
        raise ModelError(
            f"model.weights: expected the tensors of the architecture, got also {surplus[0]!r} in {path.name}; check model.name"
        )
    network.load_state_dict({name: tensors[name] for name in own})


def _is_head(own: Tensor, other: Tensor, num_classes: int) -> bool:
    return own.ndim == other.ndim and own.shape[0] == num_classes and own.shape[1:] == other.shape[1:]
