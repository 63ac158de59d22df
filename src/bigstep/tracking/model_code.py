"""The code that may come with a registered model: the file that names its answers, as bigstep ships or shipped it.

MLflow's server runs it; bigstep itself never does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from bigstep.atomic_files import sha256
from bigstep.errors import ModelError

__all__ = ["CODE_FILE", "CODE_LOADER", "SHIPPED", "WAY_OUT", "check_code"]

CODE_FILE = Path(__file__).with_name("named_answers.py")
CODE_LOADER, PLAIN_LOADER = "mlflow.pyfunc.loaders.code_model", "mlflow.pytorch"
SHIPPED = frozenset({"1451d3f1727ad6ebdc9c3776a08f786f23ffa8ae5a373ef63c973ac01c56e0e1"})
"""SHA-256 of CODE_FILE, now and in earlier versions: a change of the file adds one, and none is ever removed."""
WAY_OUT = "use another version, or run `bigstep repro --force`, which registers a new one"


def check_code(folder: Path, name: str) -> None:
    """Refuse a model that names other code than bigstep's, or has its answers pickled.

    Args:
        folder: with the model's files.
        name: of the version, for the message.

    Raises:
        ModelError: it does, or its MLmodel cannot be read.
    """
    try:
        flavours = YAML(typ="safe", pure=True).load((folder / "MLmodel").read_text(encoding="utf-8"))["flavors"]
        served, plain = flavours["python_function"], flavours["pytorch"]
        problem = _problem(folder, served, plain)
    except (OSError, UnicodeDecodeError, YAMLError, RecursionError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{name}: expected an MLmodel file with a python_function and pytorch, got none; {WAY_OUT}") from None
    if problem:
        raise ModelError(f"{name}: expected no code but bigstep's own, got {problem}; {WAY_OUT}")


def _problem(folder: Path, served: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """Return what is wrong with the flavours in MLmodel, or nothing."""
    loader, file = served.get("loader_module"), served.get("model_code_path")
    for key, value in (("code", served.get("code")), ("code", plain.get("code")), ("python_model", served.get("python_model"))):
        if value is not None:
            return f"{key} {value!r}"
    if loader == PLAIN_LOADER and file is None:  # as registered before the answers had names
        return ""
    if loader != CODE_LOADER or file is None:
        return f"the loader {loader!r}"
    if file != CODE_FILE.name or sha256(folder / file) not in SHIPPED:
        return f"another {file!r}"
    return ""
