"""Data sets with several labels an image, and with numbers to predict."""

BASE = """
import numpy as np


class Base:
    def __init__(self, count=48):
        self.count = count

    def __len__(self):
        return self.count
"""
DATASET = f"""{BASE}
    def image(self, index):
        rng = np.random.default_rng(index)
        bright = rng.integers(0, 2, 2)
        image = rng.integers(0, 60, (8, 8)).astype(np.uint8)
        image[:4] += np.uint8(120 * bright[0])
        image[:, :4] += np.uint8(60 * bright[1])
        return image, bright


class Labels(Base):
    labels = ["top", "left"]

    def __getitem__(self, index):
        image, bright = self.image(index)
        names = [name for name, has in zip(self.labels, bright) if has]
        return image, names if index % 2 else bright


class Numbers(Base):
    targets = ["mean", "top"]

    def __getitem__(self, index):
        image, _ = self.image(index)
        return image, (1000 + float(image.mean()), float(image[:4].mean()))
"""
SOURCES = {"multilabel": "custom/data/made.py:Labels", "regression": "custom/data/made.py:Numbers"}
