"""A PostgreSQL server of our own, from the installed binaries, on a free port of this machine."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bigstep.stages.servers import free_port

HOW = "PostgreSQL's binaries must be there for this test: apt-get install postgresql"


def binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    if initdb is None:
        pytest.skip(HOW)
    return Path(initdb).parent


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server while the block does; gives the address of an empty database."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the path of a socket has a limit
    bin_, port, change = binaries(), free_port(0), _unprivileged(folder)
    try:
        options = {"preexec_fn": change, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
        data = folder / "data"
        subprocess.run([bin_ / "initdb", "-A", "trust", "-U", "study", "-D", data], check=True, **options)
        settings = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-k", str(folder), "-p", str(port)]
        server = subprocess.Popen([bin_ / "postgres", "-D", data, *settings], **options)
        try:
            address = f"postgresql://study:secret@127.0.0.1:{port}/postgres"
            _wait_for(address, server)
            yield address
        finally:
            server.send_signal(signal.SIGINT)  # of its own accord it waits for every connection to end
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged(folder: Path):
    """The server refuses to run as root."""
    if os.getuid() != 0:
        return None
    name = "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"
    user = pwd.getpwnam(name)
    os.chown(folder, user.pw_uid, user.pw_gid)

    def change() -> None:
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)

    return change


def _wait_for(address: str, server: "subprocess.Popen[bytes]") -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            psycopg.connect(address).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the server did not come up")
