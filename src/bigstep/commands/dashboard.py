"""`bigstep dashboard`: optuna-dashboard for the study, by default for this machine only."""

import contextlib
import socket
import socketserver
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from bigstep.config.params import parse_params, read_params
from bigstep.console import console
from bigstep.errors import ProjectError
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.local_port import LOOPBACK, address_family, free_port, url_host
from bigstep.search.storage import open_storage
from bigstep.search.studies import storage_address, study_address
from bigstep.search.trial_queue import is_feasible, sort_value, value_of
from bigstep.tracking.database import without_password

__all__ = ["make_dashboard", "serve_dashboard"]

FIRST_PORT = 8080


def serve_dashboard(root: Path, *, storage: str | None, port: int = 0, host: str | None = None) -> int:
    """Serve the dashboard until Ctrl-C.

    Args:
        root: of the project.
        storage: of the study; None: that of params.yaml.
        port: to listen on; 0: the first free one from 8080.
        host: an address to listen on instead of 127.0.0.1.

    Returns:
        0

    Raises:
        ProjectError: there is no study, its storage does not answer, or the host or port cannot be had.
    """
    project = ProjectPaths(root)
    if storage is None:
        address = study_address(project, parse_params(read_params(root / "params.yaml")))
    else:
        address = storage_address(project, storage)
    if "://" not in address and not Path(address).exists():
        raise ProjectError(f"search.storage: expected a study, got {address}, which does not exist; run `bigstep search` first")
    port = free_port(port, host or LOOPBACK, FIRST_PORT)
    if host is not None:
        console.print(f"WARNING: anyone who can reach {host}:{port} can modify or delete studies (no authentication)")
    server = make_dashboard(address, project.search / "artifacts", host or LOOPBACK, port)
    console.print(f"http://{url_host(host or LOOPBACK)}:{port} (Ctrl-C to stop), storage: {without_password(address)}")
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


def make_dashboard(address: str, artifacts: Path, host: str, port: int) -> WSGIServer:
    """Create the server of the dashboard for the storage ``address``; it accepts its own names only."""
    from optuna.artifacts import FileSystemArtifactStore
    from optuna_dashboard import wsgi

    artifacts.mkdir(parents=True, exist_ok=True)
    storage = open_storage(address)
    storage.get_best_trial = partial(_best_feasible, storage)  # type: ignore[method-assign] # the dashboard's own ignores constraints
    application = wsgi(storage, FileSystemArtifactStore(base_path=str(artifacts)))
    names = {f"{name}:{port}" for name in (url_host(host), LOOPBACK, "localhost")}
    server = _Server if address_family(host) == socket.AF_INET else _Server6
    return make_server(host, port, _guarded(application, names), server, _Handler)


def _best_feasible(storage: BaseStorage, study_id: int) -> FrozenTrial:
    """Return the best feasible trial; if there is no such trial, the dashboard shows nothing.

    Raises:
        ValueError: no trial is feasible.
    """
    trials = storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
    direction = storage.get_study_directions(study_id)[0]
    return min((trial for trial in trials if is_feasible(trial)), key=lambda trial: sort_value(value_of(trial), direction))


def _guarded(application: Any, names: set[str]) -> Callable[..., Iterable[bytes]]:
    """Refuse requests for another host name or from another origin: other sites must not reach the study."""
    origins = {f"http://{name}" for name in names}

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        if host not in names or (origin is not None and origin not in origins):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"this dashboard accepts requests to its own address only\n"]
        return application(environ, start_response)  # type: ignore[no-any-return] # WSGI

    return guarded


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


@final
class _Server6(_Server):
    address_family = socket.AF_INET6


@final
class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 # the name that is overridden
        """Do not log requests."""
