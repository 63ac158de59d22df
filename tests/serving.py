"""Servers that tests start."""

import socket

from waiting import wait_until


def wait_for_port(port: int) -> None:
    """Wait until something answers on a port of this machine."""
    wait_until(lambda: _answers(port), f"nothing answers on port {port}")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
