"""`bigstep mlflow`: the MLflow UI, by default for this machine only."""

import sys
from pathlib import Path

from bigstep.console import console
from bigstep.errors import ProjectError
from bigstep.runtime.child_process import run_child
from bigstep.runtime.environment import SERVER_GUARDS, child_environment
from bigstep.runtime.local_port import LOOPBACK, free_port, url_host
from bigstep.tracking.database import connect, tracking_uri, without_login
from bigstep.tracking.runs_view import viewed_experiments

__all__ = ["mlflow_command", "serve_mlflow"]


def serve_mlflow(root: Path, *, port: int = 0, host: str | None = None) -> int:
    """Serve the MLflow UI until Ctrl-C.

    Raises:
        ProjectError: MLflow is on a server already or does not answer, or the host or port cannot be had.
    """
    uri = tracking_uri(root)
    if uri.startswith(("http://", "https://")):
        raise ProjectError(
            f"MLFLOW_TRACKING_URI: expected a database to serve, got {without_login(uri)}; open this address in a browser"
        )
    client = connect(uri)
    port = free_port(port, host or LOOPBACK)
    page = f"http://{url_host(host or LOOPBACK)}:{port}"
    if host is not None:
        console.print(f"WARNING: anyone who can reach {host}:{port} can modify or delete runs (no authentication)")
    console.print(f"{page} (Ctrl-C to stop)")
    for name, view in viewed_experiments(client, page):
        console.print(f"runs of {name} with their scores: {view}")
    code = run_child(mlflow_command(uri, host or LOOPBACK, port), root, child_environment(SERVER_GUARDS))
    return 0 if code == 130 else code


def mlflow_command(uri: str, host: str, port: int) -> list[str]:
    """Return the command of a server that accepts its own names only: other sites cannot reach it through a browser."""
    names = [f"{name}:{port}" for name in dict.fromkeys((url_host(host), LOOPBACK, "localhost"))]
    origins = ",".join(f"http://{name}" for name in names)
    allowed = ["--allowed-hosts", ",".join(names), "--cors-allowed-origins", origins]
    where = ["--backend-store-uri", uri, "--host", host, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *where, *allowed]
