"""A trained model as a program that is served: torch.export's, which runs without the code that built the network."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bigstep.models.classifier import CheckedClassifier
from bigstep.models.model_files import ANY_CODE, load_classifier
from bigstep.models.serving import ServedArrays, serve
from bigstep.tracking.tracker import ModelProgram

__all__ = ["export_model", "export_module"]


def export_model(folder: Path, example: Any, into: Path) -> ModelProgram:
    """Export the model that was saved in ``folder`` to a file in ``into``.

    Args:
        folder: with weights and card.
        example: a raw batch that it takes, as nested lists or an array.
        into: folder for the program.
    """
    classifier, card = load_classifier(folder, code=ANY_CODE)
    samples = np.asarray(example, card.sample_dtype)
    return export_module(serve(classifier, card), samples, into, task=card.task, output=card.output.output)


def export_module(served: nn.Module, samples: Any, into: Path, **facts: str) -> ModelProgram:
    """Export what is served, for any number of samples, and for images of any size.

    The program takes images as float32: only what it gets uncast can it refuse. Other samples have their own shape and type.

    Args:
        served: a module in evaluation mode, as :func:`bigstep.models.serving.serve` returns it.
        samples: a raw batch that it takes.
        into: folder for the program.
        facts: fields of :class:`ModelProgram`.
    """
    shape = tuple(samples.shape[1:])
    if not isinstance(served, ServedArrays):
        served, samples, shape = CheckedClassifier(served), samples.astype(np.float32), (-1, -1, samples.shape[3])
    free = [0, *(dim for dim, size in enumerate(shape, 1) if size == -1)]
    sizes = dict.fromkeys(free, torch.export.Dim.AUTO)
    program = torch.export.export(served.eval(), (torch.from_numpy(samples),), dynamic_shapes=[sizes])
    torch.export.save(program, into / "model.pt2")
    return ModelProgram(into / "model.pt2", str(torch.__version__), shape, str(samples.dtype), **facts)
