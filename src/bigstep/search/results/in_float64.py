"""Whether two slicings of a trial agree in float64, where rounding is too small to be taken for a dependence.

In float32 rounding grows with the steps: after four epochs on digits the loss of two slicings differs by up to 1 %.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigstep.config.params import Params
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.project.paths import ProjectPaths
from bigstep.search.confirmation import SlicingComparison
from bigstep.search.request import SearchRequest
from bigstep.search.results.summary import SearchResult
from bigstep.search.space import Space
from bigstep.search.trial_params import trial_params
from bigstep.search.trial_record import TrialRecord
from bigstep.training.loop import set_training_mode, take_step
from bigstep.training.setup import build_training
from bigstep.training.state import TrainingState
from bigstep.training.training_batches import TrainingBatches

__all__ = ["agree_in_float64", "settle"]

FEWEST_STEPS, MOST_STEPS, SHARE = 3, 20, 50  # of the trial's steps one in fifty
ROUNDING = 1e-9  # of how far the weights move


def settle(findings: SearchResult, request: SearchRequest, space: Space) -> SearchResult:
    """Train the first steps of each trial whose audit differs in float64 too, and return the result with what came of it."""
    known = {trial.number: trial for trial in findings.trials}
    project, store = ProjectPaths(Path(request.root)), Store(Path(request.prepared))

    def settled(item: SlicingComparison) -> SlicingComparison:
        if item.holds:
            return item
        trial = known[item.of]
        values = {**space.overrides(trial.params), **(TrialRecord.read(trial).exact or {})}
        return replace(item, in_float64=agree_in_float64(project, request.content, values, store, item.micro_batch_sizes))

    return replace(findings, verdicts=tuple(map(settled, findings.verdicts)))


def agree_in_float64(
    project: ProjectPaths, content: dict[str, Any], values: Mapping[str, Any], store: Store, sizes: tuple[int, int]
) -> bool | None:
    """Compare the weights after the first steps of a training with two micro-batch sizes.

    Args:
        project: the parameters may name files in it.
        content: of params.yaml.
        values: those of the trial, by name.
        store: the samples.
        sizes: the micro-batch sizes.

    Returns:
        Whether they agree; None if the model cannot be trained in float64.
    """
    fixed = {"train.precision": "float64", "hardware.compile": False, "tracking.noise_scale": "none"}
    try:
        (before, first), (_, second) = (
            _few_steps(project, trial_params(content, {**values, **fixed, "hardware.micro_batch_size": size}), store)
            for size in sizes
        )
    except Exception:  # noqa: BLE001 # a network of your own may need float32, and say so in any way
        return None
    return bool(torch.linalg.vector_norm(first - second) <= ROUNDING * torch.linalg.vector_norm(first - before))


def _few_steps(project: ProjectPaths, params: Params, store: Store) -> tuple[Tensor, Tensor]:
    """Return the weights before and after the first steps, as vectors."""
    state = build_training(store, params.batch, params, weights=project.starting_weights(params.model.weights))
    before, size = _weights(state), params.batch.effective_batch_size
    batches = TrainingBatches(store, params.train, size, num_workers=0)
    total = params.train.epochs * -(-len(store.indices(Split.TRAIN)) // size)
    most = min(MOST_STEPS, max(FEWEST_STEPS, total // SHARE))
    set_training_mode(state)
    try:
        for images, labels in islice(batches.epoch(0), most):
            take_step(state, params.train, images, labels)
    finally:
        state.guard.close()
    return before, _weights(state)


def _weights(state: TrainingState) -> Tensor:
    return torch.cat([item.detach().double().flatten() for item in state.classifier.state_dict().values()])
