"""Members into one model: chosen and calibrated on the validation part, compared with the best of them on the test part."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigstep.comparison.paired import Interval, paired_interval
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.ensembles.combining import choose_greedily, fit_temperature, mean_nats, nats
from bigstep.ensembles.members import Member, Part, predict_part
from bigstep.ensembles.soup import average_weights
from bigstep.evaluation.classification import Answers, Scores, score
from bigstep.models.ensemble import Ensemble
from bigstep.models.model_files import ModelCard

__all__ = ["Comparison", "EnsemblePlan", "build", "compare", "plan_ensemble"]


@dataclass(frozen=True)
class EnsemblePlan:
    """How often each member counts (0: left out), and each one's answers to the validation part."""

    counts: tuple[int, ...]
    validation: tuple[Part, ...]

    @property
    def best(self) -> int:
        """The member with the lowest validation loss."""
        return int(np.argmin([mean_nats(part.probabilities, part.labels) for part in self.validation]))


@dataclass(frozen=True)
class Comparison:
    """The ensemble on the test part, beside its members."""

    scores: Scores
    """Of the ensemble."""
    members: tuple[Scores, ...]
    best: int
    """The member that it is compared with: the best on the validation part."""
    accuracy: Interval
    """Of the gain in accuracy over that member; positive is better."""
    loss: Interval
    """Of the fall of the negative log-likelihood, calibrated against as it is; positive is better."""
    part: Part
    """The ensemble's answers."""


def plan_ensemble(members: Sequence[Member], store: Store, device: torch.device, *, greedy: bool) -> EnsemblePlan:
    """Run every member over the validation part, and decide how often each counts."""
    parts = tuple(predict_part(member.classifier, store, Split.VALIDATION, device) for member in members)
    counts = (1,) * len(members)
    if greedy:
        counts = choose_greedily([part.probabilities for part in parts], parts[0].labels)
    return EnsemblePlan(counts, parts)


def build(
    members: Sequence[Member], plan: EnsemblePlan, store: Store, device: torch.device, *, soup: bool
) -> tuple[dict[str, Tensor], ModelCard, Ensemble]:
    """Combine the members, and calibrate the result.

    Args:
        members: as in ``plan``.
        plan: from :func:`plan_ensemble`.
        store: for the validation part.
        device: to run a soup on.
        soup: average weights instead of probabilities.

    Returns:
        All weights by name, a description (with the loss before calibration), and the ensemble on the CPU.
    """
    chosen = [(member, count) for member, count in zip(members, plan.counts, strict=True) if count]
    if soup:
        network = average_weights([member for member, _ in chosen], [count for _, count in chosen])
        first = chosen[0][0]
        first.classifier.network.load_state_dict(network)
        chosen = [(first, 1)]
        part = predict_part(first.classifier, store, Split.VALIDATION, device)
    else:
        parts = [part.probabilities for part in plan.validation]
        part = Part(np.average(parts, axis=0, weights=plan.counts), plan.validation[0].labels)
    temperature = fit_temperature(part.probabilities, part.labels)
    ensemble = Ensemble([member.classifier for member, _ in chosen], [float(count) for _, count in chosen], temperature)
    return _tensors(chosen), _card(chosen, part, temperature), ensemble.eval()


def compare(
    ensemble: Ensemble, members: Sequence[Part], best: int, store: Store, device: torch.device, *, calibration_bins: int
) -> Comparison:
    """Compare on the test part, image by image.

    Args:
        ensemble: from :func:`build`.
        members: answers of each member to the test part.
        best: the member to compare with.
        store: for the test part.
        device: to run the ensemble on.
        calibration_bins: of the expected calibration error.
    """
    part, other = predict_part(ensemble, store, Split.TEST, device), members[best]
    classes = store.manifest.classes
    answers = [Answers.of(item.probabilities.astype(np.float32), item.labels) for item in (part, *members)]
    scores = [score(item, classes, calibration_bins=calibration_bins) for item in answers]
    return Comparison(
        scores[0],
        tuple(scores[1:]),
        best,
        paired_interval(part.is_right - other.is_right),
        paired_interval(nats(other.probabilities, other.labels) - nats(part.probabilities, part.labels)),
        part,
    )


def _tensors(chosen: Sequence[tuple[Member, int]]) -> dict[str, Tensor]:
    return {
        f"{number}.{name}": tensor.detach().cpu()
        for number, (member, _) in enumerate(chosen)
        for name, tensor in member.classifier.network.state_dict().items()
    }


def _card(chosen: Sequence[tuple[Member, int]], part: Part, temperature: float) -> ModelCard:
    first = chosen[0][0].card
    described: tuple[dict[str, Any], ...] = tuple(
        {"model": member.card.model, "weight": count, "weights_sha256": member.card.weights_sha256} for member, count in chosen
    )
    return replace(
        first,
        members=described,
        temperature=temperature,
        val_loss=mean_nats(part.probabilities, part.labels),
        val_accuracy=float(part.is_right.mean()),
        weights_sha256="",
    )
