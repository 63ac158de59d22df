"""All exceptions that bigstep defines.

::

    BigstepError                  the root; its text is one line: what was expected, what was found, and how to fix it
    ├── UserError                 bad input; `bigstep` prints the line and exits with code 2
    │   ├── ConfigError           a value in params.yaml, `--set` or a preset is invalid (also a ValueError)
    │   ├── DataError             the images on disk are invalid
    │   ├── CheckpointError       every checkpoint of a training run is damaged; exit code 4
    │   ├── DivergedError         the gradient was not finite in too many steps in a row; exit code 3
    │   ├── ModelError            a model or weights file cannot be used
    │   ├── LostStepError         an error in the middle of a step's exchange: the processes of the group must all end
    │   ├── OutOfMemoryError      the request does not fit in memory
    │   └── ProjectError          a problem with the folder, the environment or another process
    ├── ExactnessError            a gradient depends on the micro-batch size
    ├── OtherProcessError         another process of the group failed in this step
    ├── LossError                 a loss function returned something other than a loss (also a ValueError)
    └── RandomnessError           a model draws random numbers that cannot be keyed by sample

    ExactnessWarning              a gradient depends on the micro-batch size for a known reason, or could not be checked
"""

from enum import IntEnum

__all__ = [
    "BigstepError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "ExactnessError",
    "ExactnessWarning",
    "ExitCode",
    "LossError",
    "LostStepError",
    "ModelError",
    "OtherProcessError",
    "OutOfMemoryError",
    "ProjectError",
    "RandomnessError",
    "UserError",
]


class ExitCode(IntEnum):
    """What a command or stage exits with; after a signal it is 128 and the signal's number."""

    OK = 0
    FAILED = 1
    USER_ERROR = 2
    DIVERGED = 3
    DAMAGED = 4
    TIME_IS_UP = 124  # as of timeout(1)


class BigstepError(Exception):
    """The root of the tree above."""


class UserError(BigstepError):
    """An error that the user can fix; shown as one line, exit code 2."""

    exit_code = ExitCode.USER_ERROR


class ConfigError(UserError, ValueError):
    """A configuration value is invalid; one line for each value."""


class DataError(UserError):
    """The source images are invalid."""


class CheckpointError(UserError):
    """Every checkpoint of a training run is damaged; the user has to decide whether to start over."""

    exit_code = ExitCode.DAMAGED


class DivergedError(UserError):
    """The gradient was not finite in too many steps in a row."""

    exit_code = ExitCode.DIVERGED


class ModelError(UserError):
    """A model or weights file cannot be used."""


class LostStepError(UserError):
    """An error in the middle of a step's exchange, which the other processes do not know of: all must end."""


class OutOfMemoryError(UserError):
    """The request does not fit in memory."""


class ProjectError(UserError):
    """There is a problem with the project folder, the environment or another process."""


class ExactnessError(BigstepError):
    """The gradient of a model and a loss depends on the micro-batch size."""


class ExactnessWarning(UserWarning):
    """A gradient depends on the micro-batch size for a known reason, or could not be checked."""


class OtherProcessError(BigstepError):
    """Another process that shares the effective batch failed; gradients are as they were before the step."""


class LossError(BigstepError, ValueError):
    """A loss function returned something other than a loss."""


class RandomnessError(BigstepError):
    """A model draws random numbers that cannot be keyed by sample."""
