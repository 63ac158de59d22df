"""Servers that tests start."""

import itertools
import os
import socket

from bigstep.runtime.local_port import free_port
from waiting import wait_until

_PORTS_OF_A_WORKER = 400  # below 32768, where Linux takes ports of its own choice
_started = itertools.count()


def unused_port() -> int:
    """Return a port that no other test asks for, in this process or in another worker's.

    A port that is free now is soon taken: two workers that looked at the same numbers started two servers on one port.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20000 + worker % 30 * _PORTS_OF_A_WORKER
    return free_port(0, first=first + (4 * next(_started)) % 300)


def wait_for_port(port: int) -> None:
    """Wait until something answers on a port of this machine."""
    wait_until(lambda: _answers(port), f"nothing answers on port {port}")


def has_ipv6() -> bool:
    """Return whether this machine has the IPv6 address of itself."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
