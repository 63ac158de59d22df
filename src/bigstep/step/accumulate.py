"""The exact gradient of an effective batch, computed one micro-batch at a time.

N samples in the effective batch, cut into micro-batches k of n_k samples; sample i has loss l_i and weight w_i.
The gradient wanted is that of L = sum_i(w_i * l_i) / W with W = sum_i(w_i). It is linear in the samples, so micro-batch k
contributes the gradient of S_k / W, where S_k sums w_i * l_i over its own samples: no mean of means, and no second pass
over the gradients, because W follows from the targets before the first forward pass.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, final

import torch
from torch import Tensor, nn

from bigstep.step.batch_norm import DeferredStatistics
from bigstep.step.batch_structure import BatchStructure
from bigstep.step.gradient_sum import GradientSum
from bigstep.step.loss_arguments import resolve_loss
from bigstep.step.losses import Loss, is_loss
from bigstep.step.micro_batch_loop import AccumulationSettings, MicroBatch, MicroBatchLoop, PerSampleLoss
from bigstep.step.noise_scale import NoiseSample
from bigstep.step.process_group import open_processes
from bigstep.step.process_share import open_share
from bigstep.step.processes import warn_of_shares
from bigstep.step.shared_step import SharedEnd, check_weight
from bigstep.step.slicing import balanced_sizes, slices
from bigstep.step.step_runner import StepEnd, StepRunner

__all__ = ["Accumulator", "BackwardResult"]


@dataclass(frozen=True)
class BackwardResult:
    """The result of one effective batch."""

    loss: Tensor
    """Mean loss of the effective batch: a scalar on the model's device; reading it is the caller's choice."""
    weight: float
    """What the sum of losses was divided by; 0 means that ``.grad`` was left as it was."""
    noise: NoiseSample | None
    """Squared norms for the gradient noise scale; None with fewer than two micro-batches, or when not asked for."""
    micro_batch_sizes: tuple[int, ...]
    """Samples of each micro-batch, in order; those of this process."""
    num_samples: int
    """Of all micro-batches, of all processes."""


@final
class Accumulator:
    """Adds the exact gradient of an effective batch's mean loss to ``.grad``, in micro-batches of bounded size.

    Equal to ``loss(model(inputs), targets).backward()`` on the whole batch, for every loss of the form
    ``sum(w * l) / sum(w)`` and every model that treats its samples apart. Whether yours do is checked on the first batch, on
    a few of its samples; BatchNorm does not, and is warned of. When anything goes wrong on the way, ``.grad``, buffers and
    torch's random state on the CPU are as they were before.
    """

    def __init__(  # noqa: PLR0913 # each is an option of its own
        self,
        model: nn.Module,
        loss: Loss | PerSampleLoss,
        *,
        micro_batch_size: int,
        seed: int | None = None,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        noise: str | None = None,
        statistics: DeferredStatistics | None = None,
        shared: Sequence[str | int] = (),
        self_check: bool = True,
        group: Any = None,
    ) -> None:
        """Remember the parts; nothing is copied.

        Args:
            model: any module; it runs in the mode it is in.
            loss: one of :mod:`bigstep.losses`, or a callable ``(outputs, targets)`` that returns one loss per sample, shape
                ``(n,)``, optionally with their weights as ``(losses, weights)``; torch's ``nn.CrossEntropyLoss``,
                ``nn.BCEWithLogitsLoss`` and ``nn.MSELoss`` with their default reduction are taken as ours.
            micro_batch_size: the most samples of one forward and backward pass.
            seed: keys dropout and other random calls of the model by (seed, step, position in the effective batch), so that
                they do not depend on the cut; None leaves them to torch's generators, which do.
            autocast: run the forward pass under :class:`torch.autocast` of this type (torch.bfloat16 or torch.float16).
            scaler: scales each micro-batch's loss by its constant; unscaling and updating stay with the caller, once per step.
            noise: measure squared gradient norms for :class:`bigstep.step.noise_scale.NoiseScale`: ``"first"`` of the first
                micro-batch and the whole, ``"every"`` of each micro-batch, which settles sooner and costs more; None does not.
            statistics: collects BatchNorm's statistics for one update per step.
            shared: keys or fields of the inputs, or positions in their tuple, that hold what all samples share, such as an
                attention mask of shape ``(L, L)``: they are passed whole.
            self_check: on the first batch, and after modules or their modes changed, run at most eight samples twice, cut in
                two ways, and compare; fewer than three passes a sample on average. Forward hooks are called more often.
            group: of torch.distributed, whose processes share each effective batch: each gives its own samples, or none, and
                all end with the gradient of the whole. Gradients are summed here, once a step; leave DistributedDataParallel
                out. An error in one process is raised in all.

        Raises:
            LossError: ``loss`` would be averaged otherwise than torch does.
            ValueError: ``micro_batch_size`` is below 1, or ``noise`` is unknown.
            TypeError: ``loss`` is neither a loss nor callable.
        """
        balanced_sizes(1, micro_batch_size)
        if noise not in (None, "first", "every"):
            raise ValueError(f"noise: expected None, 'first' or 'every', got {noise!r}")
        self.micro_batch_size = micro_batch_size
        loss = resolve_loss(loss)
        scaler = torch.amp.GradScaler(enabled=False) if scaler is None else scaler
        statistics = DeferredStatistics(nn.Module()) if statistics is None else statistics  # of no layer
        self._settings = AccumulationSettings(model, loss, autocast, scaler, noise, statistics)
        self._structure = partial(BatchStructure, shared=tuple(shared), list_kinds=set[bool]())
        self._processes = open_processes(group)
        self._runner = StepRunner(self._settings, seed=seed, self_check=self_check, shares=self._processes is not None)
        self._next_step = 0

    def backward(
        self,
        inputs: Any,
        targets: Any,
        *,
        step: int | None = None,
        positions: Tensor | None = None,
        weight: float | None = None,
        sizes: Sequence[int] | None = None,
    ) -> BackwardResult:
        """Add the gradient of the batch's mean loss to ``.grad`` of every parameter that takes part.

        Args:
            inputs: a tensor ``(N, ...)``, a list of N things (strings, tensors of different shapes), or a tuple, mapping or
                dataclass of such, on the host or the device; tensors are moved to the model's device one micro-batch at a
                time. The model is called with the items of a tuple, and with the keywords of a mapping. With a group those of
                this process; None: it has no sample.
            targets: the same, for the loss.
            step: keys random calls, with the seed; None counts the calls of this method.
            positions: of the samples in the effective batch, shape ``(N,)``, for one process among several; None: 0 to N - 1,
                with a group from the end of the samples of the process before.
            weight: what the sum of losses is divided by; None: the weight of ``targets``, with a group of all of them, which
                costs one more exchange (not for a callable loss with ``sizes``). With DistributedDataParallel, which averages
                gradients, the weight of the whole effective batch over the number of processes.
            sizes: with a group, the number of samples of each process; needed with ``weight`` and without ``positions``.

        Raises:
            ValueError: the number of samples differs or does not follow, or there is no sample.
            ExactnessError: the first batch showed that the gradient depends on the micro-batch size.
            LossError: the loss returned or was given something else than it should.
            RandomnessError: there is a seed, and the model draws random numbers that cannot be keyed by sample.
            OtherProcessError: another process failed. LostProcessError, LostStepError: one has ended, or is out of step.
        """
        if self._processes is not None:
            read = None if inputs is None else partial(self._structure, inputs, targets)
            return self._run_share(read, step, weight=weight, positions=positions, sizes=sizes)
        batch = self._structure(inputs, targets)
        total = batch.num_samples
        places = torch.arange(total) if positions is None else positions
        if total == 0:
            raise ValueError("effective batch: expected at least one sample, got none; skip it")
        if len(places) != total:
            raise ValueError(f"positions: expected one for each of {total} samples, got {len(places)}; give as many")
        loss = self._settings.loss

        def parts() -> Iterator[MicroBatch]:
            for part in slices(balanced_sizes(total, self.micro_batch_size)):
                yield MicroBatch(batch, part, places)

        if weight is None and is_loss(loss):
            weight = loss.weight(targets)
            if not self._next_step:
                warn_of_shares(self._settings.model)
        divisor = float(total) if weight is None else weight
        return self._run(parts, divisor, step, self._end(weight), attempts=2)

    def fail(self, problem: BaseException, *, weight: float | None = None, sizes: Sequence[int] | None = None) -> NoReturn:
        """Raise ``problem`` here, and :class:`bigstep.errors.OtherProcessError` in the other processes of the group.

        To be called instead of :meth:`backward`, where the samples of this process could not be prepared: the same is
        exchanged, so that no process is left waiting.

        Args:
            problem: what went wrong.
            weight: as the other processes give it to :meth:`backward`.
            sizes: the same.
        """
        if self._processes is not None:
            self._run_share(None, weight=weight, positions=None, sizes=sizes, problem=problem)
        raise problem

    def backward_stream(
        self, micro_batches: Iterable[tuple[Any, Any]], weight: float, *, step: int | None = None, start: int = 0
    ) -> BackwardResult:
        """Do what :meth:`backward` does with micro-batches as they come, so that the whole need never be held.

        Args:
            micro_batches: ``(inputs, targets)`` pairs of one effective batch; their sizes are the caller's. With a group those
                of this process, or none.
            weight: total weight of the effective batch, as ``loss.weight`` gives it for all targets together.
            step: keys random calls, with the seed; None counts the calls.
            start: position of the first sample in the effective batch, where another process has those before it.

        Raises:
            LossError: the micro-batches' weights do not add up to ``weight``; ``.grad`` is as it was.
            TypeError: the loss is a callable, whose weight is not known beforehand.
            OtherProcessError: another process failed. LostProcessError, LostStepError: one has ended, or is out of step.
        """
        loss = self._settings.loss
        if not is_loss(loss):
            raise TypeError("backward_stream needs a bigstep loss, whose weight is known beforehand; a callable's is not")
        found = 0.0

        def parts() -> Iterator[MicroBatch]:
            nonlocal found
            place = start
            for inputs, targets in micro_batches:
                batch = self._structure(inputs, targets)
                size = batch.num_samples
                yield MicroBatch(batch, slice(0, size), torch.arange(place, place + size))
                place, found = place + size, found + loss.weight(targets)
            if self._processes is None:
                check_weight(found, weight)

        with nullcontext() if self._processes is None else self._processes.step():
            return self._run(parts, weight or 1.0, step, self._end(weight, lambda: found), attempts=1)

    def _run_share(self, read: Callable[[], BatchStructure] | None, step: int | None = None, **known: Any) -> BackwardResult:
        """Run the step of one of several processes, whose samples ``read`` looks at."""
        assert self._processes is not None
        with self._processes.step():
            share = open_share(self._processes, self._settings, self._runner.device, read, **known)
            end = self._end(share.weight, lambda: share.own_weight)
            return self._run(partial(share.parts, self.micro_batch_size), share.divisor, step, end, attempts=2)

    def _end(self, weight: float | None, own_weight: Callable[[], float | None] = lambda: None) -> StepEnd:
        """Return what ends a step whose whole effective batch has ``weight``, the own share of it ``own_weight``."""

        def end(loop: MicroBatchLoop, gradients: GradientSum, problem: BaseException | None) -> BackwardResult:
            if self._processes is None:
                loss, whole, noise = loop.finish(weight)
                return BackwardResult(loss, whole, noise, tuple(loop.sizes), sum(loop.sizes))
            if (own := own_weight()) is not None:
                loop.find_weight(own)
            shared = SharedEnd(self._processes, self._settings, self._runner.device)
            try:
                loss, whole, noise, count = shared.finish(loop, gradients, problem, weight)
            finally:
                problem = None  # its frames hold activations, and this one
            return BackwardResult(loss, whole, noise, tuple(loop.sizes), count)

        return end

    def _run(
        self, parts: Callable[[], Iterator[MicroBatch]], divisor: float, step: int | None, end: StepEnd, *, attempts: int
    ) -> BackwardResult:
        step = self._next_step if step is None else step
        self._next_step = step + 1
        if divisor == 0 and self._processes is None:
            return BackwardResult(torch.zeros((), device=self._runner.device), 0.0, None, (), 0)
        result: BackwardResult = self._runner.run(
            parts, divisor, step, end, micro_batch_size=self.micro_batch_size, attempts=attempts
        )
        return result
