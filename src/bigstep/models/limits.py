"""What small_cnn takes; apart, so that it can be checked without loading torch."""

from bigstep.errors import ConfigError

__all__ = ["check_small_cnn"]

MIN_SIZE, MAX_SIZE = 8, 64


def check_small_cnn(size: int | None) -> None:
    """Refuse images that ``small_cnn`` cannot take; None is not known yet.

    Raises:
        ConfigError: one line.
    """
    if size is not None and not MIN_SIZE <= size <= MAX_SIZE:
        raise ConfigError(
            f"data.image_size must be {MIN_SIZE} to {MAX_SIZE} with model.name small_cnn, but is {size}; "
            "change it, or take a torchvision model such as resnet18"
        )
