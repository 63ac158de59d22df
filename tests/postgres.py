"""A PostgreSQL server of our own, from the installed binaries, on a free port of this machine."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving import unused_port
from waiting import wait_until

HOW = "PostgreSQL's binaries must be there for this test: apt-get install postgresql"


def binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    if initdb is None:
        pytest.skip(HOW)
    return Path(initdb).parent


class Server:
    """A server with an empty database, which can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        """Set it up in ``folder``, whose path must be short: that of a socket has a limit."""
        self._folder, self._bin = folder, binaries()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._options = {"preexec_fn": _unprivileged(folder), "cwd": folder, **quiet}
        self.port = unused_port()
        self.address = f"postgresql://study:secret@127.0.0.1:{self.port}/postgres"
        self._run("initdb", "-A", "trust", "-U", "study")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-k", str(self._folder), "-p", str(self.port)]
        self._server = subprocess.Popen([self._bin / "postgres", "-D", self._folder / "data", *settings], **self._options)
        _wait_for(self.address, self._server)

    def stop(self, mode: str) -> None:
        """Stop it ``fast``, or ``immediate``: as a crash does."""
        if self._server.poll() is None:
            self._run("pg_ctl", "stop", "-m", mode)
        self._server.wait(30)

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run([self._bin / name, *arguments, "-D", self._folder / "data"], check=True, **self._options)


@contextmanager
def postgres_server() -> Iterator[Server]:
    """Run a server while the block does."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        server = Server(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop("fast")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server while the block does; gives the address of an empty database."""
    with postgres_server() as server:
        yield server.address


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

    def answers() -> bool:
        assert server.poll() is None, "the server did not come up"
        try:
            psycopg.connect(address).close()
        except psycopg.OperationalError:
            return False
        return True

    wait_until(answers, "the server did not come up")
