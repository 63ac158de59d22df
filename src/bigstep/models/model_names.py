"""The names that ``model.name`` takes; torch is imported only where a name needs it, since that takes seconds."""

import importlib.util
import re
from pathlib import Path

from bigstep.config.model import TIMM, ModelConfig
from bigstep.config.yaml_files import nearest
from bigstep.errors import ConfigError
from bigstep.user_code import is_user_code, load_user_code

__all__ = ["check_model", "registered_names"]

REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def check_model(model: ModelConfig) -> None:
    """Refuse a name that is neither ``small_cnn`` nor one of torchvision's or timm's, nor a project's own.

    Raises:
        ConfigError: one line.
    """
    if model.name == "small_cnn":
        return
    if is_user_code(model.name):
        load_user_code(model.name, "model", "model.name")
        return
    if model.name.startswith(TIMM):
        from bigstep.models.timm_models import check_timm

        check_timm(model)
        return
    if model.name in registered_names():
        return
    from bigstep.models.torch_internals import import_torchvision  # imports torch

    torchvision = import_torchvision()
    names = torchvision.models.list_models(module=torchvision.models)
    if model.name not in names:
        raise ConfigError(
            f"model.name: expected small_cnn or a torchvision classifier, got {model.name!r}; {nearest(model.name, names)}"
        )


def registered_names() -> list[str]:
    """Return the names of ``torchvision.models.list_models``, as far as its source has the form that we know."""
    spec = importlib.util.find_spec("torchvision")
    files = sorted(Path(spec.origin).parent.glob("models/*.py")) if spec is not None and spec.origin is not None else []
    return [name for file in files for name in REGISTERED.findall(file.read_text(encoding="utf-8"))]
