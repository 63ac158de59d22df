"""Bring a project's lists of installed code up to date, and say which stages run again for it."""

import logging
from pathlib import Path

import bigstep
from bigstep.project.code_lists import (
    CODE_LISTS,
    changed_files,
    digest_files,
    package_folder,
    read_code_list,
    write_code_list,
)
from bigstep.runs.import_closure import import_closure

__all__ = ["refresh_code_lists", "write_code_lists"]

log = logging.getLogger(__name__)
STAGES = ("prepare", "train", "evaluate")


def write_code_lists(root: Path) -> None:
    """Write the list of each stage for the installed bigstep."""
    for stage in STAGES:
        write_code_list(root, stage, _installed(stage))


def refresh_code_lists(root: Path) -> None:
    """Write the lists that the installed bigstep does not fit any more, with one line for each; nothing in a checkout."""
    if not (root / CODE_LISTS).is_dir():
        return
    for stage in STAGES:
        listed, changed = read_code_list(root, stage), changed_files(root, stage)
        if changed or not listed:
            write_code_list(root, stage, _installed(stage))
            found = f"{len(changed)} of {len(listed)} files differ" + (f", such as {changed[0]}" if changed else "")
            log.warning("stage %s runs again: bigstep %s has other code for it (%s)", stage, bigstep.__version__, found)


def _installed(stage: str) -> dict[str, str]:
    package = package_folder()
    files = import_closure(package / "stages" / f"{stage}.py", [package.parent])
    return digest_files(path.relative_to(package).as_posix() for path in files)
