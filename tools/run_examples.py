"""Run examples from `bigstep init` to the metrics: all of them, or those that are named; `make examples`."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["EXAMPLES", "make_example", "run_example"]

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_example(name: str, folder: Path, *overrides: str) -> Path:
    """Make a project of an example as :func:`make_example` does, and run its pipeline."""
    project = make_example(name, folder, *overrides)
    _run(project, "-m", "bigstep.cli", "repro")
    return project


def make_example(name: str, folder: Path, *overrides: str) -> Path:
    """Make a project of the example ``name`` in ``folder``, with its data.

    Args:
        name: of a folder of ``examples``.
        folder: where the project is made, below it.
        overrides: ``section.key=value``; written into its params.yaml.

    Returns:
        The project's folder.
    """
    project = folder / name
    _run(folder, "-m", "bigstep.cli", "init", str(project), "--from", str(EXAMPLES / name))
    if overrides:
        _set(project / "params.yaml", overrides)
    if (project / "make_data.py").exists():
        _run(project, "make_data.py")
    return project


def _set(path: Path, overrides: Sequence[str]) -> None:
    from bigstep.config.yaml_files import apply_overrides, parse_overrides, read_yaml, write_yaml

    write_yaml(apply_overrides(read_yaml(path), parse_overrides(overrides)), path)


def _run(folder: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=folder, check=True)


def main(names: Sequence[str]) -> None:
    """Run each example in a temporary folder."""
    for name in names or sorted(path.parent.name for path in EXAMPLES.glob("*/params.yaml")):
        with tempfile.TemporaryDirectory(prefix="bigstep-example-") as scratch:
            print(f"example {name}", flush=True)
            run_example(name, Path(scratch))


if __name__ == "__main__":
    main(sys.argv[1:])
