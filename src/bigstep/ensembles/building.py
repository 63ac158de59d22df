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
from bigstep.ensembles.combining import choose_greedily
from bigstep.ensembles.measures import Measure, Part, measure_of
from bigstep.ensembles.members import Member, predict_part
from bigstep.ensembles.soup import average_weights
from bigstep.models.ensemble import Ensemble
from bigstep.models.model_files import ModelCard
from bigstep.report.evaluation_report import EvaluationScores
from bigstep.tasks.targets import CLASSIFICATION
from bigstep.training.setup import task_of_store

__all__ = ["Comparison", "EnsemblePlan", "build", "compare", "plan_ensemble"]


@dataclass(frozen=True)
class EnsemblePlan:
    """How often each member counts (0: left out), and each one's answers to the validation part."""

    measure: Measure
    counts: tuple[int, ...]
    validation: tuple[Part, ...]
    values: tuple[float, ...]
    """Of each member: the validation metric by which the champion is chosen; the lower is better."""

    @property
    def best(self) -> int:
        """The member with the lowest value."""
        return int(np.argmin(self.values))


@dataclass(frozen=True)
class Comparison:
    """The ensemble on the test part, beside its members."""

    scores: EvaluationScores
    """Of the ensemble."""
    members: tuple[EvaluationScores, ...]
    best: int
    """The member that it is compared with: the best on the validation part."""
    score: Interval
    """Of the gain in the task's score over that member; positive is better."""
    loss: Interval
    """Of the fall of the loss, calibrated against as it is; positive is better."""
    part: Part
    """The ensemble's answers."""


def plan_ensemble(members: Sequence[Member], store: Store, device: torch.device, *, greedy: bool) -> EnsemblePlan:
    """Run every member over the validation part, and decide how often each counts."""
    parts = tuple(predict_part(member.classifier, store, Split.VALIDATION, device) for member in members)
    measure, counts = measure_of(task_of_store(store)), (1,) * len(members)
    if greedy:
        counts = choose_greedily(
            [part.predictions for part in parts], lambda mean: measure.chosen_by(Part(mean, parts[0].targets))
        )
    return EnsemblePlan(measure, counts, parts, tuple(measure.chosen_by(part) for part in parts))


def build(
    members: Sequence[Member], plan: EnsemblePlan, store: Store, device: torch.device, *, soup: bool
) -> tuple[dict[str, Tensor], ModelCard, Ensemble]:
    """Combine the members, and calibrate the result.

    Args:
        members: as in ``plan``.
        plan: from :func:`plan_ensemble`.
        store: for the validation part.
        device: to run a soup on.
        soup: average weights instead of predictions.

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
        parts = [part.predictions for part in plan.validation]
        part = Part(np.average(parts, axis=0, weights=plan.counts), plan.validation[0].targets)
    temperature = plan.measure.temperature(part)
    networks, weights = [member.classifier for member, _ in chosen], [float(count) for _, count in chosen]
    ensemble = Ensemble(networks, weights, temperature, task=chosen[0][0].card.output)
    return _tensors(chosen), _card(chosen, part, plan.measure, temperature), ensemble.eval()


def compare(
    ensemble: Ensemble,
    members: Sequence[Part],
    plan: EnsemblePlan,
    store: Store,
    device: torch.device,
    *,
    calibration_bins: int,
) -> Comparison:
    """Compare on the test part, sample by sample.

    Args:
        ensemble: from :func:`build`.
        members: answers of each member to the test part.
        plan: with the member to compare with.
        store: for the test part.
        device: to run the ensemble on.
        calibration_bins: of the expected calibration error.
    """
    part, other, measure = predict_part(ensemble, store, Split.TEST, device), members[plan.best], plan.measure
    scores = [measure.scores(item, num_bins=calibration_bins) for item in (part, *members)]
    loss = paired_interval(measure.losses(other) - measure.losses(part))
    return Comparison(scores[0], tuple(scores[1:]), plan.best, measure.gain(part, other), loss, part)


def _tensors(chosen: Sequence[tuple[Member, int]]) -> dict[str, Tensor]:
    return {
        f"{number}.{name}": tensor.detach().cpu()
        for number, (member, _) in enumerate(chosen)
        for name, tensor in member.classifier.network.state_dict().items()
    }


def _card(chosen: Sequence[tuple[Member, int]], part: Part, measure: Measure, temperature: float) -> ModelCard:
    first = chosen[0][0].card
    described: tuple[dict[str, Any], ...] = tuple(
        {"model": member.card.model, "weight": count, "weights_sha256": member.card.weights_sha256} for member, count in chosen
    )
    score, is_class = measure.score(part), first.task == CLASSIFICATION
    return replace(
        first,
        members=described,
        temperature=temperature,
        val_loss=float(measure.losses(part).mean()),
        val_accuracy=score if is_class else None,
        val_score=None if is_class else score,
        weights_sha256="",
    )
