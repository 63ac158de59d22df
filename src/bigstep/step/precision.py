"""What each precision means for parameters, the forward pass and the scale of the loss."""

from dataclasses import dataclass

import torch

__all__ = ["PRECISIONS", "Precision"]


@dataclass(frozen=True)
class Precision:
    """Type of the parameters, type of autocast (None: off), and whether the loss is scaled against underflow."""

    parameter_dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    scaled: bool = False

    def build_scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Make the loss scaler; it is disabled, and changes nothing, where this precision needs none."""
        scaler = torch.amp.GradScaler(device.type, enabled=self.scaled)
        scaler.scale(torch.zeros((), device=device))  # makes its state, which otherwise the first loss would
        return scaler


PRECISIONS = {
    "float32": Precision(),
    "bfloat16": Precision(autocast=torch.bfloat16),
    "float16": Precision(autocast=torch.float16, scaled=True),
    "float64": Precision(parameter_dtype=torch.float64),
}
