"""The end of a step that several processes share: an agreement, the sum of gradients, and pooled statistics.

Each process has run its own share, without any communication. Whatever happened to it, it then issues the same collectives as
all others: an error in one process is raised in all of them, and no process is left waiting. What takes memory is done before
they agree; what fails afterwards nevertheless ends the group (:meth:`Processes.step`).
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bigstep.errors import LossError, OtherProcessError
from bigstep.step.gradient_sum import GradientSum, squared_norm
from bigstep.step.micro_batch_loop import AccumulationSettings, MicroBatchLoop
from bigstep.step.noise_scale import NoiseSample
from bigstep.step.process_group import Processes

__all__ = ["SharedEnd", "check_weight"]

WEIGHT_TOLERANCE = 1e-6  # of sums of float32 class weights in another order


@dataclass(frozen=True)
class _Agreement:
    """What the processes know of the step after the first sum."""

    failed: list[int]
    loss: Tensor
    num_samples: int
    found: float
    """Sum of the weights, by the loss or from the forward passes."""
    given: tuple[float, float]
    """Mean of the weights that the processes were given, and of their squares."""
    noise: list[float]
    """Processes with a weight; what they are worth; their squared norms times that; sums of weights, and of squared weights."""
    present: list[bool]
    """Whether any process has a gradient, for each parameter."""


@final
class SharedEnd:
    """Ends a step of one of several processes."""

    def __init__(self, processes: Processes, settings: AccumulationSettings, device: torch.device) -> None:
        """End steps with ``settings`` on ``device``."""
        self._processes, self._settings, self._device = processes, settings, device

    def finish(
        self, loop: MicroBatchLoop, gradients: GradientSum, problem: BaseException | None, weight: float | None
    ) -> tuple[Tensor, float, NoiseSample | None, int]:
        """Set ``.grad`` to the gradient of the whole effective batch, the same bits in each process.

        Args:
            loop: of the own share, which may be empty.
            gradients: of the own share.
            problem: what ended the own share early.
            weight: of the whole effective batch; None if it is known from the forward passes only.

        Returns:
            The mean loss, the weight, the norms for the noise scale, and the number of samples of all processes.

        Raises:
            OtherProcessError: another process failed before they agreed.
        """
        own, flat = torch.zeros(0), torch.zeros(0)
        try:  # before the agreement: there may be no memory for it
            if problem is None:
                _check_summable(gradients)
                flat, own = gradients.vector(), self._own_numbers(loop, gradients, weight or 0.0)
                gradients.fill(flat)
        except BaseException as error:  # noqa: BLE001 # raised in all processes, after they have agreed
            problem = error
        found = self._agree(own, len(gradients.present()), problem)
        with self._processes.known_to_all():
            try:
                _check(found, problem, weight)
            finally:
                problem = None  # its frames hold activations, and this one
        total = found.found if weight is None else weight
        if total not in (0, loop.divisor):
            gradients.scale(loop.divisor / total)
            flat.mul_(loop.divisor / total)
        self._processes.add_up(flat)
        self._settings.statistics.pool(self._processes.add_up, self._device)
        if total == 0:
            return found.loss * 0, 0.0, None, found.num_samples
        gradients.replace(flat, found.present)
        noise = None if self._settings.noise is None else self._noise(loop, found, flat)
        gradients.finish()
        return found.loss / total, total, noise, found.num_samples

    def _own_numbers(self, loop: MicroBatchLoop, gradients: GradientSum, weight: float) -> Tensor:
        count, numbers = self._processes.count, torch.zeros(10, dtype=torch.float64, device=self._device)
        numbers[0], numbers[1], numbers[2] = loop.total, sum(loop.sizes), loop.found_weight()
        numbers[3], numbers[4] = weight / count, weight**2 / count
        numbers[5:] = loop.noise_share()
        present = torch.tensor(gradients.present(), dtype=torch.float64, device=self._device)
        return torch.cat([numbers, present])

    def _agree(self, own: Tensor, num_parameters: int, problem: BaseException | None) -> _Agreement:
        count, rank = self._processes.count, self._processes.rank
        values = torch.zeros(count + 10 + num_parameters, dtype=torch.float64, device=self._device)
        if problem is None:
            values[count:] = own
        else:
            values[rank] = 1.0
        told = self._processes.add_up(values).tolist()
        return _Agreement(
            [number for number in range(count) if told[number]],
            values[count],
            int(told[count + 1]),
            told[count + 2],
            (told[count + 3], told[count + 4]),
            told[count + 5 : count + 10],
            [value > 0 for value in told[count + 10 :]],
        )

    def _noise(self, loop: MicroBatchLoop, found: _Agreement, flat: Tensor) -> NoiseSample | None:
        """Return the norms of the processes' shares, each of which is an estimate of the whole gradient."""
        count, worth, weighted, weights, squares = found.noise
        if count < 2:
            return None
        whole = squared_norm([flat]) * loop.unscaled()
        sizes = (worth / count,) * int(count)  # only their number and sum enter
        sample = NoiseSample(sizes, weights**2 / squares, found.num_samples, whole, None, torch.tensor(weighted))
        return sample if sample.is_usable else None


def _check_summable(gradients: GradientSum) -> None:
    reason = gradients.unsummable()
    if reason is not None:
        raise LossError(reason)


def _check(found: _Agreement, problem: BaseException | None, weight: float | None) -> None:
    """Raise what ended the own share or another one, or that the weights do not fit: in all processes something is raised."""
    if problem is not None:
        try:
            raise problem
        finally:
            problem = None  # its frames hold activations, and this one
    if found.failed:
        raise OtherProcessError(
            f"process {found.failed[0]}: expected its share of the step, got an error there; its own output names it"
        )
    if weight is not None:
        _check_same(found)
        check_weight(found.found, found.given[0])  # the mean, so that all come to the same answer


def _check_same(found: _Agreement) -> None:
    """Check that all processes were given the same weight; from sums, so that all come to the same answer."""
    mean, square = found.given
    if abs(square - mean**2) > WEIGHT_TOLERANCE**2 * max(mean**2, 1.0):
        raise LossError(
            f"weight: expected the same in all processes, got several, {mean:g} in the mean; give loss.weight of all targets"
        )


def check_weight(found: float, weight: float) -> None:
    """Check that the weights of micro-batches, or of shares, add up to ``weight``.

    Raises:
        LossError: they do not.
    """
    if abs(found - weight) > WEIGHT_TOLERANCE * max(abs(weight), 1.0):
        raise LossError(
            f"weight: expected that of all micro-batches together, {found:g}, got {weight:g}; give loss.weight of all targets"
        )
