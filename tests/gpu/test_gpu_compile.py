"""Code of torch.compile on a device: exact and keyed in every cut."""

import shutil
from collections.abc import Callable

import pytest
import torch

from bigstep import Accumulator, losses
from gpu.gpu_cases import batch, build, distance, flat

Record = Callable[[str, object], None]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, and there is no g++")
def test_compiled_models_are_exact_and_keyed(device: torch.device, record_property: Record) -> None:
    import torch._inductor.config

    images, labels = batch(13)
    plain = build("convolutions", device, dropout=0.3)
    Accumulator(plain, losses.CrossEntropy(), micro_batch_size=13, seed=7).backward(images, labels, step=3)
    with torch._inductor.config.patch(compile_threads=1):
        model = torch.compile(build("convolutions", device, dropout=0.3), dynamic=True, options={"fallback_random": True})
        errors = []
        for micro in (13, 5):
            Accumulator(model, losses.CrossEntropy(), micro_batch_size=micro, seed=7).backward(images, labels, step=3)
            errors.append(distance(flat(model), flat(plain)))
            model.zero_grad()
    torch.compiler.reset()
    record_property("largest error", f"{max(errors):.1e}")
    assert max(errors) <= 1e-12
