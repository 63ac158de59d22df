"""Where in the project's code the cause of a finding is: file and line, for layers, the loss and random calls."""

import re
from typing import Any

from torch import nn

from bigstep.training.chosen_loss import PerSample
from bigstep.user_code import is_user_code, load_user_code
from bigstep.user_places import own_place

__all__ = ["layer_place", "loss_place", "named_place", "with_place"]


def layer_place(model: nn.Module, layer: str, name: str = "") -> str:
    """Return the place of the class around a layer that is the project's own, else of what built the model, else nothing.

    Args:
        model: with the layer.
        layer: its name in the model.
        name: of the code in ``model.name``.
    """
    while layer:
        place = own_place(type(model.get_submodule(layer)))
        if place:
            return place
        layer = layer.rpartition(".")[0]
    return own_place(load_user_code(name, "model", "model.name")) if is_user_code(name) else ""


def loss_place(loss: Any) -> str:
    """Return the place of a loss of the project, else nothing."""
    modules = loss.modules() if isinstance(loss, nn.Module) else ()
    return next((own_place(module.function) for module in modules if isinstance(module, PerSample)), "")


def named_place(text: str, model: nn.Module, loss: Any, name: str = "") -> str:
    """Return the place of what a finding names: ``loss: …``, or ``model: … got 'a.layer' (Kind) …``."""
    if text.startswith("loss:"):
        return loss_place(loss)
    named = re.search(r"got '([^']+)'", text)
    known = dict(model.named_modules())
    return layer_place(model, named[1] if named is not None and named[1] in known else "", name)


def with_place(text: str, place: str) -> str:
    """Add a place to a line as its subject's: ``model: expected`` becomes ``model (custom/model/net.py:9): expected``."""
    return text.replace(":", f" ({place}):", 1) if place else text
