"""Centre crop and resize: one function for the stored images and for the exported model, so that both see the same pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["centre_resize"]


def centre_resize(images: Tensor, size: int) -> Tensor:
    """Crop the centre square and resize it, antialiased bilinear, in uint8.

    Images that have the size already are returned unchanged.

    Args:
        images: uint8 of shape ``(n, height, width, channels)``.
        size: pixels a side.

    Returns:
        uint8 of shape ``(n, channels, size, size)``.
    """
    height, width = images.shape[1], images.shape[2]
    side = torch.sym_min(height, width)
    # index_select, because slices of unknown length make torch.export ask whether they are contiguous, and fix the answer
    rows = torch.arange(side, device=images.device) + (height - side) // 2
    columns = torch.arange(side, device=images.device) + (width - side) // 2
    square = images.index_select(1, rows).index_select(2, columns).permute(0, 3, 1, 2)
    return F.interpolate(square, size=(size, size), mode="bilinear", antialias=True)
