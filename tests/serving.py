"""Servers that tests begin."""

import socket
import time


def wait_for_port(port: int) -> None:
    """Wait until somebody answers on a port of this machine."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the server did not come up")
