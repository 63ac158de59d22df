"""A network of your own; `model.name: custom/model/net.py:Net` in params.yaml trains it."""

from torch import Tensor, nn

__all__ = ["Net"]


class Net(nn.Module):
    """Two convolutions and a linear layer.

    Args:
        num_classes: number of logits.
        channels: 1 for grey images, 3 for colour.
        width: channels of the first convolution; ``model.options: {width: 32}`` sets it.
    """

    def __init__(self, num_classes: int, channels: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.ReLU(),
        )
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(n, num_classes)`` of normalised images ``(n, channels, size, size)``."""
        return self.head(self.features(images).mean(dim=(2, 3)))
