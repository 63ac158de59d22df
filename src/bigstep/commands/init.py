"""`bigstep init`: a new project that depends on the installed bigstep."""

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from bigstep import __version__
from bigstep.config.params import check_overrides
from bigstep.config.yaml_files import Override, apply_overrides, read_plain, read_yaml, write_yaml
from bigstep.console import console
from bigstep.errors import ConfigError, ProjectError
from bigstep.project.paths import check_project_name
from bigstep.runs.installed_code import write_code_lists

__all__ = ["init"]

SUFFIX = ".tpl"  # of Python files, which are no code of bigstep, and of dvc.yaml, which is no pipeline of this repository
HIDDEN = "dot-"
PARAMS = "params.yaml"
LEFT_OUT = (".git", ".dvc", ".bigstep", ".venv", "mlruns", "results")  # of an example that was run in place


def init(where: Path, example: Path | None = None) -> int:
    """Make a project in ``where``: its files, a git repository unless it lies in one, and DVC.

    Args:
        where: a new or an empty folder.
        example: a folder whose files are copied into it; its params.yaml holds the values that differ from the defaults.

    Returns:
        0

    Raises:
        ConfigError: the example's params.yaml breaks a rule.
        ProjectError: the folder holds something, its name cannot be used, or git or DVC fail; nothing is left behind then.
    """
    try:
        _make(where.absolute(), example)
    except OSError as error:
        raise ProjectError(
            f"NAME: expected a folder that can be made, got {error}; choose another name, or mend that"
        ) from None
    console.print(f"{where}: a project for bigstep {__version__}\nnext: cd {where} && bigstep repro")
    return 0


def _make(target: Path, example: Path | None) -> None:
    _check_target(target)
    if example is not None and target.resolve().is_relative_to(example.resolve()):
        raise ProjectError(f"--from: expected a folder that does not hold the new project, got {example}; choose another NAME")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        made = Path(scratch, target.name)
        made.mkdir()
        _start_git_and_dvc(made)
        _write_files(made, target.name)
        if example is not None:
            _add_example(made, example)
        write_code_lists(made)
        target.mkdir(exist_ok=True)
        for item in made.iterdir():  # the folder itself stays: it may be the current one
            item.rename(target / item.name)


def _check_target(target: Path) -> None:
    check_project_name(target)
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise ProjectError(f"NAME: expected a new or an empty folder, got {target}; choose another name")


def _write_files(root: Path, name: str) -> None:
    values = {
        "name": name,
        "quoted_name": json.dumps(name, ensure_ascii=False),
        "version": __version__,
        "python": platform.python_version(),
    }
    for path, source in _templates(files("bigstep") / "template", Path()):
        text = source.read_text(encoding="utf-8")
        for key, value in values.items():
            text = text.replace(f"{{{{ {key} }}}}", value)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


def _add_example(root: Path, example: Path) -> None:
    changes = example / PARAMS
    if not changes.is_file():
        raise ProjectError(f"--from: expected a folder with {PARAMS}, as in examples/flowers, got {example}; correct it")
    overrides = tuple(_values(changes))
    check_overrides(overrides, str(changes))
    content = apply_overrides(read_yaml(root / PARAMS), overrides)
    try:
        _copy(example, root)
    except OSError as error:  # shutil.Error too, whose argument is a list
        found = error.args[0][0][2] if isinstance(error, shutil.Error) else error
        raise ProjectError(f"--from: expected files that can be copied, got {found}; mend that and try again") from None
    write_yaml(content, root / PARAMS)


def _values(changes: Path) -> Iterator[Override]:
    for section, keys in read_plain(changes).items():
        if not isinstance(keys, Mapping | None):
            raise ConfigError(
                f"{changes}: {section}: expected keys with values, got {keys!r}; write for example epochs: 3 below"
            )
        yield from ((str(section), str(key), value) for key, value in (keys or {}).items())


def _copy(example: Path, root: Path) -> None:
    for item in example.iterdir():
        if item.is_dir() and item.name not in LEFT_OUT:
            shutil.copytree(item, root / item.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif item.is_file():
            shutil.copyfile(item, root / item.name)


def _templates(folder: Traversable, inside: Path) -> Iterator[tuple[Path, Traversable]]:
    for item in folder.iterdir():
        name = item.name.removesuffix(SUFFIX)
        path = inside / (f".{name.removeprefix(HIDDEN)}" if name.startswith(HIDDEN) else name)
        if item.is_dir():
            yield from _templates(item, path)
        else:
            yield path, item


def _start_git_and_dvc(root: Path) -> None:
    if shutil.which("git") is None:
        raise ProjectError("git: expected the program on PATH, which DVC needs, got nothing; install git")
    inside = _run(["git", "rev-parse", "--is-inside-work-tree"], root.parent).returncode == 0
    if not inside:
        _succeed(["git", "init", "--quiet"], root)
    _succeed([sys.executable, "-m", "dvc", "init", "--quiet", *(["--subdir"] if inside else [])], root)
    if inside:  # DVC adds its files to the user's index, by the name of a folder that they do not stay in
        _succeed(["git", "rm", "-r", "--quiet", "--cached", "--ignore-unmatch", "."], root)


def _succeed(command: Sequence[str], folder: Path) -> None:
    finished = _run(command, folder)
    if finished.returncode:
        lines = (finished.stderr or finished.stdout).strip().splitlines()
        raise ProjectError(
            f"{' '.join(command)}: expected success, got {lines[-1] if lines else finished.returncode}; mend that and try again"
        )


def _run(command: Sequence[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
