"""A small convolutional network for images of 8 to 64 pixels, quick enough for a laptop."""

import itertools
from typing import final

from torch import Tensor, nn

__all__ = ["SmallCNN"]

MAX_SIDE = 8  # places the head sees each way, which bounds its size


@final
class SmallCNN(nn.Module):
    """Convolutions (3 x 3) of width w, 2w and 4w, the first two followed by halving, then a linear head on all places."""

    def __init__(self, *, channels: int, size: int, num_classes: int, width: int, dropout: float) -> None:
        """Build for images of shape ``(channels, size, size)``, with BatchNorm (see :mod:`bigstep.models.norm_layers`)."""
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width)
        blocks: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            blocks.append(nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False))
            if fan_out != widths[-1]:
                blocks.append(nn.MaxPool2d(2))  # before the norm, which then has a quarter of the work
            blocks += [nn.BatchNorm2d(fan_out), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*blocks)
        side = min(size // 4, MAX_SIDE)
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(side * side * widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, channels, size, size)`` to logits ``(n, num_classes)``."""
        logits: Tensor = self.head(self.dropout(self.pool(self.features(images)).flatten(1)))
        return logits
