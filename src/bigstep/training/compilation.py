"""Training with compiled code (``hardware.compile``): the passes of the same model, run through torch.compile.

State, checkpoints, validation and the average use the model itself, so every name and every file is that of a training
without the compiler. Code depends on the number of samples with which it was compiled, so that is always a whole
micro-batch, and torch's cache is asked for code of that number only: a training that resumes runs the same code. It may be good
for numbers in some range only, so random calls are found with about as many samples.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from bigstep.models.classifier import Classifier
from bigstep.training.torch_internals import inductor_options, mark_batch

__all__ = ["CompiledClassifier"]


@final
class CompiledClassifier(nn.Module):
    """Runs a classifier through torch.compile; random numbers are left to torch, so that they can be keyed."""

    def __init__(self, classifier: Classifier, micro_batch_size: int) -> None:
        """Compile ``classifier`` when it first runs, which should be on a whole micro-batch.

        What this process has compiled before is forgotten.
        """
        super().__init__()
        torch.compiler.reset()  # so that a later training in a process compiles as the first one does
        self.classifier = classifier
        self._run = (torch.compile(_Rows(classifier), options=inductor_options()),)  # in a tuple, so that it is no submodule
        self.probe_sizes = (2, 3)
        self._tag = f"bigstep, {micro_batch_size} samples, {torch.get_num_threads()} threads"  # torch's key has neither

    def forward(self, images: Tensor) -> Any:
        """Map samples, such as images ``(n, channels, height, width)``, to the network's output."""
        rows = (images.permute(0, 2, 3, 1) if images.ndim == 4 else images).reshape(len(images), -1)
        mark_batch(rows)
        with torch.compiler.config.patch(cache_key_tag=self._tag):  # type: ignore[attr-defined] # installed by torch
            return self._run[0](rows, *images.shape[1:])


@final
class _Rows(nn.Module):
    """Takes each sample as a row, in the order of the store: a matrix has one layout in memory, so one code serves all."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, rows: Tensor, *shape: int) -> Any:
        if len(shape) != 3:
            return self.classifier(rows.view(-1, *shape))
        channels, height, width = shape
        return self.classifier(rows.view(-1, height, width, channels).permute(0, 3, 1, 2))
