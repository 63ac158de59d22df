"""A flavor for MLflow: a module exported with torch.export, whose answers have the names of its outputs.

``Model.log`` calls :func:`save_model`. MLflow's own ``log_model`` for a model from code writes a path of this machine into
MLmodel, and leaves out the flavor that reads the program without running code.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigstep.tracking.model_code import CODE_FILE, CODE_LOADER

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

__all__ = ["save_model"]

NO_BYTECODE = "Python would keep bytecode here when the model is served, and `bigstep verify` would find a file too many.\n"


def save_model(
    path: str,
    mlflow_model: "Model",
    *,
    signature: "ModelSignature",
    names: Sequence[str],
    validate_serving_input: bool,
    **given: Any,
) -> None:
    """Save a model as MLflow's PyTorch flavor does, then let the shipped code answer for it.

    Args:
        path: folder to write.
        mlflow_model: that is logged.
        signature: of the model.
        names: of the outputs.
        validate_serving_input: meant for ``Model.log``, which hands on all that it is given.
        given: the rest of what ``mlflow.pytorch.save_model`` takes.
    """
    import mlflow.pyfunc
    import mlflow.pytorch
    from mlflow.models import Model, ModelSignature

    del validate_serving_input
    plain = Model()  # without names: MLmodel is written once with them, which takes MLflow long if there are thousands
    mlflow.pytorch.save_model(path=path, mlflow_model=plain, signature=ModelSignature(signature.inputs), **given)
    shutil.copyfile(CODE_FILE, Path(path, CODE_FILE.name))
    Path(path, "names.json").write_text(json.dumps(list(names), indent=0), encoding="utf-8")
    Path(path, "__pycache__").write_text(NO_BYTECODE, encoding="utf-8")  # a file where Python would make a folder
    for name in ("flavors", "saved_input_example_info", "model_size_bytes"):
        setattr(mlflow_model, name, getattr(plain, name))
    mlflow_model.signature = signature
    environment = plain.flavors[mlflow.pyfunc.FLAVOR_NAME]["env"]
    mlflow.pyfunc.add_to_model(
        mlflow_model,
        loader_module=CODE_LOADER,
        model_code_path=CODE_FILE.name,
        conda_env=environment["conda"],
        python_env=environment["virtualenv"],
    )
    mlflow_model.save(str(Path(path, "MLmodel")))
