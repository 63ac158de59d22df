"""A whole run of 2,000 JPEGs, from the files to the report, against a tutorial's script for the same parts of the data.

Both train mobilenet_v3_small at 128 pixels for 3 and for 10 epochs, validate after each and test at the end, in processes of
their own that take turns. The script is a tutorial's, made right: ImageFolder, a DataLoader with a process for each core, 4
micro-batches of 8 a step, Adam; it decodes the images in every epoch. bigstep runs `dvc repro -f` with its defaults.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from startup import ROOT, copy_checkout, seconds_of

COUNT, CLASSES, SIZE = 2000, 10, 128
SCRIPT = Path(__file__).with_name("tutorial_script.py")
TITLES = ("bigstep, s", "tutorial, s", "tutorial / bigstep")


def main() -> None:
    """Print a row of Markdown for each number of epochs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 10])
    options = parser.parse_args()
    print(f"| epochs | {' | '.join(TITLES)} |\n| ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as scratch:
        project = copy_checkout(ROOT, Path(scratch, "project"))
        images = project / "data" / "raw"
        write_images(images)
        for epochs in options.epochs:
            set_parameters(project, epochs)
            rounds = [one_round(project, images, epochs) for _ in range(options.rounds)]
            ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(other / one for one, other in rounds)
            print(f"| {epochs} | {ours:.1f} | {theirs:.1f} | {ratio:.2f} |", flush=True)


def write_images(folder: Path) -> None:
    """Write class folders of JPEGs with coloured waves, whose direction is that of the class."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    for number in range(COUNT):
        angle = np.pi * (number % CLASSES) / CLASSES
        along = rows * np.sin(angle) + columns * np.cos(angle)
        wave = np.sin(2 * np.pi * (generator.uniform(4, 8) * along + generator.random()))
        noise = generator.normal(0, 40, (SIZE, SIZE, 3))
        pixels = np.clip(128 + 60 * wave[..., None] * generator.uniform(0.5, 1.5, 3) + noise, 0, 255).astype(np.uint8)
        target = folder / f"class_{number % CLASSES}" / f"{number:05d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target, quality=90)


def set_parameters(project: Path, epochs: int) -> None:
    """Write what differs from the defaults into the copy's params.yaml."""
    path = project / "params.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["data"] |= {"source": "image-folder", "image_size": SIZE}
    values["model"] |= {"name": "mobilenet_v3_small"}
    values["train"] |= {"epochs": epochs, "effective_batch_size": 32, "learning_rate": 0.001}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


def one_round(project: Path, images: Path, epochs: int) -> tuple[float, float]:
    """Return the seconds of bigstep and of the tutorial's script."""
    ours = seconds_of([sys.executable, "-m", "dvc", "repro", "-f"], project)
    return ours, seconds_of([sys.executable, str(SCRIPT), str(images), str(epochs)], project)


if __name__ == "__main__":
    main()
