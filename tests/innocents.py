"""Models that treat samples apart, each with something that might make a check suspicious: none may be refused or warned of."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from hostile import CLASSES, Case, Trial, around, mlp


class Recurrent(nn.Module):
    """An LSTM over sequences of unequal lengths, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 8, 2, batch_first=True, bidirectional=True), nn.Linear(16, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        lengths = 1 + (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
        packed = pack_padded_sequence(inputs.view(-1, 3, 2), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.lstm(packed)[1][0][-2:].transpose(0, 1).flatten(1))


class Transformer(nn.Module):
    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(2, 8), nn.Linear(8, CLASSES)
        self.position = nn.Parameter(torch.randn(3, 8))
        self.layer, self.batch_first = nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=batch_first), batch_first

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs.view(-1, 3, 2)) + self.position
        return self.head(self.layer(hidden).mean(1) if self.batch_first else self.layer(hidden.transpose(0, 1)).mean(0))


class Bags(nn.Module):
    """Bags of words whose offsets are made from the batch, and rows that are kept short in place."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.rows = nn.EmbeddingBag(20, 8), nn.Embedding(20, 8, max_norm=1.0)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        offsets = torch.arange(0, words.numel(), words.shape[1])
        return self.head(self.bag(words.flatten(), offsets) + self.rows(words).mean(1))


class Recomputed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.inner, self.last = (
            nn.Linear(6, 8),
            nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3)),
            nn.Linear(8, CLASSES),
        )
        self.reentrant = reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(checkpoint(self.inner, self.first(inputs), use_reentrant=self.reentrant))


class Tied(nn.Module):
    """One matrix for words in and words out, and parts that do not learn or take no part."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.frozen, self.unused = nn.Embedding(CLASSES, 8), nn.Linear(6, 8), nn.Linear(3, 3)
        self.frozen.requires_grad_(requires_grad=False)
        self.middle = nn.Linear(8, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.middle(self.frozen(inputs)) @ self.words.weight.T


class Remembering(nn.Module):
    """Remembers what it last saw, and uses none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last_size, self.sizes, self.latest = mlp(), 0, [], None
        self.register_buffer("positions", torch.arange(6.0), persistent=False)
        self.cache: dict[int, Tensor] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        self.last_size, self.latest = len(inputs), inputs.detach()
        self.sizes.append(len(inputs))
        causal = self.cache.setdefault(len(inputs), torch.ones(len(inputs), 1, dtype=inputs.dtype))
        return self.inner(inputs * causal + self.positions)


class Branching(nn.Module):
    """Runs each sample through the branch of its sign, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.branches, self.head = nn.ModuleList([nn.Linear(6, 8), nn.Linear(6, 8)]), nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.stack([self.branches[int(row[0] > 0)](row).tanh() for row in inputs]))


class Scheduled(nn.Module):
    """Returns a dictionary, and hooks that clip each sample's own gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        hidden = self.first(inputs)
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: gradient.sign() * 0.01)
        return {"logits": self.last(hidden), "hidden": hidden}


def scheduled_loss(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs["logits"], targets, reduction="none") + outputs["hidden"].square().mean(1)


def scheduled() -> Trial:
    return Trial(Scheduled(), scheduled_loss, mean=lambda outputs, targets: scheduled_loss(outputs, targets).mean())


def images(*layers: nn.Module) -> Trial:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(16, 2, 8, 8, generator=generator)
    return Trial(nn.Sequential(nn.Conv2d(2, 8, 3), *layers, nn.Flatten(), nn.LazyLinear(CLASSES)), inputs=pictures)


def convolutional() -> Trial:
    trial = images(nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=4), nn.AdaptiveAvgPool2d(1))
    trial.model(trial.inputs)
    return trial


def evaluated() -> Trial:
    trial = around(nn.BatchNorm1d(8), nn.Dropout(0.5))
    trial.model.eval()
    return trial


def words() -> Trial:
    return Trial(Bags(), inputs=torch.randint(0, 20, (16, 5), generator=torch.Generator().manual_seed(0)))


def normed() -> Trial:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 8)),
        nn.LayerNorm(8),
        nn.RMSNorm(8),
        parametrizations.orthogonal(nn.Linear(8, 8)),
    )
    return Trial(model.append(nn.PReLU()).append(nn.Linear(8, CLASSES)))


def seeded(model: nn.Module) -> Trial:
    return Trial(model, options={"seed": 5})


INNOCENTS = [
    Case("bidirectional LSTM over packed sequences of unequal lengths", lambda: Trial(Recurrent()), "exact"),
    Case("transformer with dropout, batch first", lambda: seeded(Transformer(batch_first=True)), "exact"),
    Case("transformer with dropout, sequence first", lambda: seeded(Transformer(batch_first=False)), "exact"),
    Case("grouped convolutions, GroupNorm, pooling", convolutional, "exact"),
    Case("embedding bags, and embeddings with max_norm", words, "exact"),
    Case("weight norm, layer norm, RMS norm, orthogonal weights", normed, "exact"),
    Case("checkpointed blocks with dropout", lambda: seeded(Recomputed(reentrant=False)), "exact"),
    Case("checkpointed blocks with dropout, reentrant", lambda: seeded(Recomputed(reentrant=True)), "exact"),
    Case("tied weights, frozen and unused parts", lambda: Trial(Tied()), "exact"),
    Case("attributes and caches by batch size", lambda: Trial(Remembering()), "exact"),
    Case("a branch for each sample, by its value", lambda: Trial(Branching()), "exact"),
    Case("an output of several tensors, and hooks that keep samples apart", scheduled, "exact"),
    Case("BatchNorm and dropout in evaluation mode", evaluated, "exact"),
]
