"""Thirty more ways in which samples depend on each other, thought up after the self-check was first written and frozen."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hostile import BACKWARD, CLASSES, EACH_LOSS, Between, Case, N, Towers, Trial, around, batch, between, losing


def barlow_twins(outputs: Any, targets: Tensor) -> Tensor:
    first, second = (F.normalize(view - view.mean(0), dim=0) for view in outputs)
    off = (first.T @ second - torch.eye(first.shape[1])).square().sum()
    return off / len(targets) * torch.ones(len(targets))


def variance_hinge(outputs: Tensor, targets: Tensor) -> Tensor:
    spread = F.relu(1 - outputs.var(0, unbiased=False)).sum()
    return F.cross_entropy(outputs, targets, reduction="none") + spread


def sinkhorn(outputs: Any, _targets: Tensor) -> Tensor:
    with torch.no_grad():
        plan = (outputs[0] * 3).exp()
        for _ in range(3):
            plan = plan / plan.sum(0) / CLASSES
            plan = plan / plan.sum(1, keepdim=True)
    return -(plan * outputs[1].log_softmax(1)).sum(1)


def hardest_half(outputs: Tensor, targets: Tensor) -> Tensor:
    each = F.cross_entropy(outputs, targets, reduction="none")
    return each * (each >= each.topk((len(each) + 1) // 2).values[-1])


def balanced_by_count(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    counts = torch.bincount(targets, minlength=CLASSES).clamp(1)
    return F.cross_entropy(outputs, targets, reduction="none"), (1 / counts)[targets]


def worst_case(outputs: Tensor, targets: Tensor) -> Tensor:
    each = F.cross_entropy(outputs, targets, reduction="none")
    return each * each.detach().softmax(0) * len(each)


def by_positives(outputs: Tensor, targets: Tensor) -> Tensor:
    each = F.binary_cross_entropy_with_logits(outputs[:, 0], (targets == 0).double(), reduction="none")
    return each * len(targets) / (targets == 0).sum().clamp(1)


class Longest(nn.Module):
    """Pads its sequences to the longest of them, and averages over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, sequences: list[Tensor]) -> Tensor:
        padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        return self.head(torch.tanh(self.first(padded)).mean(1))


def longest() -> Trial:
    return Trial(Longest(), inputs=[batch()[0][[index] * (1 + index % 5)] for index in range(N)])


def deduplicated(hidden: Tensor) -> Tensor:
    _, inverse, counts = torch.unique((hidden[:, 0] * 2).round(), return_inverse=True, return_counts=True)
    return hidden / counts[inverse][:, None]


def whitened(hidden: Tensor) -> Tensor:
    covariance = hidden.T @ hidden / len(hidden) + torch.eye(hidden.shape[1])
    return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), hidden.T, upper=False).T


def nearest_neighbours(hidden: Tensor) -> Tensor:
    nearest = torch.cdist(hidden, hidden).topk(min(2, len(hidden)), largest=False).indices
    return hidden[nearest].mean(1)


class OverTheBatch(nn.Module):
    """A layer that takes sequences first, given samples first."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(2, 8), layer, nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs.view(len(inputs), 3, 2))
        made = self.layer(hidden, hidden, hidden) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(hidden)
        return self.head(made[0].mean(1))


class Queue(nn.Module):
    """Past features in a Python list, as a memory bank."""

    def __init__(self) -> None:
        super().__init__()
        self.past: list[Tensor] = []

    def forward(self, hidden: Tensor) -> Tensor:
        context = torch.stack(self.past).mean(0) if self.past else torch.zeros(8)
        self.past = (self.past + list(hidden.detach()))[-32:]
        return hidden + context


class Ring(nn.Module):
    """Past features in a buffer with a pointer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("past", torch.zeros(32, 8))
        self.pointer = 0

    def forward(self, hidden: Tensor) -> Tensor:
        made = hidden + self.past.mean(0)
        for row in hidden.detach():
            self.past[self.pointer % 32] = row
            self.pointer += 1
        return made


class Annealed(nn.Module):
    """A temperature that falls with the number of passes."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.passes += 1
        return hidden / (1 + 0.1 * self.passes)


class Consed(nn.Module):
    """A cache by rounded value: the first that falls into a bucket stands for all."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, Tensor] = {}

    def forward(self, hidden: Tensor) -> Tensor:
        rows = [row + self.known.setdefault(int(row[0].round()), row.detach()) for index, row in enumerate(hidden)]
        return torch.stack(rows)


class CentredGradient(torch.autograd.Function):
    """Passes values on, and takes the batch's mean off their gradients."""

    @staticmethod
    def forward(_ctx: Any, hidden: Tensor) -> Tensor:
        return hidden.clone()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient - gradient.mean(0)


def normalised_gradient(hidden: Tensor) -> Tensor:
    if hidden.requires_grad:
        hidden.register_hook(lambda gradient: gradient / gradient.norm())
    return hidden * 1


def clipped() -> Trial:
    model = Between(torch.tanh)
    model.last.register_full_backward_hook(lambda _module, inner, _outer: (inner[0].clamp(max=inner[0].mean()),))
    return Trial(model)


def quantised(hidden: Tensor) -> Tensor:
    scale = hidden.detach().abs().max() / 7
    return hidden + ((hidden / scale).round() * scale - hidden).detach() + hidden * (hidden - (hidden / scale).round() * scale)


class Experts(nn.Module):
    """Two experts, each of which takes as many samples as its capacity: the first that come."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, hidden: Tensor) -> Tensor:
        chosen, made = (hidden[:, 0] > 0).long(), hidden * 1
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero()[:, 0][: (len(hidden) + 3) // 4]
            made = made.index_add(0, mine, expert(hidden[mine]))
        return made


class Carried(nn.Module):
    """A recurrent state that is carried from one pass into the next."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.state = nn.RNNCell(8, 8), None

    def forward(self, hidden: Tensor) -> Tensor:
        before = torch.zeros(8) if self.state is None else self.state
        made = self.cell(hidden, before.expand(len(hidden), 8))
        self.state = made[-1].detach()
        return made


class DataInit(nn.Module):
    """Sets its parameters from the first samples that it sees (ActNorm)."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.ready = nn.Parameter(torch.zeros(8)), False

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.ready:
            self.shift.data.copy_(-hidden.detach().mean(0))
            self.ready = True
        return hidden + self.shift


class EarlyExit(nn.Module):
    """Leaves out a layer where the batch as a whole is confident."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden if float(hidden.detach().mean()) > 0 else hidden + self.inner(hidden)


COUPLINGS = [
    Case("Barlow Twins: correlation over the batch", losing(barlow_twins, Towers), words=EACH_LOSS),
    Case("variance hinge over the batch (VICReg)", losing(variance_hinge), words=EACH_LOSS),
    Case("balanced assignment by Sinkhorn's iteration (SwAV)", losing(sinkhorn, Towers), words=EACH_LOSS),
    Case("only the hardest half of the batch", losing(hardest_half), words=EACH_LOSS),
    Case("weights by class counts of the batch", losing(balanced_by_count), words=EACH_LOSS),
    Case("softmax over the losses as weights (worst case)", losing(worst_case), words=EACH_LOSS),
    Case("division by the number of positives", losing(by_positives), words=EACH_LOSS),
    Case("padding to the longest, mean over all positions", longest),
    Case("cumulative sum over the batch", between(lambda z: z.cumsum(0))),
    Case("running maximum over the batch", between(lambda z: z.cummax(0).values)),
    Case("duplicates share one weight (torch.unique)", between(deduplicated)),
    Case("whitening by the batch's covariance", between(whitened)),
    Case("graph of nearest neighbours in the batch", between(nearest_neighbours)),
    Case("attention over samples (batch_first forgotten)", lambda: Trial(OverTheBatch(nn.MultiheadAttention(8, 2)))),
    Case("recurrence over samples (batch_first forgotten)", lambda: Trial(OverTheBatch(nn.LSTM(8, 8)))),
    Case("memory bank in a Python list", lambda: around(Queue())),
    Case("memory bank in a buffer with a pointer", lambda: around(Ring())),
    Case("temperature by number of passes", lambda: around(Annealed())),
    Case("cache by rounded value in a dictionary", lambda: around(Consed()), "exact"),
    Case("centred gradient in an autograd.Function", between(CentredGradient.apply), words=BACKWARD),
    Case("normalised gradient in a tensor's hook", between(normalised_gradient), words=BACKWARD),
    Case("clipped gradient in a module's backward hook", clipped, words=BACKWARD),
    Case("Fourier transform over the batch", between(lambda z: z + torch.fft.fft(z, dim=0).real)),
    Case("quantisation by the batch's largest value", between(quantised)),
    Case("division by the batch's largest singular value", between(lambda z: z / torch.linalg.matrix_norm(z, 2))),
    Case("layer norm over the whole batch", between(lambda z: F.layer_norm(z, z.shape))),
    Case("experts with a capacity, first come first served", lambda: around(Experts())),
    Case("recurrent state carried into the next pass", lambda: around(Carried())),
    Case("parameters set from the first samples (ActNorm)", lambda: around(DataInit())),
    Case("a layer left out by the batch's mean", lambda: around(EarlyExit())),
]

MISSED = {"a layer left out by the batch's mean": (8,)}
"""What the self-check does not see, with the micro-batch sizes at which it does not."""
