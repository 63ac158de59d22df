"""The work of a training, counted from its model and shapes alone: the same number on every machine, however busy it is."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigstep.atomic_files import read_record, write_json
from bigstep.config.model import ModelConfig
from bigstep.config.params import Params
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.models.building import InputShape, build_network
from bigstep.planning.plan import plan_folder
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.device import choose_device
from bigstep.runtime.environment import THREADS, is_set

__all__ = [
    "SHORT_TRAINING",
    "SMALL_TRAINING",
    "choose_threads",
    "forward_operations",
    "is_small_training",
    "training_operations",
]

SMALL_TRAINING = 1e12
"""Operations of all forward passes, below which measuring may cost more than it saves: half a minute to two on two cores."""

SHORT_TRAINING = 1e11
"""Operations of all forward passes, which take some seconds on one thread; digits has 0.3e11."""


@dataclass(frozen=True)
class ForwardWork:
    """What one sample's forward pass takes."""

    operations: int


def is_small_training(project: ProjectPaths, params: Params, store: Store) -> bool:
    """Return whether a training is too small for its slicing to be measured; no clock is read."""
    return training_operations(project, params, store) < SMALL_TRAINING


def choose_threads(project: ProjectPaths, params: Params, store: Store) -> int | None:
    """Return the threads of a training: as configured, or one if it is short; None: torch's default.

    The short one runs while another process of it still imports MLflow. Several threads wait for each other at each operation,
    so that one of them without a core slows all, to a fifth.
    """
    hardware = params.hardware
    if hardware.threads is not None or is_set(THREADS) or choose_device(hardware).type != "cpu":
        return hardware.threads
    try:
        return 1 if training_operations(project, params, store) < SHORT_TRAINING else None
    except Exception:  # noqa: BLE001 # a custom network may take no single sample
        return None


def training_operations(project: ProjectPaths, params: Params, store: Store) -> float:
    """Return epochs x training samples x operations of one sample's forward pass, which is kept in a file beside the plan."""
    path = plan_folder(project, params, store) / "work.json"
    try:
        work = read_record(ForwardWork, path)
    except (OSError, ValueError):
        shape = InputShape.of(store.manifest)
        work = ForwardWork(forward_operations(params.model, shape))
        write_json(vars(work), path)
    return float(params.train.epochs) * len(store.indices(Split.TRAIN)) * work.operations


def forward_operations(model: ModelConfig, shape: InputShape) -> int:
    """Count the multiplications and additions in the forward pass of one sample: those of convolutions and linear layers."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        del inputs
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() > 1 and isinstance(output, Tensor):
            counts.append(2 * weight.numel() * output.numel() // weight.shape[0])

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = build_network(model.model_copy(update={"freeze_backbone": False}), shape).eval()
        handles = [module.register_forward_hook(count) for module in network.modules()]
        network(shape.example(model, 1))
    for handle in handles:
        handle.remove()
    return sum(counts)
