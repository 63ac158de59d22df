"""Scikit-learn's table of 442 diabetes patients: ten measurements, and how far the disease had come a year later."""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes

__all__ = ["Diabetes"]


class Diabetes:
    """Rows of the table; the numbers are as they were measured, since bigstep standardises them by the training part."""

    targets = ("progression",)

    def __init__(self) -> None:
        table = load_diabetes(scaled=False)
        self.rows, self.progression = table.data.astype(np.float32), table.target

    def __len__(self) -> int:
        """Count the patients."""
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], float]:
        """Return ten measurements, and the number to predict."""
        return self.rows[index], float(self.progression[index])
