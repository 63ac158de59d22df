"""A small residual network of torchvision's blocks."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

__all__ = ["Residual"]


class Residual(nn.Module):
    """Two stages of residual blocks, the second at half the size.

    Args:
        num_classes: number of logits.
        channels: of the images.
        width: channels of the first stage.
        blocks: of each stage.
    """

    def __init__(self, num_classes: int, channels: int, width: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        half = nn.Sequential(nn.Conv2d(width, 2 * width, 1, stride=2, bias=False), nn.BatchNorm2d(2 * width))
        self.stages = nn.Sequential(
            *(BasicBlock(width, width) for _ in range(blocks)),
            BasicBlock(width, 2 * width, stride=2, downsample=half),
            *(BasicBlock(2 * width, 2 * width) for _ in range(blocks - 1)),
        )
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(n, num_classes)`` of images ``(n, channels, size, size)``."""
        return self.head(self.stages(self.stem(images)).mean(dim=(2, 3)))
