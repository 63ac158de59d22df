"""What a worker of a search needs to know."""

from dataclasses import dataclass
from typing import Any

__all__ = ["SearchRequest"]


@dataclass(frozen=True)
class SearchRequest:
    """What a worker needs to know; plain values."""

    root: str
    prepared: str
    content: dict[str, Any]
    """Of params.yaml, with this worker's share of threads and memory."""
    address: str
    """Of the study's storage."""
    uri: str
    experiment: str
    experiment_id: str
    parent_run: str
    reason: str
    """Why training is not slice-invariant; empty where it is."""
    largest: int | None
    """Exponent of the largest micro-batch that fits; None where it is planned."""
    until: float
    """Seconds since the epoch after which no trial is begun."""
