"""What bigstep uses of scikit-learn that is not public, with its reason; tests/test_internals.py compares it."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["digits_file", "read_digits"]


def digits_file() -> Path:
    """Return the file behind ``load_digits``, found without importing scikit-learn, which takes seconds."""
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


def read_digits(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return what ``load_digits`` does: images of shape ``(n, 8, 8)`` with values 0 to 16, and labels of shape ``(n,)``."""
    rows: NDArray[np.float64] = np.loadtxt(path, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
