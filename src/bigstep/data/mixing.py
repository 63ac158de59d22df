"""Mixup and cutmix over the whole effective batch, before it is cut into micro-batches.

Zhang et al., mixup, 2018; Yun et al., CutMix, 2019. Each sample is mixed with the one before it in the batch, the first with
the last: the order is a random permutation already. Kind, share and box are drawn once a batch, keyed by (seed, step).
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from bigstep.data.seeding import derive_key

__all__ = ["mix_batch"]


def mix_batch(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    mixup_alpha: float | None,
    cutmix_alpha: float | None,
    seed: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    """Mix a batch; where both kinds are on, each batch takes one of them with equal chance.

    Args:
        images: ``(n, channels, size, size)``, whole numbers or floating point.
        labels: class indices ``(n,)``, or 0 or 1 for each class ``(n, num_classes)``.
        num_classes: of the probabilities that come out.
        mixup_alpha: of Beta(alpha, alpha), or None.
        cutmix_alpha: of Beta(alpha, alpha), or None.
        seed: of the training.
        step: of the training.

    Returns:
        Images, and probabilities ``(n, num_classes)`` in the type of floating-point images, else both in float32 (images that
        are cut only stay whole numbers). With neither kind on, the arguments.
    """
    kinds = [(name, alpha) for name, alpha in (("mixup", mixup_alpha), ("cutmix", cutmix_alpha)) if alpha is not None]
    if not kinds:
        return images, labels
    generator = np.random.default_rng(derive_key("mix", seed, step))
    kind, alpha = kinds[int(generator.integers(len(kinds)))]
    share = float(generator.beta(alpha, alpha))
    floats = images if images.is_floating_point() else images.float()
    targets = (F.one_hot(labels, num_classes) if labels.ndim == 1 else labels).to(floats.dtype)
    if kind == "mixup":
        return floats * share + floats.roll(1, 0) * (1 - share), targets * share + targets.roll(1, 0) * (1 - share)
    rows, columns = _box(images.shape[-1], share, generator)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images.roll(1, 0)[:, :, rows, columns]
    kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / images.shape[-1] ** 2
    return mixed, targets * kept + targets.roll(1, 0) * (1 - kept)


def _box(size: int, share: float, generator: np.random.Generator) -> tuple[slice, slice]:
    side = round(size * (1 - share) ** 0.5)
    centres = generator.integers(0, size, 2)
    starts = [max(0, int(centre) - side // 2) for centre in centres]
    return slice(starts[0], min(size, starts[0] + side)), slice(starts[1], min(size, starts[1] + side))
