"""The installed code that each stage of a project runs: lists of files with their digests, which DVC follows.

`bigstep init` writes ``pipelines/code/<stage>.txt``, and `bigstep repro` keeps them true: after an upgrade, the stages whose
code changed run again, and no others. A checkout of bigstep itself has no such lists; its dvc.yaml names the files.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import bigstep
from bigstep.atomic_files import whole_file
from bigstep.errors import ProjectError

__all__ = ["CODE_LISTS", "changed_files", "check_code_list", "digest_files", "list_path", "read_code_list", "write_code_list"]

CODE_LISTS = Path("pipelines", "code")
HEAD = "# Files of bigstep that stage {} runs, with the SHA-256 of each; `bigstep repro` writes this list after an upgrade.\n"


def list_path(root: Path, stage: str) -> Path:
    """Return where the list of ``stage`` is."""
    return root / CODE_LISTS / f"{stage}.txt"


def package_folder() -> Path:
    """Return the folder of the installed bigstep."""
    return Path(bigstep.__file__).resolve().parent


def digest_files(names: Iterable[str]) -> dict[str, str]:
    """Hash files of the installed bigstep; ``-`` for one that it does not have."""
    return {name: _digest(package_folder() / name) for name in sorted(names)}


def read_code_list(root: Path, stage: str) -> dict[str, str]:
    """Read the digest of each file; empty if the project has no such list, or a damaged one."""
    try:
        lines = list_path(root, stage).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = [line.split("  ", 1) for line in lines if not line.startswith("#")]
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}


def write_code_list(root: Path, stage: str, digests: Mapping[str, str]) -> None:
    """Write the list of ``stage``."""
    path = list_path(root, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items())]
    with whole_file(path) as beside:
        beside.write_text(HEAD.format(stage) + "".join(lines), encoding="utf-8")


def changed_files(root: Path, stage: str) -> list[str]:
    """Return the listed files that the installed bigstep has otherwise, or not at all."""
    listed = read_code_list(root, stage)
    now = digest_files(listed)
    return [name for name, digest in listed.items() if now[name] != digest]


def check_code_list(root: Path, stage: str) -> None:
    """Check that the installed bigstep is the one that DVC knows of.

    Raises:
        ProjectError: it is another one, so that DVC would record its result under a wrong name.
    """
    if not list_path(root, stage).exists():
        return
    listed, changed = read_code_list(root, stage), changed_files(root, stage)
    if changed or not listed:
        raise ProjectError(
            f"{CODE_LISTS / f'{stage}.txt'}: expected the code of the installed bigstep {bigstep.__version__}, got that of "
            f"another one ({len(changed)} of {len(listed)} files differ{', such as ' + changed[0] if changed else ''}); "
            "run `bigstep repro`, which brings the list up to date"
        )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else "-"
