"""A trained model on disk: weights as safetensors, and a JSON file with all that is needed to rebuild it."""

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator
from torch import Tensor

from bigstep.atomic_files import read_record, sha256, whole_file, write_json
from bigstep.config.model import ModelConfig
from bigstep.config.yaml_files import parse_section
from bigstep.data.manifest import DTYPES
from bigstep.errors import ConfigError, ModelError
from bigstep.models.activation_checkpointing import checkpoint_blocks
from bigstep.models.building import InputShape, build_network
from bigstep.models.classifier import Classifier
from bigstep.models.ensemble import Ensemble
from bigstep.models.starting_weights import read_tensors
from bigstep.models.tensor_files import save_tensors
from bigstep.tasks.registry import task_of
from bigstep.tasks.targets import CLASSIFICATION, REGRESSION, targets_of
from bigstep.tasks.task import Task
from bigstep.user_code import is_user_code

__all__ = ["ANY_CODE", "ModelCard", "build_classifier", "load_classifier", "save_model"]

FORMAT = 2  # format 1 counted epochs from 0
MAX_SIZE = 4096  # pixels a side
LATER: dict[str, Any] = {"task": CLASSIFICATION, "val_score": None, "target_mean": (), "target_std": ()}
LATER |= {"members": (), "temperature": 1.0, "sample_shape": (), "sample_dtype": "uint8"}
ANY_CODE = "*"  # for a model that this project wrote itself
Loss = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]  # JSON has no NaN


@dataclass(frozen=True)
class ModelCard:
    """Everything beside the weights: architecture, classes, image layout, normalisation, and where the weights come from.

    Fields of :data:`LATER` are written only where they differ from their defaults.
    """

    model: dict[str, Any]
    classes: tuple[str, ...]
    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    precision: str
    effective_batch_size: int
    epoch: int
    """The best epoch, counted from 1."""
    num_updates: int
    val_loss: Loss
    """NaN where the best epoch, by another score, has no finite one."""
    val_accuracy: float | None
    """None in tasks with another score, which is ``val_score``."""
    data_digest: str
    validation_digest: str
    weights_sha256: str = ""
    format: int = FORMAT
    task: str = CLASSIFICATION
    val_score: float | None = None
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    members: tuple[dict[str, Any], ...] = ()
    """Of an ensemble: the model and the weight of each; ``model`` is that of the first."""
    temperature: float = 1.0
    sample_shape: tuple[int, ...] = ()
    """Of samples that are no images."""
    sample_dtype: str = "uint8"

    @property
    def output(self) -> Task:
        """What the network's outputs are."""
        return task_of(self.task, self.classes, self.target_mean, self.target_std)

    @property
    def score(self) -> float:
        """The task's score on the validation part."""
        found = self.val_accuracy if self.val_score is None else self.val_score
        return math.nan if found is None else found

    @property
    def shape(self) -> InputShape:
        """What the network is built for."""
        return InputShape(self.channels, self.size, len(self.classes), self.sample_shape, self.sample_dtype)


def build_classifier(
    model: ModelConfig,
    shape: InputShape,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    memory_format: torch.memory_format = torch.contiguous_format,
    weights: Path | None = None,
    activation_checkpointing: bool = False,
) -> Classifier:
    """Build the network with its preprocessing; torch's generator decides fresh weights."""
    network = build_network(model, shape, weights).to(memory_format=memory_format)
    if activation_checkpointing:
        checkpoint_blocks(network, model)
    return Classifier(
        network,
        mean=mean,
        std=std,
        network_channels=shape.network_channels(model),
        memory_format=memory_format,
        sample_shape=shape.sample_shape,
        sample_dtype=shape.sample_dtype,
    )


def save_model(weights: dict[str, Tensor], card: ModelCard, folder: Path) -> ModelCard:
    """Write ``model.safetensors`` and ``model.json``; the same weights produce the same bytes.

    Returns:
        The card with the hash of the weights' file.
    """
    with whole_file(folder / "model.safetensors") as beside:
        save_tensors(weights, beside)
        digest = sha256(beside)
    whole = ModelCard(**{**asdict(card), "weights_sha256": digest})
    written = {name: value for name, value in asdict(whole).items() if name not in LATER or value != LATER[name]}
    write_json(written, folder / "model.json")
    return whole


def load_classifier(
    folder: Path, memory_format: torch.memory_format = torch.contiguous_format, *, code: str = ""
) -> tuple[Classifier | Ensemble, ModelCard]:
    """Rebuild what :func:`save_model` wrote, in evaluation mode.

    Args:
        folder: with ``model.json`` and ``model.safetensors``.
        memory_format: of the network.
        code: the one name of code (``custom/model/file.py:name``) that may be run for it, or :data:`ANY_CODE`.

    Raises:
        ModelError: a file is missing, damaged, or they do not belong together; or it names other code.
    """
    card = _read_card(folder / "model.json")
    path = folder / "model.safetensors"
    if not path.is_file() or sha256(path) != card.weights_sha256:
        raise ModelError(
            f"{path}: expected the weights that model.json describes, got no or another file; run `bigstep train --force`"
        )
    tensors = read_tensors(path)
    build = partial(_rebuild, card=card, folder=folder, memory_format=memory_format, code=code)
    if not card.members:
        return build(card.model, tensors), card
    members = [build(member["model"], _below(f"{number}.", tensors)) for number, member in enumerate(card.members)]
    weights = [member["weight"] for member in card.members]
    return Ensemble(members, weights, card.temperature, task=card.output).eval(), card


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _rebuild(
    values: dict[str, Any],
    tensors: dict[str, Tensor],
    *,
    card: ModelCard,
    folder: Path,
    memory_format: torch.memory_format,
    code: str,
) -> Classifier:
    try:
        model = parse_section(ModelConfig, {"model": {**values, "weights": None, "freeze_backbone": False}}, "model.json")
    except ConfigError as error:
        raise ModelError(f"{str(error).splitlines()[0]}, in {folder}") from None
    if is_user_code(model.name) and code not in (model.name, ANY_CODE):
        raise ModelError(
            f"{folder / 'model.json'}: expected a built-in model, or the code that model.name in params.yaml names, got "
            f"{model.name!r}, which would be run; use the folder in its project, or check the code and set model.name to it"
        )
    try:
        classifier = build_classifier(model, card.shape, mean=card.mean, std=card.std, memory_format=memory_format)
        classifier.network.load_state_dict(tensors)
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise ModelError(
            f"{folder / 'model.json'}: expected the network of model.safetensors, got another ({type(error).__name__}); "
            "run `bigstep train --force`"
        ) from None
    classifier.to(torch.float64 if card.precision == "float64" else torch.float32)
    return classifier.eval()


def _read_card(path: Path) -> ModelCard:
    try:
        card = read_record(ModelCard, path)
        if card.format == 1:
            card = replace(card, epoch=card.epoch + 1, format=FORMAT)
        if card.format != FORMAT:
            raise ValueError(f"format {card.format}")
        _check(card)
        return card
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; run `bigstep train`") from None
    except ValueError as error:
        raise ModelError(
            f"{path}: expected the description of a model, got an invalid one ({error}); run `bigstep train --force`"
        ) from None


def _check(card: ModelCard) -> None:
    """Refuse values of the right type that no model can have."""
    count = _check_samples(card)
    if not card.classes or len(set(card.classes)) < len(card.classes):
        raise ValueError("no classes, or the same class twice")
    _check_task(card)
    for name, values in (("mean", card.mean), ("std", card.std)):
        if len(values) != count or not all(math.isfinite(value) for value in values):
            raise ValueError(f"{name} is not {count} finite numbers")
    if card.precision not in ("float32", "bfloat16", "float16", "float64"):
        raise ValueError(f"precision {card.precision!r}")
    if not all(value > 0 for value in card.std):
        raise ValueError("std is not positive")
    if not card.temperature > 0 or not all(isinstance(member.get("model"), dict) for member in card.members):
        raise ValueError("a member without a model, or no positive temperature")
    if card.members and not sum(_weight(member) for member in card.members) > 0:
        raise ValueError("the members' weights are not positive")


def _check_samples(card: ModelCard) -> int:
    """Refuse a shape that no samples have, and return how many means they have."""
    if not card.sample_shape:
        if card.channels not in (1, 3) or not 1 <= card.size <= MAX_SIZE:
            raise ValueError(f"{card.channels} channels of size {card.size}")
        return card.channels
    if min(card.sample_shape) < 1 or card.sample_dtype not in DTYPES:
        raise ValueError(f"samples of {card.sample_dtype} and shape {card.sample_shape}")
    return card.sample_shape[0] if card.sample_dtype.startswith("float") else 0


def _weight(member: dict[str, Any]) -> float:
    weight = member.get("weight")
    return float(weight) if isinstance(weight, int | float) and weight >= 0 else float("nan")


def _check_task(card: ModelCard) -> None:
    targets_of(card.task, card.classes)
    if (card.val_accuracy if card.task == CLASSIFICATION else card.val_score) is None:
        raise ValueError("no score on the validation part")
    count = len(card.classes) if card.task == REGRESSION else 0
    numbers = (*card.target_mean, *card.target_std)
    if not len(card.target_mean) == len(card.target_std) == count or not all(map(math.isfinite, numbers)):
        raise ValueError("target_mean and target_std are not one finite number per target")
    if not all(value > 0 for value in card.target_std):
        raise ValueError("target_std is not positive")
