"""Every error bigstep raises on purpose.

::

    BigstepError                  the root; its text is one line: the rule, the value found, the way out
    ├── UserError                 bad input; `bigstep` prints the line and exits with code 2
    │   ├── ConfigError           params.yaml, `--set` or a preset breaks a rule (also a ValueError)
    │   ├── DataError             the images on disk break a rule
    │   ├── ModelError            a model or weights file cannot be used as asked
    │   ├── OutOfMemoryError      what was asked for does not fit in memory
    │   └── ProjectError          the folder, the environment or another process is in the way
    ├── LossError                 a loss function returned something that is no loss (also a ValueError)
    └── RandomnessError           a model draws random numbers that cannot be keyed by sample
"""

__all__ = [
    "BigstepError",
    "ConfigError",
    "DataError",
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
