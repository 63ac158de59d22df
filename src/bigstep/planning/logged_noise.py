"""The gradient noise scale that an earlier training of the same model on the same data has logged."""

from pathlib import Path

from bigstep.config.params import Params, flatten
from bigstep.errors import ProjectError
from bigstep.planning.exchange import LoggedNoise
from bigstep.tracking.database import connect, sqlite_file, tracking_uri

__all__ = ["logged_noise"]

SAME = ("data.", "model.")
RUNS = 200  # that are looked at, the latest first


def logged_noise(root: Path, params: Params) -> LoggedNoise | None:
    """Return the last noise scale of the latest finished run with these parameters of ``model`` and ``data``; None: unknown."""
    uri = tracking_uri(root)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        return None
    try:
        client = connect(uri)
    except ProjectError:
        return None
    wanted = {key: str(value) for key, value in flatten(params).items() if key.startswith(SAME)}
    experiments = [item.experiment_id for item in client.search_experiments()]
    newest = ["attributes.start_time DESC"]
    for run in client.search_runs(experiments, "attributes.status = 'FINISHED'", max_results=RUNS, order_by=newest):
        same = all(run.data.params.get(key) == value for key, value in wanted.items())
        if same and "noise_scale" in run.data.metrics:
            return LoggedNoise(run.data.metrics["noise_scale"], run.info.run_name or run.info.run_id)
    return None
