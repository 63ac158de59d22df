"""A network with its preprocessing inside: stored or raw uint8 images go in."""

from typing import Any, final

import torch
from torch import Tensor, nn

from bigstep.data.resize import centre_resize
from bigstep.models.torch_internals import assert_flag
from bigstep.tasks.classification import Classification
from bigstep.tasks.task import Task

__all__ = ["CheckedClassifier", "Classifier", "ServedClassifier"]

NO_PIXELS = (
    "inputs: expected pixels, integers from 0 to 255, got fractions, values outside of that range, or none above 1; "
    "multiply pixels from 0 to 1 by 255 and round them"
)


@final
class Classifier(nn.Module):
    """Normalises stored images, fits their channels to the network, and runs it.

    Grey images reach a three-channel network repeated three times; colour images a one-channel network as their luma.
    Other samples are normalised where they are floating-point numbers; integers reach the network as int64.
    """

    mean: Tensor
    std: Tensor
    luma: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        network_channels: int,
        memory_format: torch.memory_format = torch.contiguous_format,
        sample_shape: tuple[int, ...] = (),
        sample_dtype: str = "uint8",
    ) -> None:
        """Wrap ``network``; ``mean`` and ``std`` are those of the stored channels, on the scale 0 to 1.

        Samples that are no images have a shape and a type; their mean and deviation are those along the first axis.
        """
        super().__init__()
        self.network = network
        self.sample_shape = sample_shape
        self.input_dtype: torch.dtype = getattr(torch, sample_dtype)
        if sample_shape and not mean:
            mean, std = (0.0,), (1.0,)
        view = (1, -1, *(1,) * (max(len(sample_shape), 1) - 1)) if sample_shape else (1, -1, 1, 1)
        self.network_channels = network_channels
        self.memory_format = memory_format
        # not in the state_dict: they are data, kept in model.json
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).float().view(view), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64).float().view(view), persistent=False)
        self.register_buffer("luma", torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Any:
        """Map uint8 images ``(n, channels, size, size)`` to the network's output: logits ``(n, num_classes)``."""
        if self.sample_shape:
            return self.network(self._standardise(images) if self.input_dtype.is_floating_point else images.long())
        pixels = self._normalise(images)
        if pixels.shape[1] > self.network_channels:
            pixels = (pixels * self.luma).sum(dim=1, keepdim=True)
        elif pixels.shape[1] < self.network_channels:
            pixels = pixels.expand(-1, self.network_channels, -1, -1)
        return self.network(pixels.contiguous(memory_format=self.memory_format))

    def _standardise(self, numbers: Tensor) -> Tensor:
        """Subtract before float64 is rounded: of a time in seconds since 1970 float32 keeps two minutes."""
        wide = numbers if numbers.dtype == torch.float64 else numbers.to(self.mean.dtype)
        return ((wide - self.mean) / self.std).to(self.mean.dtype)

    def _normalise(self, images: Tensor) -> Tensor:
        if images.shape[1] == 1 or images.shape[1] != self.network_channels:
            return (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        # in place, plane by plane: at least twice as fast for images as stored, whose channels come last
        pixels = images.to(self.mean.dtype, memory_format=torch.contiguous_format, copy=True)
        return pixels.div_(255).sub_(self.mean).div_(self.std)


@final
class ServedClassifier(nn.Module):
    """Raw images of any size in, what the task predicts out: class probabilities."""

    def __init__(self, classifier: nn.Module, size: int, task: Task | None = None) -> None:
        """Wrap ``classifier``, trained on images of ``size`` pixels a side; without ``task`` on classes."""
        super().__init__()
        self.classifier = classifier
        self.size = size
        self.task = task or Classification(())

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images ``(n, height, width, channels)`` to probabilities or values ``(n, outputs)`` in float32."""
        return self.task.predict(self.classifier(centre_resize(images, self.size)))


@final
class CheckedClassifier(nn.Module):
    """What is exported: a :class:`ServedClassifier` for numbers out of JSON, which refuses those that are no pixels.

    MLflow casts JSON to the type in the model's signature before it checks anything: as uint8, 0.9 becomes 0. So the
    signature says float32, and the exported program checks the values itself.
    """

    def __init__(self, served: nn.Module) -> None:
        """Wrap ``served``, which takes uint8."""
        super().__init__()
        self.served = served

    def forward(self, images: Tensor) -> Any:
        """Map whole numbers in float32 ``(n, height, width, channels)`` to what ``served`` makes of them as uint8.

        Raises:
            RuntimeError: a number is no pixel; or the largest is 1, as where pixels were divided by 255.
        """
        are_pixels = ((images == images.round()) & (images >= 0) & (images <= 255)).all()
        are_shares = (images == 1).any() & (images <= 1).all()
        flag = (are_pixels & ~are_shares).float().item()
        assert_flag(flag, NO_PIXELS)
        return self.served(images.to(torch.uint8))
