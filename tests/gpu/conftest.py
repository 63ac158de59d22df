"""Checks on a GPU (`make gpu`), and the same on the CPU in the usual suite; they import neither the pipeline nor its libraries.

`make gpu` starts pytest with ``--confcutdir`` here, so tests/conftest.py, which needs the pipeline, is not loaded.
"""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
NEEDED = ("pydantic", "psutil", "ruamel", "safetensors")  # by what reads the parameters of a training, and builds it
collect_ignore = ["test_gpu_training.py"] if any(find_spec(name) is None for name in NEEDED) else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", [torch.device(name) for name in DEVICES], ids=DEVICES)


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Matrix products in float32 with all bits; as cuDNN's convolutions, they round to 19 bits where that is allowed."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
