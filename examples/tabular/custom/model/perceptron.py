"""A multilayer perceptron."""

from itertools import pairwise

from torch import Tensor, nn

__all__ = ["Perceptron"]


class Perceptron(nn.Module):
    """Linear layers with layer normalisation, GELU and dropout.

    Args:
        num_outputs: numbers to predict.
        input_shape: ``(features,)``.
        width: of the hidden layers.
        depth: how many there are.
        dropout: probability.
    """

    def __init__(
        self, num_outputs: int, input_shape: tuple[int, ...], width: int = 64, depth: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        sizes = [input_shape[0], *([width] * depth)]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(before, after), nn.LayerNorm(after), nn.GELU(), nn.Dropout(dropout))
                for before, after in pairwise(sizes)
            )
        )
        self.head = nn.Linear(width, num_outputs)

    def forward(self, rows: Tensor) -> Tensor:
        """Return ``(n, num_outputs)`` of standardised rows ``(n, features)``."""
        return self.head(self.layers(rows))
