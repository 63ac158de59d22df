"""The training batches of one process, with a mark on disk while memory is short."""

import os
from pathlib import Path

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.params import Params
from bigstep.data.store import Store
from bigstep.runs.low_memory_marker import LowMemoryMarker, mark_path
from bigstep.runtime.device import divided
from bigstep.training.shares import batch_share
from bigstep.training.state import TrainingState
from bigstep.training.training_batches import TrainingBatches

__all__ = ["open_batches"]


def open_batches(
    store: Store, params: Params, batch: BatchSizes, state: TrainingState, marker: Path, step_bytes: int
) -> LowMemoryMarker:
    """Return the batches that ``state`` is trained with.

    Args:
        store: the images.
        params: the configuration.
        batch: sizes of a step.
        state: of the training; one of several processes loads its own share.
        marker: path of the mark.
        step_bytes: predicted for one step.
    """
    workers, processes = params.hardware.num_workers, state.processes
    if processes is not None:
        workers = divided((os.cpu_count() or 1) // 2 if workers is None else workers, processes.count)
        marker = mark_path(marker, processes.rank)
    source = TrainingBatches(
        store,
        params.train,
        batch.effective_batch_size,
        workers,
        pinned=state.classifier.mean.is_cuda,
        share=batch_share(processes, params.train, params.model.ghost_batch_size),
    )
    return LowMemoryMarker(source, marker, step_bytes, lambda: state.accumulator.micro_batch_size)
