"""Models, losses and batches that are hard to accumulate exactly, as data: what each is, and what has to happen with it.

``exact``: equal to one pass of torch over the whole batch. ``refused``: an exception with these words, and no gradient left.
``warned``: an ExactnessWarning with these words. The page docs/guarantees.md is written from these lists.
"""

import dataclasses
import functools
import random
import re
from collections import UserDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bigstep import losses

N, CLASSES = 16, 4
EACH_LOSS = "loss: expected a sum over samples, each treated apart from the others"
APART = (
    "model: expected layers that treat samples apart, got … whose result for a sample depends on the others in the pass or on "
    "their number"
)
STATE = "model: expected a state that does not depend on micro_batch_size, got the buffer"
RANDINT = "model: expected random calls that can be keyed by sample, got randint"
RANDPERM = "model: expected random calls that can be keyed by sample, got randperm"
BACKWARD = "model: expected backward passes that treat samples apart"
FOREIGN = "model: expected random numbers from torch, got some from "
UNCHECKED = "not checked whether gradients depend on micro_batch_size"


@dataclasses.dataclass
class Trial:
    """One thing to try: in float64, made again for each micro-batch size."""

    model: nn.Module
    loss: Any = None
    inputs: Any = None
    targets: Any = None
    mean: Callable[[Any, Any], Tensor] = F.cross_entropy
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    others: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        inputs, labels = batch()
        self.inputs = inputs if self.inputs is None else self.inputs
        self.targets = labels if self.targets is None else self.targets
        self.loss = losses.CrossEntropy() if self.loss is None else self.loss

    def leaves(self) -> list[Tensor]:
        """Return every tensor that may receive a gradient."""
        modules = [module for module in (self.model, self.loss) if isinstance(module, nn.Module)]
        return [parameter for module in modules for parameter in module.parameters()] + list(self.others)


@dataclasses.dataclass(frozen=True)
class Case:
    """A line of the list; ``words`` are those that the user sees, with an ellipsis for what varies."""

    name: str
    make: Callable[[], Trial]
    outcome: str = "refused"
    words: str = APART
    sizes: tuple[int, ...] = (8, 3, 1)

    def is_said_in(self, text: str) -> bool:
        """Return whether the words are in ``text``, in this order."""
        return re.search(".*".join(re.escape(words.strip()) for words in self.words.split("…")), text, re.DOTALL) is not None


def batch() -> tuple[Tensor, Tensor]:
    """Return 16 samples of six numbers, and their labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, 6, generator=generator), torch.randint(0, CLASSES, (N,), generator=generator)


class Between(nn.Module):
    """Something that is done between two layers that learn."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, CLASSES)
        self.between = between

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.between(self.first(inputs)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, CLASSES))


def between(function: Callable[[Tensor], Tensor], **options: Any) -> Callable[[], Trial]:
    return lambda: Trial(Between(function), options=options)


def losing(loss: Callable[[Any, Any], Any], make: Callable[[], nn.Module] = mlp, **options: Any) -> Callable[[], Trial]:
    return lambda: Trial(make(), loss, options=options)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(inputs), self.b(inputs)


def infonce(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs[0] @ outputs[1].T * 3, torch.arange(len(targets)), reduction="none")


def clip_loss(outputs: Any, targets: Tensor) -> Tensor:
    similar, own = F.normalize(outputs[0]) @ F.normalize(outputs[1]).T * 10, torch.arange(len(targets))
    return (F.cross_entropy(similar, own, reduction="none") + F.cross_entropy(similar.T, own, reduction="none")) / 2


def triplet(outputs: Tensor, targets: Tensor) -> Tensor:
    distances, same = torch.cdist(outputs, outputs), targets[:, None] == targets[None]
    return F.relu((distances * same).amax(1) - (distances + same * 1e3).amin(1) + 0.5)


class Texts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.embedding, self.head = nn.Linear(6, 8), nn.Embedding(40, 8), nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor, texts: list[str]) -> Tensor:
        embedded = [self.embedding(torch.tensor(len(text))) for _, text in zip(inputs, texts, strict=False)]
        return self.head(torch.tanh(self.a(inputs) + torch.stack(embedded)))


class Shapes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, CLASSES)

    def forward(self, *inputs: Tensor) -> Tensor:
        samples = inputs[0] if len(inputs) == 1 else inputs
        return self.head(torch.stack([sample.mean(0) for sample in samples]))


class Scaled(nn.Module):
    """Takes a NumPy array beside its inputs, and does not mind how long that is."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor, factors: Any) -> Tensor:
        return self.head(inputs * torch.as_tensor(factors[: len(inputs)]))


@dataclasses.dataclass
class Record:
    values: Tensor
    scale: int = 3


class OfRecord(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, CLASSES)

    def forward(self, record: Any = None, *, ids: Any = None, flag: bool = False) -> Any:
        del flag
        return self.head(ids if record is None else record.values * record.scale)


class Output:
    """As a library of models returns."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class WithOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, inputs: Tensor) -> Output:
        return Output(self.inner(inputs))


class ArcFace(nn.Module):
    """A loss with parameters of its own, and weights."""

    def __init__(self) -> None:
        super().__init__()
        self.centres, self.scale = nn.Parameter(torch.randn(CLASSES, CLASSES)), nn.Parameter(torch.tensor(3.0))
        self.register_buffer("weights", torch.tensor([1.0, 2.0, 3.0, 0.5]))

    def forward(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.normalize(outputs) @ F.normalize(self.centres).T * self.scale
        return F.cross_entropy(logits, targets, reduction="none"), self.weights[targets]

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each, weights = self(outputs, targets)
        return (each * weights).sum() / weights.sum()


def arcface() -> Trial:
    loss = ArcFace()
    return Trial(mlp(), loss, mean=loss.mean)


def arcface_in_a_function() -> Trial:
    loss = ArcFace()
    return Trial(mlp(), functools.partial(loss), mean=loss.mean, others=tuple(loss.parameters()))


def learned_inputs() -> Trial:
    inputs, weights = batch()[0].requires_grad_(), torch.tensor([1.0, 2.0, 3.0, 0.5])

    def weighted(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(outputs, targets, reduction="none"), weights[targets]

    return Trial(mlp(), weighted, inputs, mean=functools.partial(F.cross_entropy, weight=weights), others=(inputs,))


def encoded_inputs() -> Trial:
    encoder = nn.Linear(6, 6)
    return Trial(mlp(), inputs=encoder(batch()[0]), others=tuple(encoder.parameters()))


def negative_sampling(outputs: Tensor, targets: Tensor) -> Tensor:
    others = torch.randint(0, CLASSES, (len(targets),))
    return F.relu(0.5 - outputs.gather(1, targets[:, None])[:, 0] + outputs.gather(1, others[:, None])[:, 0])


def shuffled_negatives(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none") * outputs[torch.randperm(len(targets)), 0].exp()


def time_major(hidden: Tensor) -> Tensor:
    steps = hidden.view(len(hidden), 2, 4).transpose(0, 1)
    return F.dropout(steps.reshape(-1, 4), 0.5).view(2, len(hidden), 4).transpose(0, 1).reshape(len(hidden), 8)


def two_views(hidden: Tensor) -> Tensor:
    dropped = F.dropout(torch.cat([hidden, 2 * hidden]), 0.5)
    return dropped[: len(hidden)] + dropped[len(hidden) :]


def stacked_views(hidden: Tensor) -> Tensor:
    return F.dropout(torch.stack([hidden, hidden * 2]).flatten(0, 1), 0.5).view(2, len(hidden), 8).sum(0)


def sorted_rows(hidden: Tensor) -> Tensor:
    order = hidden.sum(1).argsort()
    return F.dropout(hidden[order], 0.5)[order.argsort()]


class Packed(nn.Module):
    """Dropout between the layers of a packed LSTM, which lies time step by time step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 8, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        packed = pack_padded_sequence(inputs.view(len(inputs), 3, 2), torch.full((len(inputs),), 3), batch_first=True)
        return self.head(pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0].sum(1))


def numpy_mask(hidden: Tensor) -> Tensor:
    return hidden * torch.as_tensor(np.random.rand(*hidden.shape))  # noqa: NPY002 # what users do


class Codebook(nn.Module):
    """Vector quantisation whose codes move with what they see."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(5, 8))

    def forward(self, hidden: Tensor) -> Tensor:
        nearest = torch.cdist(hidden, self.codes).argmin(1)
        chosen = self.codes[nearest]
        with torch.no_grad():
            for code in nearest.unique():
                self.codes[code] = 0.9 * self.codes[code] + 0.1 * hidden[nearest == code].mean(0)
        return hidden + (hidden - chosen) ** 2


class Average(nn.Module):
    """Assigns its running average to the buffer, rather than writing into it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, CLASSES)
        self.register_buffer("average", torch.zeros(6))

    def forward(self, inputs: Tensor) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * inputs.detach().mean(0)
        return self.head(inputs)


def around(*layers: nn.Module) -> Trial:
    return Trial(nn.Sequential(nn.Linear(6, 8), *layers, nn.Linear(8, CLASSES)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(1, 8), nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        hidden = self.first(inputs)
        return self.last((((hidden @ hidden.transpose(1, 2)) + mask).softmax(-1) @ hidden).mean(1))


def masked(**options: Any) -> Trial:
    generator = torch.Generator().manual_seed(0)
    inputs, mask = torch.randn(N, N, 1, generator=generator), torch.randn(N, N, generator=generator).triu()
    return Trial(Attention(), inputs=(inputs, mask), options=options)


def ignored(count: int = 5) -> Tensor:
    labels = batch()[1]
    labels[:count] = -100
    return labels


class LayerDrop(nn.Module):
    """Skips whole layers by chance, for all samples together."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.1)) for _ in range(4))
        self.head, self.share = nn.Linear(6, CLASSES), share

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            if torch.rand([]) >= self.share:
                inputs = inputs + layer(inputs)
        return self.head(inputs)


def skipping(share: float) -> Trial:
    return Trial(LayerDrop(share), options={"seed": 5})


def sparse_inputs() -> Trial:
    return Trial(mlp(), inputs=batch()[0].relu().to_sparse())


def spectral(wrap: Callable[[nn.Module], nn.Module]) -> Trial:
    return Trial(nn.Sequential(wrap(nn.Linear(6, 8)), nn.Linear(8, CLASSES)))


def cross_entropy_of(**options: Any) -> Callable[[], Trial]:
    def make() -> Trial:
        loss = nn.CrossEntropyLoss(reduction="none", **options)
        return Trial(mlp(), loss, targets=None if "weight" in options else ignored())

    return make


FACTORS = np.random.default_rng(0).normal(size=(N, 6))
NAMES = ["a" * count for count in range(N)]
CLASS_WEIGHTS = (1.0, 2.0, 3.0, 4.0)


def torchs_loss() -> Trial:
    loss = nn.CrossEntropyLoss(weight=torch.tensor(CLASS_WEIGHTS))
    return Trial(mlp(), loss, targets=ignored(), mean=loss)


def normalised() -> Trial:
    layers = (nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(6, CLASSES))
    return Trial(nn.Sequential(*layers))


HOLES: dict[str, list[Case]] = {
    "B1": [
        Case("InfoNCE loss, one value per sample", losing(infonce, Towers), words=EACH_LOSS),
        Case("CLIP's loss, both directions", losing(clip_loss, Towers), words=EACH_LOSS),
        Case("batch-hard triplet loss", losing(triplet), words=EACH_LOSS),
    ],
    "B2": [
        Case("list of strings beside a tensor", lambda: Trial(Texts(), inputs=(batch()[0], NAMES)), "exact"),
        Case("NumPy array beside a tensor", lambda: Trial(Scaled(), inputs=(batch()[0], FACTORS)), "exact"),
        Case("dataclass with a tensor and a number", lambda: Trial(OfRecord(), inputs=Record(batch()[0])), "exact"),
        Case(
            "list of tensors of different shapes",
            lambda: Trial(Shapes(), inputs=[batch()[0][[0] * (1 + k % 3)] + k for k in range(N)]),
            "exact",
        ),
    ],
    "B3": [
        Case("loss with parameters and weights of its own (ArcFace)", arcface, "exact"),
        Case("such a loss within functools.partial", arcface_in_a_function, "exact"),
        Case("inputs that require a gradient", learned_inputs, "exact"),
        Case(
            "inputs computed by layers outside the model",
            encoded_inputs,
            words="inputs and targets: expected tensors without a graph behind them",
        ),
    ],
    "B4": [
        Case("torch.randint in the loss, with a seed", losing(negative_sampling, dropping, seed=5), words=RANDINT),
        Case(
            "torch.randint in the loss of a model that draws nothing, with a seed",
            losing(negative_sampling, seed=5),
            words=RANDINT,
        ),
        Case("torch.randperm in the loss, with a seed", losing(shuffled_negatives, dropping, seed=5), words=RANDPERM),
        Case("torch.randint in the loss, without a seed", losing(negative_sampling), "warned", UNCHECKED + ": " + RANDINT),
    ],
    "B5": [
        Case("dropout over flattened time steps (time-major), with a seed", between(time_major, seed=5)),
        Case("dropout over two concatenated views, with a seed", between(two_views, seed=5)),
        Case("dropout over two stacked views, with a seed", between(stacked_views, seed=5)),
        Case("dropout over rows sorted by value, with a seed", between(sorted_rows, seed=5)),
        Case("dropout within a packed LSTM, with a seed", lambda: Trial(Packed(), options={"seed": 5})),
    ],
    "B6": [
        Case("shuffle by sorting random numbers, with a seed", between(lambda z: z[torch.rand(len(z)).argsort()], seed=5)),
        Case("mask drawn from NumPy, with a seed", between(numpy_mask, seed=5), words=FOREIGN + "NumPy's random"),
        Case(
            "factor drawn from Python, with a seed",
            between(lambda z: z * random.random(), seed=5),
            words=FOREIGN + "Python's random",
        ),
        Case(
            "mask drawn from NumPy, without a seed",
            between(numpy_mask),
            "warned",
            UNCHECKED + ": " + FOREIGN + "NumPy's random",
        ),
    ],
    "B7": [
        Case("centring by the mean of the batch", between(lambda z: z - z.mean(0))),
        Case("softmax over the batch", between(lambda z: z.softmax(0))),
        Case("mixing neighbours (roll)", between(lambda z: 0.7 * z + 0.3 * z.roll(1, 0))),
        Case("vector quantisation with moving codes", lambda: around(Codebook()), words=APART.replace("…", "'1' (Codebook),")),
        Case(
            "fake quantisation with observers",
            lambda: around(torch.ao.quantization.FakeQuantize()),
            words=APART.replace("…", "'1' (FakeQuantize),"),
        ),
        Case("spectral norm, by hook", lambda: spectral(nn.utils.spectral_norm)),
        Case("spectral norm, by parametrization", lambda: spectral(nn.utils.parametrizations.spectral_norm), words=STATE),
        Case(
            "InstanceNorm with running statistics",
            normalised,
            "warned",
            "running statistics depend on micro_batch_size: 1 (InstanceNorm1d) keeps running statistics of the batches it sees",
        ),
        Case(
            "BatchNorm in training mode",
            lambda: around(nn.BatchNorm1d(8)),
            "warned",
            "gradients depend on micro_batch_size: 1 (BatchNorm1d) normalises each micro-batch by its own mean and variance",
            (8, 3),  # of a single sample torch refuses to normalise itself
        ),
    ],
    "B14": [Case("buffer that forward assigns", lambda: Trial(Average()), words=STATE + " 'average'")],
    "B16": [
        Case("mask of shape (L, L) where L is the batch size", masked, words="name inputs that all samples share in shared="),
        Case("mask of shape (L, L), named in shared=", lambda: masked(shared=(1,)), "exact"),
        Case(
            "outputs (N, 1) against targets (N,)",
            lambda: Trial(nn.Linear(6, 1), losses.MeanSquaredError(), targets=batch()[0][:, 0]),
            words="outputs: expected the shape of the targets … which would broadcast or fail",
        ),
    ],
    "B17": [
        Case(
            "per-sample cross-entropy with weight=",
            cross_entropy_of(weight=torch.ones(CLASSES)),
            words="loss: expected one without class weights … got CrossEntropyLoss with weight=",
        ),
        Case("per-sample cross-entropy with ignored labels", cross_entropy_of(), words="targets: expected no ignored label"),
        Case(
            "ignored labels with functools.partial(F.cross_entropy, reduction='none')",
            lambda: Trial(mlp(), functools.partial(F.cross_entropy, reduction="none"), targets=ignored()),
            words="targets: expected no ignored label",
        ),
        Case(
            "mean of the batch, expanded to its samples",
            losing(lambda outputs, targets: F.cross_entropy(outputs, targets).expand(len(targets))),
            words="loss: expected one loss per sample, got one value expanded",
        ),
        Case("nn.CrossEntropyLoss with weight and ignored labels", torchs_loss, "exact"),
    ],
    "C2": [
        Case("layers skipped by chance, one in twenty, with a seed", lambda: skipping(0.05), "exact"),
        Case("layers skipped by chance, three in ten, with a seed", lambda: skipping(0.3), "exact"),
    ],
    "C4": [
        Case(
            "a mapping that is no dict (a tokenizer's BatchEncoding)",
            lambda: Trial(OfRecord(), inputs=UserDict(ids=batch()[0], flag=True)),
            "exact",
        )
    ],
    "C5": [
        Case(
            "class indices as floats",
            lambda: Trial(mlp(), targets=batch()[1].double()),
            words="targets: expected class indices as integers … call .long() for class indices",
        ),
        Case(
            "a tuple of targets", lambda: Trial(mlp(), targets=(batch()[1],) * 2), words="targets: expected a tensor, got tuple"
        ),
        Case(
            "an output object with logits",
            lambda: Trial(WithOutput(), mean=lambda outputs, targets: F.cross_entropy(outputs.logits, targets)),
            "exact",
        ),
        Case("sparse inputs", sparse_inputs, "exact"),
    ],
    "C9": [
        Case(
            "a lazy layer that has not run yet, with a seed",
            lambda: Trial(nn.Sequential(nn.LazyLinear(8), nn.Dropout(0.3), nn.Linear(8, CLASSES)), options={"seed": 5}),
            words="model: expected initialised parameters",
        )
    ],
}
"""By number of the hole that they close."""
