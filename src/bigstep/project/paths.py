"""The files and folders of a project."""

from dataclasses import dataclass
from pathlib import Path

from bigstep.errors import ProjectError
from bigstep.runtime.environment import DVC_ROOT, ROOT, read_variable

__all__ = ["ProjectPaths", "StagePaths", "check_project_name", "find_project"]

UNUSABLE = "'\"?#%"  # in MLflow's addresses


@dataclass(frozen=True)
class StagePaths:
    """What the stages read and write, below the folder they run in (the project, or a private copy of it)."""

    root: Path

    @property
    def params(self) -> Path:
        """The parameters."""
        return self.root / "params.yaml"

    @property
    def prepared(self) -> Path:
        """The store that ``prepare`` writes."""
        return self.root / "data" / "prepared"

    @property
    def train(self) -> Path:
        """What ``train`` writes."""
        return self.root / "results" / "train"

    @property
    def evaluate(self) -> Path:
        """What ``evaluate`` writes."""
        return self.root / "results" / "evaluate"

    @property
    def ensemble(self) -> Path:
        """What `bigstep ensemble` writes."""
        return self.root / "results" / "ensemble"

    @property
    def search(self) -> Path:
        """What `bigstep search` writes."""
        return self.root / "results" / "search"

    @property
    def lock(self) -> Path:
        """DVC's record of what made what."""
        return self.root / "dvc.lock"


@dataclass(frozen=True)
class ProjectPaths:
    """What belongs to the project as a whole, also for runs in a private copy and for DVC's temporary experiments."""

    root: Path

    @property
    def state(self) -> Path:
        """State outside of git and DVC."""
        return self.root / ".bigstep"

    @property
    def attempts(self) -> Path:
        """Which execution writes to which run."""
        return self.state / "attempts"

    @property
    def plans(self) -> Path:
        """What was measured and predicted for models on this machine."""
        return self.state / "plans"

    @property
    def compiled(self) -> Path:
        """Code of torch.compile, which unpickles and loads it: no one else may write here."""
        return self.state / "compiled"

    @property
    def checkpoints(self) -> Path:
        """States of trainings that have not ended."""
        return self.state / "checkpoints"

    @property
    def spools(self) -> Path:
        """Entries logged to runs, until they are sent to MLflow."""
        return self.state / "spools"

    @property
    def search(self) -> Path:
        """Studies, and the state of their trials."""
        return self.state / "search"

    @property
    def site_cache(self) -> Path:
        """DVC's own notes, which it unpickles: no one else may write here."""
        return self.state / "dvc"

    @property
    def workspaces(self) -> Path:
        """Private copies for runs with overrides."""
        return self.state / "workspaces"

    def starting_weights(self, name: str | None) -> Path | None:
        """Return the file that model.weights names, if any."""
        return None if name is None else self.resolve(name)

    def resolve(self, path: str) -> Path:
        """Return a path from params.yaml, which is relative to the project's root."""
        return self.root / Path(path).expanduser()


def find_project(start: Path) -> ProjectPaths:
    """Return the project that a stage in ``start`` belongs to.

    ``$BIGSTEP_ROOT`` is set for private copies; DVC sets ``$DVC_ROOT``, to the parent project in its temporary experiments.
    """
    named = read_variable(ROOT) or read_variable(DVC_ROOT)
    return ProjectPaths(Path(named).resolve() if named else start.resolve())


def check_project_name(root: Path) -> None:
    """Check that a project can be in ``root``.

    Raises:
        ProjectError: its path has a character that it must not have.
    """
    if any(letter in str(root) for letter in UNUSABLE):
        raise ProjectError(
            f"project folder: expected a path without {' '.join(UNUSABLE)}, which MLflow's addresses cannot contain, got "
            f"{root}; rename or move the folder"
        )
