"""A transformer over characters."""

import torch
from torch import Tensor, nn

__all__ = ["Transformer"]

CHARACTERS = 96  # at least as many as custom/data/words.py has numbers


class Transformer(nn.Module):
    """Embeds characters and places, runs encoder layers, and averages over the characters of each word.

    Args:
        num_outputs: number of languages.
        input_shape: ``(length,)``.
        width: of the embedding.
        depth: encoder layers.
        heads: of attention.
        dropout: probability, in attention too.
    """

    def __init__(
        self,
        num_outputs: int,
        input_shape: tuple[int, ...],
        width: int = 32,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, width, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(input_shape[0], width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, rows: Tensor) -> Tensor:
        """Return logits ``(n, num_outputs)`` of character numbers ``(n, length)``, 0 after a word's end."""
        is_padding = rows == 0
        hidden = self.encoder(self.characters(rows) + self.places, src_key_padding_mask=is_padding)
        shares = (~is_padding).to(hidden.dtype).unsqueeze(2)
        return self.head((hidden * shares).sum(dim=1) / shares.sum(dim=1).clamp_min(1))
