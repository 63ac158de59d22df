"""Several processes that share an effective batch: sums over them, and what a model must not do there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bigstep.errors import LostStepError, OtherProcessError
from bigstep.step.batch_norm import DeferredStatistics, batch_modules

__all__ = ["Announcement", "Processes", "check_model", "open_processes"]

T = TypeVar("T")


@final
class Processes:
    """The processes of a group of torch.distributed; every one issues the same collectives in the same order."""

    def __init__(self, group: Any) -> None:
        """Join ``group``, of which this process is a member."""
        import torch.distributed as dist

        self._group, self._dist = group, dist
        self.count: int = dist.get_world_size(group)
        self.rank: int = dist.get_rank(group)
        self._is_adding = False  # and after that where a sum failed: another process has ended
        self._is_known = False

    def add_up(self, values: Tensor) -> Tensor:
        """Replace ``values`` by their sum over all processes: the same bits in each of them."""
        self._is_adding = True
        self._dist.all_reduce(values, op=self._dist.ReduceOp.SUM, group=self._group)
        self._is_adding = False
        return values

    @contextmanager
    def step(self) -> Iterator[None]:
        """Run a step, in which the others wait for this process: any error ends the group that they have not agreed on.

        Raises:
            LostStepError: there was one.
        """
        self._is_known = False
        try:
            yield
        except Exception as error:
            if self._is_adding or self._is_known:
                raise
            got = f"{type(error).__name__}: {error}".splitlines()[0]
            raise LostStepError(
                f"process {self.rank}: expected its part of the sums that others wait for, got {got}; start all processes again"
            ) from error

    @contextmanager
    def known_to_all(self) -> Iterator[None]:
        """Within the block of a step an error is one that all processes raise, or know of."""
        self._is_known = True
        yield
        self._is_known = False

    def agree(self, problem: BaseException | None, device: torch.device) -> None:
        """Raise ``problem``, if there is one, and in all other processes that there is; the sum of flags is on ``device``.

        Raises:
            OtherProcessError: another process has one.
        """
        flags = torch.zeros(self.count, dtype=torch.float64, device=device)
        flags[self.rank] = problem is not None
        failed = self.add_up(flags).nonzero().flatten().tolist()
        if problem is not None:
            try:
                raise problem
            finally:
                problem = None  # its frames hold tensors, and this one
        if failed:
            raise OtherProcessError(f"process {failed[0]}: expected its part of the work, got an error there")

    def together(self, function: Callable[[], T], device: torch.device) -> T:
        """Call ``function``, which does not communicate; where it fails in one process, it has failed in all."""
        problem: BaseException | None = None
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 # raised in all processes, after they have agreed
            problem = error
        try:
            self.agree(problem, device)
        finally:
            problem = None  # its frames hold tensors, and this one
        return result

    def announce(self, num_samples: int, weight: float, device: torch.device) -> "Announcement":
        """Exchange the number of samples of each process, and their weights' sum."""
        values = torch.zeros(self.count + 1, dtype=torch.float64, device=device)
        values[self.rank], values[-1] = num_samples, weight
        *sizes, total = self.add_up(values).tolist()
        return Announcement(tuple(map(int, sizes)), total)


def open_processes(group: Any) -> Processes | None:
    """Return the processes of ``group``; None without one, or where this process is alone in it."""
    processes = None if group is None else Processes(group)
    return None if processes is None or processes.count == 1 else processes


@dataclass(frozen=True)
class Announcement:
    """How many samples of an effective batch each process has, and the weight of all."""

    sizes: tuple[int, ...]
    weight: float

    def begin(self, rank: int) -> int:
        """Return the position of a process's first sample where the shares follow one another."""
        return sum(self.sizes[:rank])


def check_model(model: nn.Module, statistics: DeferredStatistics) -> None:
    """Check that nothing of a model communicates by itself, or would become another one in each process.

    Raises:
        ValueError: it does.
    """
    if isinstance(model, DistributedDataParallel):
        raise ValueError(  # noqa: TRY004 # it is a module
            "model: expected a plain module beside group=, got DistributedDataParallel, which would exchange gradients, too; "
            "give the module inside"
        )
    talking = [name for name, module in model.named_modules() if isinstance(module, nn.SyncBatchNorm)]
    if talking:
        raise ValueError(
            f"model: expected no layer that communicates in its forward pass, got {talking[0]} (SyncBatchNorm); "
            "use BatchNorm with statistics=DeferredStatistics(model), or GroupNorm"
        )
    kept = [module for module in batch_modules(model) if getattr(module, "track_running_stats", True)]
    own = [module for module in kept if module not in statistics]
    if own:
        raise ValueError(
            f"model: expected running statistics that all processes share, got those of {type(own[0]).__name__}, which each "
            "would keep of its own samples; give statistics=DeferredStatistics(model)"
        )
