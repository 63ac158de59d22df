"""A flavor for MLflow: a program of torch.export, whose answers have the names of its outputs.

``Model.log`` calls :func:`save_model`. It writes the files of MLflow's PyTorch flavor, which would import torch and export the
module itself. MLflow's own ``log_model`` for a model from code writes a path of this machine into MLmodel, and leaves out the
flavor that reads the program without running code.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigstep.tracking.mlflow_internals import save_example, write_environments
from bigstep.tracking.model_code import CODE_FILE, CODE_LOADER

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

__all__ = ["save_model"]

DATA, PROGRAM = "data", "model.pt2"
NO_BYTECODE = "Python would keep bytecode here when the model is served, and `bigstep verify` would find a file too many.\n"


def save_model(  # noqa: PLR0913 # keywords, as MLflow hands them on
    path: str,
    mlflow_model: "Model",
    *,
    program: Path,
    torch_version: str,
    signature: "ModelSignature",
    names: Sequence[str],
    input_example: Any,
    requirements: Sequence[str],
    validate_serving_input: bool,
) -> None:
    """Write a model as MLflow's PyTorch flavor does, with the shipped code that answers for it.

    Args:
        path: folder to write.
        mlflow_model: that is logged.
        program: a file that ``torch.export.save`` wrote; it is copied.
        torch_version: that wrote it.
        signature: of the model.
        names: of the outputs.
        input_example: a batch that the program takes.
        requirements: packages with their versions.
        validate_serving_input: meant for ``Model.log``, which hands on all that it is given.
    """
    import mlflow.pyfunc

    del validate_serving_input
    folder = Path(path)
    (folder / DATA).mkdir(parents=True)
    shutil.copyfile(program, folder / DATA / PROGRAM)
    save_example(mlflow_model, input_example, path)
    shutil.copyfile(CODE_FILE, folder / CODE_FILE.name)
    (folder / "names.json").write_text(json.dumps(list(names), indent=0), encoding="utf-8")
    (folder / "__pycache__").write_text(NO_BYTECODE, encoding="utf-8")  # a file where Python would make a folder
    environments = write_environments(folder, requirements)
    mlflow_model.signature = signature
    mlflow_model.add_flavor("pytorch", model_data=DATA, pytorch_version=torch_version, code=None)
    mlflow.pyfunc.add_to_model(mlflow_model, loader_module=CODE_LOADER, model_code_path=CODE_FILE.name, **environments)
    mlflow_model.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    mlflow_model.save(str(folder / "MLmodel"))
