"""The memory budget of a training, and the predicted memory of its steps."""

from dataclasses import replace

import torch

from bigstep.atomic_files import read_record, write_json
from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.hardware import HardwareConfig
from bigstep.config.params import Params
from bigstep.config.units import parse_size
from bigstep.console import format_bytes
from bigstep.data.store import Store
from bigstep.errors import OutOfMemoryError
from bigstep.memory.prediction import MemoryPrediction
from bigstep.models.building import InputShape
from bigstep.models.classifier import Classifier
from bigstep.models.model_files import build_classifier
from bigstep.planning.plan import plan_folder
from bigstep.planning.training_memory import predict_training
from bigstep.project.paths import ProjectPaths
from bigstep.runtime.device import choose_device, count_processes, total_memory_bytes

__all__ = [
    "AUTOMATIC",
    "OVERHEAD_BYTES",
    "available_bytes",
    "budget_bytes",
    "bytes_over_budget",
    "check_budget",
    "largest_fitting",
    "predict",
    "room_to_compute",
]

RESIDENT_PER_TENSOR_BYTE = 1.15  # oneDNN's own buffers, and what the allocator keeps
OVERHEAD_BYTES = 384 * 2**20  # of a training process besides the step: MLflow, the export of the model
AUTOMATIC = {"cpu": 0.8, "cuda": 0.9}  # share of the total


def predict(project: ProjectPaths, params: Params, store: Store, batch: BatchSizes) -> MemoryPrediction:
    """Predict the peak of tensors.

    This takes seconds, so each slicing's prediction is kept in a file beside the plan: many workers may predict at once.
    """
    layout = "" if isinstance(params.train.augmentation, str) else "-transformed"
    is_shared = count_processes(params) > 1
    shared = "-shared" if is_shared else ""
    name = f"peak-{batch.effective_batch_size}-{batch.micro_batch_size}{layout}{shared}.json"
    path = plan_folder(project, params, store) / name
    try:
        return read_record(MemoryPrediction, path)
    except (OSError, ValueError):
        found = _predict(params, store, batch, is_shared=is_shared)
    write_json(vars(found), path)
    return found


def _predict(params: Params, store: Store, batch: BatchSizes, *, is_shared: bool) -> MemoryPrediction:
    classifier = _build(params, store)
    found = predict_training(classifier, params.train, InputShape.of(store.manifest).tensor_shape, batch)
    if not is_shared:
        return found
    flat = _vector_bytes(params, classifier)
    return replace(found, peak_bytes=found.peak_bytes + flat, fixed_bytes=found.fixed_bytes + flat)


def _build(params: Params, store: Store) -> Classifier:
    manifest = store.manifest
    with torch.random.fork_rng(devices=[]):
        return build_classifier(
            params.model,
            InputShape.of(manifest),
            mean=manifest.mean,
            std=manifest.std,
            activation_checkpointing=params.hardware.activation_checkpointing,
        )


def _vector_bytes(params: Params, classifier: Classifier) -> int:
    """Return the bytes of the vector of all gradients that each of several processes adds up."""
    width = 8 if params.train.precision == "float64" else 4
    return width * sum(parameter.numel() for parameter in classifier.parameters())


def bytes_over_budget(params: Params, predicted: MemoryPrediction, resident: int) -> int:
    """Return the bytes by which a step exceeds the budget in a process of ``resident`` bytes; at most 0 if it fits."""
    room = available_bytes(params.hardware, resident)
    return -1 if room is None else int(predicted.peak_bytes * RESIDENT_PER_TENSOR_BYTE) - room


def largest_fitting(params: Params, predicted: MemoryPrediction, resident: int) -> int | None:
    """Return the largest micro-batch size that fits the budget by the prediction's line; None: there is no limit."""
    room = available_bytes(params.hardware, resident)
    return None if room is None else predicted.largest(int(room / RESIDENT_PER_TENSOR_BYTE))


def check_budget(params: Params, batch: BatchSizes, predicted: MemoryPrediction, resident: int) -> None:
    """Check that a step fits the budget in a process of ``resident`` bytes.

    Raises:
        OutOfMemoryError: it does not; the message has what it needs, the budget, and the largest size that fits.
    """
    budget = budget_bytes(params.hardware)
    room = available_bytes(params.hardware, resident)
    if budget is None or room is None or bytes_over_budget(params, predicted, resident) <= 0:
        return
    largest = min(predicted.largest(int(room / RESIDENT_PER_TENSOR_BYTE)), batch.micro_batch_size - 1)
    way_out = f"the largest size that fits is {largest}" if largest >= 1 else "not even a single sample fits"
    process = "" if room == budget else f" plus {format_bytes(resident + OVERHEAD_BYTES)} for the process itself"
    raise OutOfMemoryError(
        f"hardware.micro_batch_size: expected a step that fits hardware.memory_budget, {format_bytes(budget)}, got "
        f"{batch.micro_batch_size}, which needs {format_bytes(int(predicted.peak_bytes * RESIDENT_PER_TENSOR_BYTE))}"
        f"{process}; {way_out}"
    )


def budget_bytes(hardware: HardwareConfig) -> int | None:
    """Return ``hardware.memory_budget`` in bytes, of a GPU's allocator or of resident memory; None: no limit."""
    if hardware.memory_budget == "none":
        return None
    if hardware.memory_budget != "auto":
        return parse_size(hardware.memory_budget)
    device = choose_device(hardware)
    return int(AUTOMATIC[device.type] * total_memory_bytes(device))


def available_bytes(hardware: HardwareConfig, resident: int) -> int | None:
    """Return the bytes that a training step may take in a process that holds ``resident`` bytes without it.

    On a CPU all processes of a training share the budget; each GPU has one of its own.
    """
    budget = budget_bytes(hardware)
    if budget is None or choose_device(hardware).type == "cuda":
        return budget
    return budget // (1 if hardware.processes == "auto" else hardware.processes) - resident - OVERHEAD_BYTES


def room_to_compute(params: Params, store: Store, resident: int) -> int | None:
    """Return the bytes of :func:`available_bytes` that remain for what was measured in one process.

    Each of several processes holds one more vector of all gradients.
    """
    room = available_bytes(params.hardware, resident)
    if room is None or count_processes(params) == 1:
        return room
    return room - _vector_bytes(params, _build(params, store))
