"""Predicted against measured peaks of a step on the CPU; writes docs/memory.md."""

import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from bigstep.memory.measurement import peak_growth
from bigstep.memory.prediction import predict_memory

PAGE = Path(__file__).resolve().parents[2] / "docs" / "memory.md"
BEGIN, END = "<!-- table: written by `make memory` -->", "<!-- end of table -->"
SIZE, MICRO_BATCH_SIZES = 64, (2, 4, 8)
MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
    "densenet121",
    "vgg11_bn",
    "shufflenet_v2_x1_0",
    "regnet_y_400mf",
    "squeezenet1_1",
)


def build(name: str) -> nn.Module:
    """Build one of torchvision's classifiers for 64 pixels and ten classes."""
    options = {"image_size": SIZE} if name.startswith("vit") else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    return model.train()


def measure(name: str, micro: int, precision: str) -> int:
    """Return the peak of two steps of two micro-batches each, from an empty start: every byte is counted."""

    def run() -> None:
        model = build(name)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)
        images, labels = torch.randn(micro, 3, SIZE, SIZE), torch.zeros(micro, dtype=torch.int64)
        for _ in range(2):
            optimizer.zero_grad()
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                    loss = F.cross_entropy(model(images), labels, reduction="sum") / micro
                loss.backward()
                del loss
            optimizer.step()

    return peak_growth(run)


def main() -> None:
    """Run every case and write the table into the page."""
    torch.set_num_threads(1)
    lines = [f"| model | {' | '.join(f'{p}, m = {m}' for p in ('float32', 'bfloat16') for m in MICRO_BATCH_SIZES)} | seconds |"]
    lines.append("| --- |" + " ---: |" * (2 * len(MICRO_BATCH_SIZES) + 1))
    errors, seconds = [], []
    for name in MODELS:
        cells, times = [], []
        for precision in ("float32", "bfloat16"):
            for micro in MICRO_BATCH_SIZES:
                model, started = build(name), time.perf_counter()
                predicted = predict_memory(model, (3, SIZE, SIZE), micro, precision=precision)
                times.append(time.perf_counter() - started)
                error = predicted.peak_bytes / measure(name, micro, precision) - 1
                cells.append(f"{predicted.peak_bytes / 1e6:.1f} MB, {error:+.2%}")
                errors.append(abs(error))
        seconds += times
        lines.append(f"| {name} | {' | '.join(cells)} | {max(times):.1f} |")
        sys.stdout.write(lines[-1] + "\n")
        sys.stdout.flush()
    summary = (
        f"{len(errors)} cases: median error {statistics.median(errors):.3%}, largest {max(errors):.2%}; "
        f"a prediction took {statistics.median(seconds):.1f} s in the median, {max(seconds):.1f} s at most."
    )
    page = PAGE.read_text(encoding="utf-8")
    head, tail = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    table = "\n".join(lines)
    PAGE.write_text(f"{head}\n{table}\n\n{summary}\n{tail}", encoding="utf-8")
    sys.stdout.write(summary + "\n")


if __name__ == "__main__":
    main()
