"""Members that a search left, or that are in MLflow: their weights are taken out of the exported program and checked."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bigstep.errors import ModelError
from bigstep.project.paths import ProjectPaths

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import Tensor

__all__ = ["PROGRAM", "confirmed_models", "member_folders", "network_tensors"]

CHECKED, PREFIX = "served.", "classifier.network."  # of the network's tensors in an exported program; the first for images only
PROGRAM = Path("data", "model.pt2")
DESCRIPTION = "train/model.json"  # artifact of the run


def confirmed_models(project: ProjectPaths, study: str) -> list[tuple[str, Path]]:
    """Return what a search retrained with new seeds on this machine: a name and a folder for each.

    Raises:
        ModelError: there is nothing.
    """
    found = sorted(path.parent for path in project.search.glob(f"{study}/models/*/model.json"))
    if not found:
        raise ModelError(
            f"--study: expected models that {study!r} retrained (search.confirm_top above 0) on this machine, got none; "
            "run `bigstep search`, or name models"
        )
    return [(f"{study} {folder.name}", folder) for folder in found]


@contextmanager
def member_folders(root: Path, names: Sequence[str]) -> Iterator[list[tuple[str, Path]]]:
    """Yield each member's name and a folder with its ``model.json`` and ``model.safetensors``.

    Args:
        root: of the project, whose MLflow store is asked.
        names: folders, relative to the current one, or addresses as of :func:`find_version`.

    Raises:
        ModelError: there is no such model.
    """
    with tempfile.TemporaryDirectory(prefix="bigstep-member-") as scratch:
        found = []
        for number, name in enumerate(names):
            folder = Path(name)
            if not (folder / "model.json").is_file():
                folder = Path(scratch, str(number))
                _fetch(root, name, folder)
            found.append((name, folder))
        yield found


def _fetch(root: Path, name: str, folder: Path) -> None:
    from bigstep.tracking.database import connect, tracking_uri

    client = connect(tracking_uri(root))
    from mlflow.exceptions import MlflowException

    folder.mkdir()
    try:
        _unpack(client, name, folder)
    except MlflowException as error:
        problem = str(error).splitlines()[0]
        raise ModelError(
            f"MODEL: expected a folder with model.json, runs:/ID or models:/NAME/VERSION, got {name} ({problem}); correct it"
        ) from None


def _unpack(client: "MlflowClient", name: str, folder: Path) -> None:
    from bigstep.models.tensor_files import save_tensors
    from bigstep.tracking.model_registry import find_version
    from bigstep.tracking.sealing import checked_copy

    version = find_version(client, name, "MODEL")
    described = Path(client.download_artifacts(str(version.run_id), DESCRIPTION, str(folder)))
    shutil.move(described, folder / "model.json")
    with checked_copy(client, version) as copy:
        save_tensors(network_tensors(copy / PROGRAM), folder / "model.safetensors")


def network_tensors(program: Path) -> "dict[str, Tensor]":
    """Return the tensors of the network in an exported program, by their names in the network."""
    import torch

    found = {key.removeprefix(CHECKED): value for key, value in torch.export.load(program).state_dict.items()}
    return {key.removeprefix(PREFIX): value for key, value in found.items() if key.startswith(PREFIX)}
