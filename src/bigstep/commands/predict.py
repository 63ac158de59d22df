"""`bigstep predict`: classify single images with a registered model, or with one in a folder."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigstep.config.data import short_source
from bigstep.console import console
from bigstep.data.decoding import Decoded, Layout, Refusal, decode_file
from bigstep.errors import ModelError
from bigstep.machine_output import Report, no_report
from bigstep.project.parameters import check_params
from bigstep.project.paths import ProjectPaths
from bigstep.report.evaluation_plots import short_name
from bigstep.tasks.targets import CLASSIFICATION, REGRESSION

__all__ = ["Predictor", "is_exported", "predict"]

MAX_SHOWN = 3


@dataclass(frozen=True)
class Predictor:
    """A model that maps one raw image, uint8 ``(1, height, width, channels)``, to probabilities or values ``(1, outputs)``.

    A model of samples that are no images has a ``sample_shape``, and takes an array of it.
    """

    predictions: Callable[[NDArray[Any]], NDArray[np.float32]]
    classes: tuple[str, ...]
    """Names of the outputs."""
    channels: int
    task: str
    sample_shape: tuple[int, ...] = ()
    sample_dtype: str = "uint8"


def predict(root: Path | None, images: list[Path], model: str | None, report: Report = no_report) -> int:
    """Print the most likely classes of each image; of other tasks its likely labels, or the predicted numbers.

    Returns:
        0, or 2 if an image could not be read.

    Raises:
        ModelError: there is no such model.
    """
    from bigstep.config.params import read_params

    params = check_params({} if root is None else read_params(root / "params.yaml"))
    name = model or params.tracking.registered_model or f"bigstep-{short_source(params.data.source)}"
    predictor = (
        _from_folder(Path(name), params.model.name)
        if root is None or is_exported(name)
        else _from_registry(ProjectPaths(root), name)
    )
    layout = Layout(None, predictor.channels, params.data.max_megapixels * 1e6)
    refused, answers = 0, []
    for path in images:
        decoded = decode_file(path, layout) if not predictor.sample_shape else _read_array(path, predictor)
        if isinstance(decoded, Refusal):
            print(f"bigstep: cannot read {path}: {decoded.reason}; use another file", file=sys.stderr)
            refused += 1
            continue
        found = predictor.predictions(decoded.pixels[None])[0]
        console.print(f"{path}: {_answers(predictor, found)}")
        answers.append({"image": str(path), "outputs": dict(zip(predictor.classes, found.tolist(), strict=True))})
    report(answers)
    return 2 if refused else 0


def _read_array(path: Path, predictor: Predictor) -> Decoded | Refusal:
    """Read one sample from a file of NumPy (.npy); nothing is unpickled."""
    shape = predictor.sample_shape
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return Refusal(f"expected a .npy file with an array of shape {shape}, got {type(error).__name__}")
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype.kind not in "biuf":
        return Refusal(f"expected an array of shape {shape}, got {getattr(array, 'shape', type(array).__name__)}")
    return _converted(array, np.dtype(predictor.sample_dtype))


def _converted(array: NDArray[Any], dtype: np.dtype[Any]) -> Decoded | Refusal:
    """Return the array in the model's type, unless that changes an integer or makes a number that is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        found = array.astype(dtype)
    is_wrong = ~np.isfinite(found) if dtype.kind == "f" else found != array
    if is_wrong.any():
        kind = "finite numbers" if dtype.kind == "f" else "whole numbers"
        return Refusal(f"expected {kind} that {dtype} can hold, got {array[is_wrong][0]}")
    return Decoded(found, "")


def _answers(predictor: Predictor, found: NDArray[np.float32]) -> str:
    """Return the predictions ``(outputs,)`` for one image in words."""
    if predictor.task == REGRESSION:
        return "   ".join(f"{short_name(name, 40)} {value:.6g}" for name, value in zip(predictor.classes, found, strict=True))
    order = np.argsort(-found, kind="stable")
    best = order[:MAX_SHOWN] if predictor.task == CLASSIFICATION else order[: max(MAX_SHOWN, int((found > 0.5).sum()))]
    return "   ".join(f"{short_name(predictor.classes[index], 40)} {found[index]:.4f}" for index in best)


def is_exported(name: str) -> bool:
    """Return whether ``name`` is a folder with an exported model, which needs no project."""
    return (Path(name) / "model.json").is_file()


def _from_folder(folder: Path, code: str) -> Predictor:
    import torch

    from bigstep.models.model_files import load_classifier
    from bigstep.models.serving import serve

    classifier, card = load_classifier(folder, code=code)
    served = serve(classifier, card)

    def predictions(images: NDArray[Any]) -> NDArray[np.float32]:
        with torch.no_grad():
            answers: NDArray[np.float32] = served(torch.tensor(images.astype(card.sample_dtype))).numpy()
        return answers

    return Predictor(predictions, card.classes, card.channels, card.task, card.sample_shape, card.sample_dtype)


def _from_registry(project: ProjectPaths, name: str) -> Predictor:
    from bigstep.tracking.database import connect, tracking_uri
    from bigstep.tracking.model_registry import find_version
    from bigstep.tracking.sealing import checked_copy

    client = connect(tracking_uri(project.root))
    import mlflow.pytorch
    import torch
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    try:
        with checked_copy(client, find_version(client, name, "--model")) as folder:
            described, program = Model.load(str(folder)), mlflow.pytorch.load_model(str(folder))
    except MlflowException as error:
        problem = str(error).splitlines()[0]
        raise ModelError(f"--model: expected a registered model, got {name} ({problem}); run `bigstep repro` first") from None
    known = described.metadata or {}
    classes = tuple(known.get("classes", ()))
    if not classes or described.signature is None:
        raise ModelError(f"--model: expected a model of bigstep, got {name}, which names no classes; choose another")
    taken, task = described.signature.inputs.inputs[0], str(known.get("task", CLASSIFICATION))

    def predictions(arrays: NDArray[Any]) -> NDArray[np.float32]:
        with torch.no_grad():
            answers: NDArray[np.float32] = program(torch.from_numpy(arrays.astype(taken.type))).numpy()
        return answers

    if any(size > 0 for size in taken.shape[1:-1]) or len(taken.shape) != 4:
        return Predictor(predictions, classes, 0, task, tuple(int(size) for size in taken.shape[1:]), taken.type.name)

    def of_images(images: NDArray[Any]) -> NDArray[np.float32]:
        # with a white image, since an exported model refuses images without a pixel above 1 (CheckedClassifier)
        return predictions(np.concatenate([images, np.full_like(images[:1], 255)]))[:-1]

    return Predictor(of_images, classes, int(taken.shape[-1]), task)
