"""The image sizes that small_cnn accepts; a module of its own, to check them without importing torch."""

from bigstep.errors import ConfigError

__all__ = ["check_small_cnn"]

MIN_SIZE, MAX_SIZE = 8, 64


def check_small_cnn(size: int | None) -> None:
    """Refuse an image size that ``small_cnn`` does not accept; None is not known yet.

    Raises:
        ConfigError: one line.
    """
    if size is not None and not MIN_SIZE <= size <= MAX_SIZE:
        raise ConfigError(
            f"data.image_size: expected {MIN_SIZE} to {MAX_SIZE} with model.name small_cnn, got {size}; "
            "change it, or use a torchvision model such as resnet18"
        )
