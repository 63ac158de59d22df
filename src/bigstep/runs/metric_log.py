"""Training records as rows, metrics and lines on the console."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bigstep.console import console, format_bytes, format_score, format_seconds
from bigstep.memory.measurement import peak_memory_bytes
from bigstep.tracking.tracker import Metric, Tracker
from bigstep.training.records import EpochRecord, StepRecord

__all__ = ["MetricLog"]

FLUSH_SECONDS = 5.0


class MetricLog:
    """Sends metrics in batches, keeps one row per epoch, and prints a line per epoch; epochs are counted from 1."""

    def __init__(
        self,
        tracker: Tracker,
        device: torch.device,
        num_epochs: int,
        steps_per_epoch: int,
        score: str = "accuracy",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start with nothing; ``score`` is the task's, ``clock`` returns seconds."""
        self._clock, self._score = clock, f"val_{score}"
        self.tracker = tracker
        self.device = device
        self.num_epochs = num_epochs
        self.steps_per_epoch = steps_per_epoch
        self.rows: list[dict[str, Any]] = []
        self.num_images = 0
        self._pending: list[Metric] = []
        self._steps: list[tuple[StepRecord, int]] = []
        self._opened = self._started = self._flushed = self._epoch_started = self._clock()
        self._epoch_images = 0
        self._learning_rate, self._last_step, self._first_step = 0.0, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {
            "rows": self.rows,
            "learning_rate": self._learning_rate,
            "last_step": self._last_step,
            "epoch_images": self._epoch_images,
            "epoch_seconds": self._clock() - self._epoch_started,
            "images": self.num_images,
            "seconds": self.seconds,
        }

    def load_state_dict(self, kept: Mapping[str, Any], step: int) -> None:
        """Continue at ``step`` from what :meth:`state_dict` returned."""
        self.rows = [{**row, "epoch": number} for number, row in enumerate(kept["rows"], 1)]  # earlier versions counted from 0
        self._learning_rate, self._last_step = kept["learning_rate"], kept["last_step"]
        self._epoch_images, self._first_step = kept["epoch_images"], step
        self._epoch_started = self._clock() - kept["epoch_seconds"]
        self.num_images = kept.get("images", 0)
        self._started = self._clock() - kept.get("seconds", 0.0)

    @property
    def images_per_second(self) -> float:
        """Training samples per second so far, validation included; without the time between a kill and the next start."""
        return self.num_images / max(self.seconds, 1e-9)

    @property
    def seconds(self) -> float:
        """Of training so far, validation included; without the time between a kill and the next start."""
        return self._clock() - self._started

    def add(self, record: StepRecord | EpochRecord) -> None:
        """Add one record."""
        if isinstance(record, StepRecord):
            self._add_step(record)
        else:
            self._add_epoch(record)

    def describe(self, record: StepRecord) -> str:
        """Write what a live line shows of a step."""
        left = self._left_seconds(record.step + 1)
        return (
            f"epoch {record.epoch + 1}/{self.num_epochs}  loss {format_score(float(record.loss))}  "
            f"{self.images_per_second:,.0f} samples/s  peak {format_bytes(peak_memory_bytes(self.device))}  "
            f"left {format_seconds(left)}"
        )

    def _left_seconds(self, done: int) -> float:
        passed = self._clock() - self._opened
        return (self.num_epochs * self.steps_per_epoch - done) * passed / max(done - self._first_step, 1)

    def _add_step(self, record: StepRecord) -> None:
        self.num_images += record.num_samples
        self._epoch_images += record.num_samples
        self._learning_rate, self._last_step = record.learning_rate, record.step
        self._steps.append((record, _now()))
        if self._clock() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def _add_epoch(self, record: EpochRecord) -> None:
        seconds, number = self._clock() - self._epoch_started, record.epoch + 1
        row = {
            "epoch": number,
            "num_updates": record.num_updates,
            "train_loss": record.train_loss,
            "val_loss": record.validation.loss,
            self._score: record.validation.score,
            "learning_rate": self._learning_rate,
        }
        self.rows.append(row)
        shown = {**row, "images_per_second": self._epoch_images / seconds, "num_dropped": record.num_dropped}
        shown["peak_memory_bytes"] = peak_memory_bytes(self.device)
        if record.peak_bytes is not None:
            shown["peak_tensor_bytes"] = record.peak_bytes
        step = self._last_step
        self._pending += [
            Metric(key, float(value), step, _now())
            for key, value in shown.items()
            if key not in ("learning_rate", "num_updates")
        ]
        self.flush()
        left = self._left_seconds(number * self.steps_per_epoch)
        console.print(
            f"epoch {number}/{self.num_epochs}  loss {format_score(record.train_loss)}  "
            f"val_loss {format_score(record.validation.loss)}  "
            f"{self._score} {format_score(record.validation.score)}{' best' if record.is_best else '     '}  "
            f"{shown['images_per_second']:,.0f} samples/s  peak {format_bytes(shown['peak_memory_bytes'])}  "
            f"left {format_seconds(left)}"
        )
        self._epoch_started, self._epoch_images = self._clock(), 0

    def flush(self) -> None:
        """Send what is pending in one message; reading the losses waits for the device once."""
        for record, timestamp in self._steps:
            values = {
                "step_loss": float(record.loss),
                "gradient_norm": record.gradient_norm,
                "learning_rate": record.learning_rate,
                **({} if record.noise_scale is None else {"noise_scale": record.noise_scale}),
            }
            self._pending += [Metric(key, value, record.step, timestamp) for key, value in values.items()]
        self.tracker.log_metrics(self._pending)
        self._pending, self._steps = [], []
        self._flushed = self._clock()


def _now() -> int:
    return int(time.time() * 1000)
