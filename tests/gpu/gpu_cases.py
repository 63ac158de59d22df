"""Models and batches of the checks, made on the CPU and moved, so that every device has the same."""

import torch
from torch import Tensor, nn

CLASSES = 5


class Blocks(nn.Module):
    """Convolutions with GroupNorm, dropout and a residual branch."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.dropout, self.channels = nn.Dropout(dropout), nn.Dropout2d(dropout)
        self.head = nn.Linear(8 * 16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(images)))
        hidden = hidden + self.channels(torch.relu(self.second(hidden)))
        logits: Tensor = self.head(self.dropout(nn.functional.adaptive_avg_pool2d(hidden, 4).flatten(1)))
        return logits


class Attention(nn.Module):
    """A transformer's layer over the pixels of an image."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(12, 2, 16, dropout=dropout, batch_first=True)
        self.layer.self_attn.dropout = 0.0  # fused attention draws numbers of its own, and is refused
        self.head = nn.Linear(12, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(2)[:, :, :32].reshape(len(images), 8, 12)
        logits: Tensor = self.head(self.layer(rows).mean(dim=1))
        return logits


KINDS = {"convolutions": Blocks, "attention": Attention}


def build(kind: str, device: torch.device, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = KINDS[kind](dropout)
    return model.to(device, dtype)


def batch(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 8, 8, dtype=dtype, generator=generator)
    return images, torch.arange(count) % CLASSES


def flat(model: nn.Module) -> Tensor:
    """All gradients, on the CPU."""
    return torch.cat([p.grad.detach().double().flatten().cpu() for p in model.parameters() if p.grad is not None])


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
