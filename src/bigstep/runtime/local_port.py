"""A free port of this machine."""

import errno
import socket

from bigstep.errors import ProjectError

__all__ = ["FIRST_PORT", "LOOPBACK", "address_family", "free_port", "url_host"]
LOOPBACK = "127.0.0.1"
FIRST_PORT = 5000


def free_port(port: int, host: str = LOOPBACK, first: int = FIRST_PORT) -> int:
    """Return ``port``, or for 0 the one from ``first`` on that is free.

    Raises:
        ProjectError: it is taken, this user may not listen on it, or the host is not this machine.
    """
    family = address_family(host)
    for candidate in [port] if port else range(first, first + 100):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise _refusal(host, candidate, error) from None
            return candidate
    raise ProjectError(f"--port: expected a free port on {host}, got {port or f'none from {first} on'}, in use; choose another")


def address_family(host: str) -> socket.AddressFamily:
    """Return IPv4 where the host has it, else IPv6.

    Raises:
        ProjectError: it has no address.
    """
    try:
        families = {family for family, *_ in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise _not_here(host, error) from None
    return socket.AF_INET if socket.AF_INET in families else socket.AF_INET6


def url_host(host: str) -> str:
    """Return a host as addresses of pages have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def _refusal(host: str, port: int, error: OSError) -> ProjectError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return ProjectError(f"--port: expected a port that this user may listen on, got {port}; choose one from 1024 on")
    return _not_here(host, error)


def _not_here(host: str, error: Exception) -> ProjectError:
    cause = getattr(error, "strerror", None) or str(error)
    return ProjectError(f"--host: expected an address of this machine, got {host!r} ({cause}); use for example {LOOPBACK}")
