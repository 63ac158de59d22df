"""Cut the two photos that scikit-learn brings into patches: data/raw/photos/{train,test}/{flower,temple}.

The left part of each photo is for training, the right part for the test, so that no patch of one overlaps one of the other.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

ROOT = Path("data/raw/photos")
PHOTOS = {"flower": "flower.jpg", "temple": "china.jpg"}
SIZE, COUNT = 48, 240


def main() -> None:
    """Write ``COUNT`` patches of each photo, the same every time."""
    random = np.random.default_rng(0)
    for name, file in PHOTOS.items():
        photo = load_sample_image(file)
        height, width = photo.shape[:2]
        border = int(0.8 * width)
        for number in range(COUNT):
            part, first, last = ("test", border, width - SIZE) if number % 5 == 0 else ("train", 0, border - SIZE)
            top, left = random.integers(0, height - SIZE), random.integers(first, last)
            folder = ROOT / part / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo[top : top + SIZE, left : left + SIZE]).save(folder / f"{number}.png")


if __name__ == "__main__":
    main()
