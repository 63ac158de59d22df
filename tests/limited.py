"""Run as a program: train in forked processes whose address space the system limits, and say how each start ended.

python limited.py FOLDER TRIES
"""

import json
import os
import random
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.model import ModelConfig
from bigstep.config.train import TrainConfig
from bigstep.errors import UserError
from bigstep.models.building import InputShape
from bigstep.models.model_files import build_classifier
from bigstep.runs.low_memory_marker import LowMemoryMarker, failed_micro_batch_size
from bigstep.runtime.device import headroom_bytes
from bigstep.training.loop import set_training_mode, take_step
from bigstep.training.state import build_state
from building import ten_classes

EFFECTIVE, STEPS = 256, 2
NEED = 350 * 2**20  # what a step of the whole batch takes
HANGING = 120  # seconds: no try may wait for ever
SLACK = (80 * 2**20, 165 * 2**20)


class _Batches:
    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(start, STEPS):
            images = torch.randint(0, 256, (EFFECTIVE, 1, 32, 32), dtype=torch.uint8, generator=generator)
            yield images, torch.randint(0, 10, (EFFECTIVE,), generator=generator)


def train(folder: Path, slack: int) -> None:
    """Train a few steps within ``slack`` bytes more than the process has now, from the mark of an earlier start."""
    mark, section, model = folder / "mark.json", TrainConfig(precision="float32"), ModelConfig(width=32, dropout=0.1)
    failed_at = failed_micro_batch_size(mark)
    micro = EFFECTIVE if failed_at is None else -(-failed_at // 2)
    torch.manual_seed(0)
    classifier = build_classifier(model, InputShape(1, 32, 10), mean=(0.5,), std=(0.25,))
    sizes = BatchSizes(EFFECTIVE, micro, -(-EFFECTIVE // micro))
    state = build_state(classifier, section, sizes, num_samples=5000, **ten_classes(section), model=model, noise="first")
    set_training_mode(state)
    batches = LowMemoryMarker(_Batches(), mark, NEED, lambda: state.accumulator.micro_batch_size)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + slack, resource.RLIM_INFINITY))
    assert headroom_bytes() <= slack
    losses = [float(take_step(state, section, images, labels).loss) for images, labels in batches.epoch(0)]
    batches.clear()
    result = {"begun_with": micro, "ended_with": state.accumulator.micro_batch_size, "losses": losses}
    (folder / "result.json").write_text(json.dumps({**result, "failures": state.guard.num_failures}), encoding="utf-8")


def start(folder: Path, slack: int) -> int:
    """Start once in a new process; give its exit status, negative for a signal."""
    process = os.fork()
    if process == 0:
        code = 0
        signal.alarm(HANGING)
        try:
            train(folder, slack)
        except UserError as error:
            sys.stderr.write(f"{error}\n")
            code = 2
        except BaseException as error:  # noqa: BLE001 # said, and told from a crash by its code
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            code = 3
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main() -> None:
    """Print a line of JSON for each try."""
    torch.set_num_threads(1)
    root, tries, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    for number in range(tries):
        folder = root / str(number)
        folder.mkdir()
        slack = chance.randint(*SLACK)
        codes = []
        while len(codes) < 10 and (not codes or codes[-1] < 0):
            codes.append(start(folder, slack))
            if codes[-1] == -signal.SIGALRM:
                raise SystemExit(f"a try with {slack} bytes hung")
        result = folder / "result.json"
        found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
        sys.stdout.write(json.dumps({"slack": slack, "codes": codes, **found}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
