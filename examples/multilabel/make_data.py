"""Put up to four of scikit-learn's digits into a scene: data/raw/scenes/*.png, and scenes.csv with the digits of each.

Scenes of the same stretch of the digits, which were collected writer by writer, are one group: they stay in one part.
"""

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path("data/raw/scenes")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COUNT, STRETCHES, SIZE = 1200, 40, 8


def main() -> None:
    """Write ``COUNT`` scenes of 16 x 16 pixels, the same every time."""
    random, digits = np.random.default_rng(0), load_digits()
    images = (digits.images * 255 / 16).round().astype(np.uint8)
    stretch = len(images) // STRETCHES
    ROOT.mkdir(parents=True, exist_ok=True)
    with (ROOT / "scenes.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "digits", "writers"])
        for number in range(COUNT):
            group = number % STRETCHES
            scene, found = np.zeros((2 * SIZE, 2 * SIZE), np.uint8), set()
            for top, left in ((0, 0), (0, SIZE), (SIZE, 0), (SIZE, SIZE)):
                if random.random() < 0.6:
                    index = group * stretch + int(random.integers(stretch))
                    scene[top : top + SIZE, left : left + SIZE] = images[index]
                    found.add(NAMES[digits.target[index]])
            Image.fromarray(scene).save(ROOT / f"{number}.png")
            table.writerow([f"{number}.png", "|".join(sorted(found)), group])


if __name__ == "__main__":
    main()
