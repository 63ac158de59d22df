"""Addresses of MLflow's pages."""

__all__ = ["run_page"]


def run_page(uri: str, experiment_id: str, run_id: str, name: str) -> str:
    """Return a link to a run's page, in Markdown; for a local store the page is that of `bigstep mlflow`."""
    host = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    how = "" if uri.startswith("http") else " (while `bigstep mlflow` runs)"
    return f"[{name} in MLflow]({host}/#/experiments/{experiment_id}/runs/{run_id}){how}"
