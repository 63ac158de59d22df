"""Every error bigstep raises on purpose.

::

    BigstepError                  the root; its text is one line: the rule, the value found, the way out
    ├── UserError                 bad input; `bigstep` prints the line and exits with code 2
    │   ├── ConfigError           params.yaml, `--set` or a preset breaks a rule (also a ValueError)
    │   ├── DataError             the images on disk break a rule
    │   ├── CheckpointError       every checkpoint of a training is damaged; exit code 4
    │   ├── DivergedError         too many steps in a row were not finite; exit code 3
    │   ├── ModelError            a model or weights file cannot be used as asked
    │   ├── OutOfMemoryError      what was asked for does not fit in memory
    │   └── ProjectError          the folder, the environment or another process is in the way
    ├── LossError                 a loss function returned something that is no loss (also a ValueError)
    └── RandomnessError           a model draws random numbers that cannot be keyed by sample
"""

__all__ = [
    "BigstepError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "LossError",
    "ModelError",
    "OutOfMemoryError",
    "ProjectError",
    "RandomnessError",
    "UserError",
]


class BigstepError(Exception):
    """The root of the tree above."""


class UserError(BigstepError):
    """Input that a user can correct; shown as one line, exit code 2."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """A configuration value breaks a rule; one line for each value."""


class DataError(UserError):
    """The source images break a rule."""


class CheckpointError(UserError):
    """Every checkpoint of a training is damaged: neither going on nor beginning again is safe to choose for the user."""

    exit_code = 4


class DivergedError(UserError):
    """The gradient was not finite in too many steps in a row."""

    exit_code = 3


class ModelError(UserError):
    """A model or weights file cannot be used as asked."""


class OutOfMemoryError(UserError):
    """What was asked for does not fit in memory."""


class ProjectError(UserError):
    """The project folder, the environment or another process is in the way."""


class LossError(BigstepError, ValueError):
    """A loss function returned something that is no loss."""


class RandomnessError(BigstepError):
    """A model draws random numbers that cannot be keyed by sample."""
