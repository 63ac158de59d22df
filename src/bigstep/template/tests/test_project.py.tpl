"""What can be known before a long training: params.yaml is valid, and the network treats samples apart."""

from pathlib import Path

import bigstep
import pytest
import torch
from bigstep import losses
from bigstep.config.params import read_params
from bigstep.project.parameters import check_params

from custom.model.net import Net


def test_the_parameters_are_valid() -> None:
    params = check_params(read_params(Path(__file__).parents[1] / "params.yaml"))
    assert params.batch.effective_batch_size >= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_the_network_treats_samples_apart(channels: int) -> None:
    """Then the gradient of the effective batch does not depend on the micro-batch size."""
    batch = (torch.randn(16, channels, 16, 16), torch.arange(16) % 10)
    result = bigstep.check(Net(10, channels), losses.CrossEntropy(), batch)
    assert result.is_exact, str(result)
