"""`bigstep clean`: remove from the state folder what nothing needs."""

from pathlib import Path

from bigstep.console import console, format_bytes
from bigstep.errors import ExitCode, ProjectError
from bigstep.machine_output import Report, no_report
from bigstep.project.paths import ProjectPaths
from bigstep.runs.cleaning import find_unneeded

__all__ = ["clean"]


def clean(root: Path, *, days: float, dry_run: bool, report: Report = no_report) -> int:
    """Print what is removed, one line each, and the bytes of all; with ``dry_run`` nothing is removed.

    Args:
        root: of the project.
        days: without use, after which private copies, measurements and records count as unneeded.
        dry_run: only print.
        report: takes a list of path, bytes and reason.

    Returns:
        0

    Raises:
        ProjectError: a file cannot be removed.
    """
    total, removed = 0, []
    for item in find_unneeded(ProjectPaths(root), days):
        size = item.num_bytes
        try:
            if not dry_run:
                item.remove()
        except OSError as error:
            raise ProjectError(f"cannot remove {item.path}: {error.strerror}; fix its permissions") from None
        console.print(f"{item.path.relative_to(root)}  {format_bytes(size)}  {item.why}")
        total += size
        removed.append({"path": str(item.path.relative_to(root)), "bytes": size, "why": item.why})
    report(removed)
    if not removed:
        console.print("nothing to remove")
    else:
        console.print(f"{'would remove' if dry_run else 'removed'} {len(removed)}, {format_bytes(total)}")
    return ExitCode.OK
