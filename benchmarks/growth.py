"""What grows with the data and what does not: writes docs/growth.md. Each size is measured in a process of its own.

python benchmarks/growth.py [--quick] measures; --child KIND N FOLDER is one measurement, for internal use.
"""

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "growth.md"
BEGIN, END = "<!-- table: written by `make growth` -->", "<!-- end of table -->"
SIZES = {
    "prepare, small images": (1_000, 4_000, 16_000, 64_000),
    "one epoch of train, small images": (1_000, 4_000, 16_000, 64_000),
    "prepare a made store, 32 x 32 x 3": (10_000, 100_000, 1_000_000),
    "start of train, made store": (10_000, 100_000, 1_000_000),
    "open a spool again, steps": (1_000, 10_000, 100_000, 400_000),
    "ask for a trial, journal": (10, 100, 500, 2_000),
    "ask for a trial, SQLite": (10, 100, 500, 2_000),
}
QUICK = 2  # sizes of a quick run
NOISE_SECONDS = 0.2  # a smaller difference is no growth: processes differ by as much
SMALL = 12  # pixels a side
PARAMS: dict[str, Any] = {
    "model": {"width": 4},
    "train": {"effective_batch_size": 256, "epochs": 1, "augmentation": "none"},
    "hardware": {"micro_batch_size": 256, "threads": 1, "num_workers": 0},
}


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes only, printed and not written")
    parser.add_argument("--child", nargs=3, metavar=("KIND", "N", "FOLDER"))
    options = parser.parse_args()
    if options.child:
        kind, count, folder = options.child
        print(json.dumps(KINDS[kind](int(count), Path(folder))))
        return
    rows = list(measure_all(QUICK if options.quick else None))
    print("\n".join(rows))
    if not options.quick:
        write_page(rows)


def measure_all(limit: int | None) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| what | n | seconds | CPU seconds | more than the smallest | peak MiB | exponent of the two largest |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    with tempfile.TemporaryDirectory() as name:
        for kind, sizes in SIZES.items():
            found = [run_child(kind, count, Path(name)) for count in sizes[:limit]]
            for line in lines_of(kind, sizes[:limit], found):
                print(line, file=sys.stderr, flush=True)
                yield line


def run_child(kind: str, count: int, folder: Path) -> dict[str, float]:
    """Measure in a process of its own, which finds its images there: what makes them is not measured."""
    if kind == "prepare, small images":
        image_folder(count, folder)
    command = [sys.executable, __file__, "--child", kind, str(count), str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def lines_of(kind: str, sizes: tuple[int, ...], found: list[dict[str, float]]) -> Iterator[str]:
    """Yield a line for each size; the exponent is that of CPU seconds, those of the smallest size subtracted."""
    over = [item["cpu"] - found[0]["cpu"] for item in found]
    for row, (count, item) in enumerate(zip(sizes, found, strict=True)):
        is_last = row == len(sizes) - 1
        shown = exponent(sizes[-2:], over[-2:]) if is_last and row > 1 else ""
        times = f"{item['seconds']:.2f} | {item['cpu']:.2f} | {max(over[row], 0.0):.2f}"
        yield f"| {kind} | {count:,} | {times} | {item['mib']:,.0f} | {shown} |"


def exponent(sizes: tuple[int, ...], over: list[float]) -> str:
    """Return the local exponent; "flat" where the time does not grow beyond noise."""
    if over[1] < NOISE_SECONDS or over[1] <= over[0]:
        return "flat"
    return f"{math.log(over[1] / max(over[0], NOISE_SECONDS / 4)) / math.log(sizes[1] / sizes[0]):.2f}"


def timed(action: Callable[[], object]) -> dict[str, float]:
    """Run, and return the seconds, those of the processor, and the peak of this process in MiB."""
    started, started_cpu = time.perf_counter(), time.process_time()
    action()
    seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    return {"seconds": seconds, "cpu": cpu, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def image_folder(count: int, folder: Path) -> Path:
    """Return a folder of JPEGs in ten classes; they are links to a few files."""
    import numpy as np
    from PIL import Image

    root = folder / f"images-{count}"
    if root.exists():
        return root
    dice = np.random.default_rng(0)
    for label in range(10):
        (root / str(label)).mkdir(parents=True)
        for number in range(count // 10):
            path = root / str(label) / f"{number}.jpg"
            first = root / str(label) / f"{number % 10}.jpg"
            if number < 10:
                Image.fromarray(dice.integers(0, 256, (SMALL, SMALL, 3), dtype=np.uint8)).save(path, "JPEG")
            else:
                os.link(first, path)
    return root


def prepare_images(count: int, folder: Path) -> dict[str, float]:
    """Prepare small images."""
    from bigstep.config.data import DataConfig
    from bigstep.data.sources import open_source
    from bigstep.data.store_writer import prepare_store

    data = DataConfig.model_validate({"source": "image-folder", "image_size": SMALL})
    root, target = image_folder(count, folder), folder / f"store-{count}"
    target.mkdir()
    return timed(lambda: sum(1 for _ in prepare_store(open_source(data, root, 0), data, target)))


def prepare_made(count: int, folder: Path) -> dict[str, float]:
    """Prepare samples that are made, not decoded."""
    import numpy as np

    from bigstep.config.data import DataConfig
    from bigstep.data.decoding import Decoded, Layout
    from bigstep.data.sources import Sample
    from bigstep.data.store_writer import prepare_store
    from bigstep.tasks.targets import ClassTargets

    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)

    class Made:
        targets = ClassTargets(tuple(map(str, range(10))))
        layout, files, num_ignored = Layout(32, 3, 1e6), (), 0

        def __len__(self) -> int:
            return count

        def __iter__(self) -> Iterator[Sample]:
            return (Sample(str(index), index % 10, -1, Decoded(pixels[index % 64], "")) for index in range(count))

    target = folder / f"made-{count}"
    target.mkdir()
    return timed(lambda: sum(1 for _ in prepare_store(Made(), DataConfig(), target)))  # type: ignore[arg-type]


def train(prepared: Path, count: int | None) -> dict[str, float]:
    """Open a store and train; ``count`` records (None: all)."""
    from itertools import islice

    from bigstep.config.params import parse_params
    from bigstep.data.store import Store
    from bigstep.training.invariance import check_slice_invariance
    from bigstep.training.loop import train_epochs
    from bigstep.training.setup import build_training
    from bigstep.training.training_batches import TrainingBatches

    params = parse_params(PARAMS)

    def run() -> None:
        store = Store(prepared)
        store.verify_former()
        state = build_training(store, params.batch, params, weights=None)
        check_slice_invariance(state, params.train, store)
        batches = TrainingBatches(store, params.train, params.batch.effective_batch_size, 0)
        for _ in islice(train_epochs(state, params.train, store, batches), count):
            pass

    return timed(run)


def open_spool(count: int, folder: Path) -> dict[str, float]:
    """Log steps in this process's child, then open the spool as the next start does."""
    from bigstep.tracking.spool import Spool
    from bigstep.tracking.spool_tracker import SpoolTracker
    from bigstep.tracking.tracker import Metric

    path = folder / f"spool-{count}"
    if os.fork() == 0:
        tracker = SpoolTracker(Spool(path))
        for start in range(0, count, 50):
            keys = ("step_loss", "gradient_norm", "learning_rate", "noise_scale")
            tracker.log_metrics([Metric(key, 0.1, step, step) for step in range(start, start + 50) for key in keys])
        os._exit(0)
    os.wait()

    def reopen() -> None:
        SpoolTracker(Spool(path)).spool.last()

    return timed(reopen)


def ask(address: str, count: int) -> dict[str, float]:
    """Measure one trial that is asked for and reported, in a study of ``count`` trials."""
    import optuna
    from optuna.distributions import FloatDistribution

    from bigstep.config.params import parse_params
    from bigstep.search.initial_points import ensure_noise_start
    from bigstep.search.samplers import choose_sampler
    from bigstep.search.space import build_space
    from bigstep.search.storage import open_storage, open_study
    from bigstep.search.trial_queue import TrialQueue
    from bigstep.search.trial_record import TrialRecord

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space, dice = build_space(parse_params({"search": {}})), random.Random(0)  # noqa: S311 # no secret
    record = TrialRecord(effective_batch_size=64, micro_batch_size=32, accumulation_steps=2, learning_rate=0.1, val_loss=0.1)

    def point() -> dict[str, Any]:
        return {
            name: kind.low * (kind.high / kind.low) ** dice.random()
            if isinstance(kind, FloatDistribution)
            else dice.randint(kind.low, kind.high)  # type: ignore[attr-defined]
            for name, kind in space.dimensions.items()
        }

    study = open_study(open_storage(address), "study", ["minimize"])
    made = optuna.trial.create_trial
    values = [{"params": point(), "value": dice.random(), "user_attrs": record.attributes} for _ in range(count)]
    study.add_trials([made(distributions=dict(space.dimensions), **value) for value in values])
    queue = TrialQueue(open_study(open_storage(address), "study", ["minimize"]), 10 * count + 100, 10 * count + 100)

    def once() -> None:
        queue.reclaim_dead()
        ensure_noise_start(queue, space)
        trial = queue.take(lambda number: choose_sampler("auto", seed=number, space="planned", num_objectives=1))
        assert trial is not None
        space.suggest(trial)
        queue.study.tell(trial, dice.random())

    once()  # imports
    return timed(once)


KINDS: dict[str, Callable[[int, Path], dict[str, float]]] = {
    "prepare, small images": prepare_images,
    "one epoch of train, small images": lambda count, folder: train(folder / f"store-{count}", None),
    "prepare a made store, 32 x 32 x 3": prepare_made,
    "start of train, made store": lambda count, folder: train(folder / f"made-{count}", 1),
    "open a spool again, steps": open_spool,
    "ask for a trial, journal": lambda count, folder: ask(str(folder / f"{count}.journal"), count),
    "ask for a trial, SQLite": lambda count, folder: ask(f"sqlite:///{folder / f'{count}.db'}", count),
}


def write_page(rows: list[str]) -> None:
    """Replace the table of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(rows) + f"\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
