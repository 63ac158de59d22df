"""What a worker of a search is started with."""

from dataclasses import dataclass
from typing import Any

__all__ = ["SearchRequest"]


@dataclass(frozen=True)
class SearchRequest:
    """What a worker is started with, as plain values."""

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
    """Why training is not slice-invariant; empty if it is."""
    largest: int | None
    """The largest micro-batch size that fits; None if it is planned."""
    until: float
    """Seconds since 1970 after which no trial is started."""
