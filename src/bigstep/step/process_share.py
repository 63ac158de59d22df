"""What one of several processes adds to an effective batch: its samples, their positions, and what is divided by."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bigstep.step.batch_structure import BatchStructure
from bigstep.step.losses import is_loss
from bigstep.step.micro_batch_loop import AccumulationSettings, MicroBatch
from bigstep.step.process_group import Announcement, Processes, check_model
from bigstep.step.slicing import balanced_sizes, slices

__all__ = ["ProcessShare", "open_share"]


@dataclass(frozen=True)
class ProcessShare:
    """The own samples, or what is wrong with them: it is raised in all processes after they have agreed."""

    batch: BatchStructure | None
    problem: BaseException | None
    positions: Tensor
    own_weight: float | None
    """By the targets; None if the loss does not say."""
    weight: float | None
    """Of the whole effective batch; None if it is known from the forward passes only."""
    divisor: float

    def parts(self, micro_batch_size: int) -> Iterator[MicroBatch]:
        """Cut the samples.

        Raises:
            ValueError: they are not as they should be.
        """
        if self.problem is not None:
            raise self.problem
        if self.batch is None:
            return
        for part in slices(balanced_sizes(self.batch.num_samples, micro_batch_size)):
            yield MicroBatch(self.batch, part, self.positions)


def open_share(
    processes: Processes,
    settings: AccumulationSettings,
    device: torch.device,
    read: Callable[[], BatchStructure] | None,
    *,
    weight: float | None,
    positions: Tensor | None,
    sizes: Sequence[int] | None,
    problem: BaseException | None = None,
) -> ProcessShare:
    """Look at the own samples; the processes exchange what they have, in one sum, unless it is given.

    Args:
        processes: of the group.
        settings: of the accumulator.
        device: of the model.
        read: returns the own samples; None: this process has no samples.
        weight: of the whole effective batch; a callable loss, which does not say it beforehand, needs ``sizes`` only.
        positions: of the own samples.
        sizes: number of samples of each process.
        problem: an error that left this process without its samples.
    """
    loss = settings.loss
    structure, count, own = None, 0, 0.0 if is_loss(loss) else None
    given: tuple[int, ...] = ()
    try:
        check_model(settings.model, settings.statistics)
        structure = None if read is None else read()
        count = 0 if structure is None else structure.num_samples
        structure = structure if count else None
        if structure is not None and is_loss(loss):
            own = loss.weight(structure.targets)
        given = () if sizes is None else tuple(map(int, sizes))
        if positions is not None and len(positions) != count:
            raise ValueError(f"positions: expected one for each of {count} samples, got {len(positions)}; give as many")
    except BaseException as error:  # noqa: BLE001 # raised in all processes, after they have agreed
        problem = problem or error
    if weight is None and (is_loss(loss) or sizes is None):
        found = processes.announce(count, own or 0.0, device)
        weight = None if own is None else found.weight
    else:
        found = Announcement(given, weight or 0.0)
    problem = problem or _check(found, processes, count, positions)
    begin = found.begin(processes.rank)
    places = torch.arange(begin, begin + count) if positions is None else positions
    divisor = float(sum(found.sizes)) if weight is None else weight
    return ProcessShare(structure, problem, places, own, weight, divisor or 1.0)


def _check(found: Announcement, processes: Processes, count: int, positions: Tensor | None) -> ValueError | None:
    if positions is None and not found.sizes:
        return ValueError("positions: expected them or sizes= where weight is given, got none; give one of them")
    if found.sizes and (len(found.sizes) != processes.count or found.sizes[processes.rank] != count):
        return ValueError(
            f"sizes: expected the number of samples of each of {processes.count} processes, {count} of this one, got "
            f"{found.sizes}; correct them"
        )
    return None
