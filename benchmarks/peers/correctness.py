"""The same cases through bigstep and its peers; writes docs/peers.md: relative errors against one pass over the whole batch."""

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from bigstep import Accumulator, losses
from bigstep.data.mixing import mix_batch
from cases import CASES, CLASSES, Case, make_model, reference_gradients
from systems import RATE, SYSTEMS, Options, System, quiet

PAGE = Path(__file__).resolve().parents[2] / "docs" / "peers.md"
Measure = Callable[[System], float | None]


def gradient_error(case: Case) -> Measure:
    """Measure the last step's gradient: the one that goes wrong where a window is ragged."""
    expected = reference_gradients(case, RATE)

    def measure(system: System) -> float | None:
        outcome = quiet(lambda: system.run(case, Options()))
        if outcome is None or len(outcome.gradients) != len(expected):
            return None if outcome is None else 1.0  # a step that never happened is wholly missing
        return max(_relative(found, wanted) for found, wanted in zip(outcome.gradients, expected, strict=True))

    return measure


def clip_error(loss_scale: float | None = None) -> Measure:
    """Measure the clipped gradient: the whole batch's, cut to a tenth of its norm after the loss's scale is taken out."""
    case = CASES[4]  # one in which every system's gradient is right before it is clipped
    wanted = reference_gradients(case, RATE)[0]
    limit = 0.1 * float(wanted.norm())

    def measure(system: System) -> float | None:
        outcome = quiet(lambda: system.run(case, Options(clip=limit, loss_scale=loss_scale)))
        return None if outcome is None else _relative(outcome.gradients[0], wanted * (limit / (float(wanted.norm()) + 1e-6)))

    return measure


def statistics_error(system: System) -> float | None:
    """Measure BatchNorm's running mean and variance of its first layer, after one step."""
    case = replace(CASES[4], inputs=CASES[4].inputs * torch.linspace(0.2, 2.0, 32)[:, None].double())
    model = make_model(batch_norm=True)
    model(case.inputs)
    outcome = quiet(lambda: system.run(case, Options(batch_norm=True)))
    if outcome is None:
        return None
    wanted, found = (torch.cat([m[1].running_mean, m[1].running_var]) for m in (model, outcome.model))  # type: ignore[index]
    return _relative(found, wanted)


def average_error(system: System) -> float | None:
    """Measure the exponential moving average of the weights after ten steps, moved once a step."""
    case = replace(CASES[4], inputs=CASES[4].inputs.repeat(10, 1), targets=CASES[4].targets.repeat(10))
    model, average = make_model(), None
    for gradient in reference_gradients(case, RATE):
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(
                torch.nn.utils.parameters_to_vector(model.parameters()) - RATE * gradient, model.parameters()
            )
        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
        average = flat if average is None else 0.9 * average + 0.1 * flat
    outcome = quiet(lambda: system.run(case, Options(average=0.9)))
    assert average is not None
    return None if outcome is None or outcome.average is None else _relative(outcome.average, average)


def schedule_error(frequency: int) -> Measure:
    """Measure how many steps a schedule took in ten updates of four micro-batches."""
    case = replace(CASES[4], inputs=CASES[4].inputs.repeat(10, 1), targets=CASES[4].targets.repeat(10))

    def measure(system: System) -> float | None:
        outcome = quiet(lambda: system.run(case, Options(frequency=frequency)))
        if outcome is None or outcome.schedule_steps is None:
            return None
        return abs(outcome.schedule_steps - 10 // frequency) / (10 // frequency)

    return measure


def mixup_error(system: System) -> float | None:
    """Measure how far a mixed batch's gradient depends on the cut: bigstep mixes the batch, others what a loader gives."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(16, 1, 4, 4, generator=generator).double() * 255, torch.arange(16) % CLASSES

    def gradient(cut: int) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)).double()
        if system is SYSTEMS[0]:
            mixed, targets = mix_batch(images, labels, CLASSES, mixup_alpha=1.0, cutmix_alpha=None, seed=0, step=0)
            Accumulator(model, losses.CrossEntropy(), micro_batch_size=cut).backward(mixed / 255, targets)
        else:
            mixup = v2.MixUp(alpha=1.0, num_classes=CLASSES)
            for x, y in zip(images.split(cut), labels.split(cut), strict=True):
                mixed, targets = mixup(x, y)
                (nn.functional.cross_entropy(model(mixed / 255), targets) * len(x) / 16).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    return _relative(gradient(4), gradient(16))


ROWS: tuple[tuple[str, Measure], ...] = (
    *((case.name, gradient_error(case)) for case in CASES),
    ("mixup, cut against whole", mixup_error),
    ("BatchNorm running statistics after a step", statistics_error),
    ("average of the weights, once a step", average_error),
    ("schedule, once a step", schedule_error(1)),
    ("schedule, every second step", schedule_error(2)),
    ("clipping, once a step", clip_error()),
    ("loss scale undone before clipping", clip_error(loss_scale=1024.0)),
)


def main() -> None:
    """Run every row through every system and write the page."""
    results = [(name, [_measured(measure, system) for system in SYSTEMS]) for name, measure in ROWS]
    PAGE.write_text(_page(results), encoding="utf-8")
    sys.stdout.write(PAGE.read_text(encoding="utf-8"))


def _measured(measure: Measure, system: System) -> float | None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return measure(system)


def _torch_version() -> str:
    return torch.__version__.partition("+")[0]


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def _cell(error: float | None) -> str:
    if error is None:
        return "–"
    return f"**{error:.0%}**" if error > 1e-3 else f"{error:.0e}" if error else "0"


def _page(results: list[tuple[str, list[float | None]]]) -> str:
    header = "| case | " + " | ".join(system.name for system in SYSTEMS) + " |\n"
    rule = "| --- |" + " ---: |" * len(SYSTEMS) + "\n"
    rows = "".join(f"| {name} | " + " | ".join(map(_cell, errors)) + " |\n" for name, errors in results)
    return f"""# Peers, side by side

Relative errors against one pass over the whole effective batch, in float64 on the CPU with torch {_torch_version()}:
`make peers` installs the peers (extra `bench`) and writes this page. Rounding is about 1e-15; larger errors are bold; – means
that the library has no such feature here, so that users write it themselves (the peers scale losses on a GPU only, and there
was no GPU). Each loop is the one in the library's documentation.

{header}{rule}{rows}
How it is measured: `benchmarks/peers/cases.py` holds the cases, `benchmarks/peers/systems.py` the loops. The optimizer is plain
SGD, so the gradient of each step follows from the weights. A step that a library never takes counts as an error of 100 %. With
transformers the model returns its mean loss, as a custom module does. In the row of the causal language model it takes the
number of tokens instead and uses the library's loss, as the models of its loss type ForCausalLM do: correct, and rounded to
float32. The tutorial loop applies schedule and clipping to every micro-batch.

Known bugs of other libraries that concern memory have separate tests (`tests/test_transaction.py` and
`tests/test_out_of_memory.py`). One cannot occur here: an option of a batch-size finder is lost if the finder is used as a
decorator, and bigstep has no decorators.
Bugs about resuming, speed and scale are not in this table.
"""


if __name__ == "__main__":
    main()
