"""Collect what is known of the slicings of a training: predictions, and what ``auto`` or `bigstep plan` has measured."""

from bigstep.config.params import Params
from bigstep.data.store import Store
from bigstep.planning.automatic_plan import stored_curves
from bigstep.planning.memory_budget import RESIDENT_PER_TENSOR_BYTE, predict
from bigstep.planning.slicing_choice import CheckedSlicing
from bigstep.planning.slicing_record import SlicingRecord
from bigstep.planning.throughput import candidate_sizes
from bigstep.project.paths import ProjectPaths

__all__ = ["record_slicing"]


def record_slicing(project: ProjectPaths, params: Params, store: Store, chosen: CheckedSlicing) -> SlicingRecord:
    """Return the record of a training that starts with ``chosen``; nothing is measured for it.

    Args:
        project: its state folder holds plans and predictions.
        params: as configured, before the choice was applied.
        store: the images.
        chosen: from :func:`bigstep.planning.slicing_choice.choose_slicing`.
    """
    batch, room = chosen.batch, chosen.room_bytes
    line = predict(project, params, store, batch)
    sizes = sorted({*candidate_sizes(batch.effective_batch_size), batch.micro_batch_size})
    return SlicingRecord(
        batch.effective_batch_size,
        batch.micro_batch_size,
        chosen.memory_format,
        None if room is None else int(room / RESIDENT_PER_TENSOR_BYTE),
        tuple((size, line.peak_bytes if size == batch.micro_batch_size else line.at(size)) for size in sizes),
        {
            curve.memory_format: tuple(sorted((rung.micro_batch_size, rung.samples_per_second) for rung in curve.rungs))
            for curve in stored_curves(project, params, store)
        },
    )
