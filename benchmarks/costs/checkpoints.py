"""What a checkpoint costs: resnet18 with momentum, trained with one every 60 s, and one by itself."""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.model import ModelConfig
from bigstep.config.train import TrainConfig
from bigstep.models.building import InputShape
from bigstep.models.model_files import build_classifier
from bigstep.runs.checkpoints import CheckpointWriter
from bigstep.tasks.classification import Classification
from bigstep.training.loop import set_training_mode, take_step
from bigstep.training.state import Best, build_state

SIZE, EFFECTIVE, MICRO, EVERY = 64, 64, 16, 60.0


def main() -> None:
    """Train for three minutes, and print the share of the time that went into checkpoints."""
    train, model = TrainConfig(optimizer="sgd", learning_rate=0.01), ModelConfig(name="resnet18")
    classifier = build_classifier(model, InputShape(3, SIZE, 10), mean=(0.5,) * 3, std=(0.25,) * 3)
    task = Classification(tuple(map(str, range(10))))
    batch = BatchSizes(EFFECTIVE, MICRO, EFFECTIVE // MICRO)
    state = build_state(classifier, train, batch, num_samples=6400, task=task, loss=task.loss(train, None), model=model)
    weights = {name: tensor.detach().clone() for name, tensor in classifier.network.state_dict().items()}
    state.best = Best(0, 1.0, 1.0, 0.5, weights)
    set_training_mode(state)
    images = torch.randint(0, 256, (EFFECTIVE, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.randint(0, 10, (EFFECTIVE,))
    take_step(state, train, images, labels)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        checkpoints, costs, started = CheckpointWriter(Path(folder), EVERY, {}), [], time.perf_counter()
        while time.perf_counter() - started < 3 * EVERY + 5:
            take_step(state, train, images, labels)
            if checkpoints.is_due(at_epoch_end=False):
                before = checkpoints.written_seconds
                checkpoints.save(state, {}, micro_batch_size=MICRO)
                costs.append(checkpoints.written_seconds - before)
        elapsed = time.perf_counter() - started
        num_bytes = sum(path.stat().st_size for path in next(Path(folder).iterdir()).iterdir())
    sys.stdout.write(
        f"{len(costs)} checkpoints of {num_bytes / 2**20:.0f} MiB in {elapsed:.0f} s: {statistics.median(costs):.2f} s each, "
        f"{sum(costs) / elapsed:.2%} of the time at one every {EVERY:.0f} s\n"
    )


if __name__ == "__main__":
    main()
