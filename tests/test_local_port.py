"""A port and a host to serve on: what cannot be had is one line that says why."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bigstep.cli import main
from bigstep.errors import ProjectError
from bigstep.runtime.local_port import LOOPBACK, free_port, url_host
from serving import has_ipv6, unused_port

FIRST_FOR_ALL = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


@pytest.mark.parametrize("command", ["mlflow", "dashboard"])
@pytest.mark.parametrize("port", ["70000", "-1"])
def test_a_port_that_cannot_be_is_one_line(command: str, port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--port", port]) == 2
    assert capsys.readouterr().err == f"bigstep: --port: expected 0 to 65535, got {port}; use for example 8080\n"


def test_a_port_in_use_is_passed_over_or_refused() -> None:
    with socket.socket() as taken:
        port = unused_port()
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((LOOPBACK, port))
        taken.listen()
        assert port < free_port(0, first=port) < port + 100
        with pytest.raises(ProjectError, match=f"^--port: expected a free port on 127.0.0.1, got {port}, in use; choose"):
            free_port(port)


@pytest.mark.parametrize(
    ("host", "cause"),
    [("192.0.2.1", "Cannot assign requested address|Can't assign requested address"), (f"{'a' * 70}.invalid", "label")],
    ids=["of-another-machine", "mistyped"],
)
def test_a_host_that_is_not_this_machine_is_not_called_a_port_in_use(host: str, cause: str) -> None:
    with pytest.raises(
        ProjectError, match=rf"^--host: expected an address of this machine, got '{host}' \(.*({cause}).*\); use"
    ):
        free_port(0, host)


def test_an_ipv6_host_has_free_ports_and_brackets_in_addresses() -> None:
    if not has_ipv6():
        pytest.skip("this machine has no ::1")
    port = unused_port()
    assert free_port(port, "::1") == port
    assert (url_host("::1"), url_host("localhost")) == ("[::1]", "localhost")


def test_a_port_for_root_only_is_named_as_that() -> None:
    if not FIRST_FOR_ALL.exists() or int(FIRST_FOR_ALL.read_text(encoding="utf-8")) <= 80:
        pytest.skip("here every user may listen on port 80")
    code = (
        "import os; from bigstep.runtime.local_port import free_port\n"
        "free_port(0); os.getuid() or os.setuid(65534)  # who may not read the modules that are imported by then\n"
        "try: free_port(80)\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "--port: expected a port that this user may listen on, got 80; choose one from 1024 on\n", done.stderr
