"""How a run's spool is delivered, for code that uses it, without importing what delivers: not every stage has a run."""

from typing import Any, Protocol

__all__ = ["Deliverer", "Delivery"]


class Delivery(Protocol):
    """Delivers one spool beside the work."""

    @property
    def problem(self) -> str | None:
        """What kept the last entries from being delivered, as the first clause of a line; None where nothing has."""

    def start(self, wait_seconds: float = 0.0) -> None:
        """Start; waits at most ``wait_seconds`` for the first entries to be delivered."""

    def wake(self) -> None:
        """Deliver what was just logged soon, because it takes long."""

    def flush(self, patience: float = ...) -> bool:
        """Deliver everything; False where nothing could be delivered for ``patience`` seconds."""


class Deliverer(Protocol):
    """A process that delivers a spool; it takes lines and answers some of them."""

    expects_model: bool
    """Whether a model will be logged."""

    def write(self, **values: object) -> None:
        """Send a line."""

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """Wait for an answer; None if the process has ended, or gives none for ``seconds``."""

    def close(self) -> None:
        """End the process."""
