"""A free port of this machine."""

import socket

from bigstep.errors import ProjectError

__all__ = ["FIRST_PORT", "LOOPBACK", "free_port"]
LOOPBACK = "127.0.0.1"
FIRST_PORT = 5000


def free_port(port: int, host: str = LOOPBACK, first: int = FIRST_PORT) -> int:
    """Return ``port``, or for 0 the one from ``first`` on that is free.

    Raises:
        ProjectError: it is taken.
    """
    for candidate in [port] if port else range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            return candidate
    raise ProjectError(f"--port: expected a free port on {host}, got {port or f'none from {first} on'}, in use; choose another")
