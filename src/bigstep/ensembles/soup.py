"""Weights averaged into one network, which costs no more than a member (Wortsman et al., 2022)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bigstep.ensembles.members import Member
from bigstep.errors import ModelError
from bigstep.step.batch_norm import BATCH_NORMS

__all__ = ["average_weights", "check_soup"]


def check_soup(members: Sequence[Member]) -> None:
    """Check that averaging weights can make sense: one architecture, one start, no running statistics.

    Raises:
        ModelError: one line.
    """
    first = members[0]
    start = first.card.model.get("weights")
    for member in members:
        if {**member.card.model, "dropout": None} != {**first.card.model, "dropout": None}:
            raise ModelError(f"{member.name}: expected the network and the start of {first.name} for --soup, got another")
        if any(isinstance(module, BATCH_NORMS) for module in member.classifier.modules()):
            raise ModelError(f"{member.name}: expected no BatchNorm for --soup, whose statistics cannot be averaged")
    if start is None:
        raise ModelError(
            "--soup: expected members that share their starting weights, got model.weights null, so that each started at "
            "random weights of its own; train them from one file in weights/, or leave --soup out"
        )


def average_weights(members: Sequence[Member], counts: Sequence[int]) -> dict[str, Tensor]:
    """Return the mean of the members' tensors, each counted as often as ``counts`` says, summed in float64."""
    states = [member.classifier.network.state_dict() for member in members]
    total = sum(counts)
    return {
        name: torch.stack([state[name].double() * count for state, count in zip(states, counts, strict=True)])
        .sum(dim=0)
        .div(total)
        .to(tensor.dtype)
        for name, tensor in states[0].items()
    }
