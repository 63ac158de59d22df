"""Image files that a table names, with a class, several labels or numbers each; and what the columns of the table mean."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from bigstep.config.data import DataConfig
from bigstep.data.decoding import Layout, Refusal
from bigstep.data.image_folder import FOLDER_SPLITS
from bigstep.data.manifest import SourceFile
from bigstep.data.parallel_decoding import decode_files
from bigstep.data.sample import Sample, is_missing
from bigstep.data.split import UNASSIGNED
from bigstep.data.tables import Table, read_table
from bigstep.errors import DataError
from bigstep.tasks.target_kinds import BETWEEN, ClassTargets, LabelTargets, NumberTargets
from bigstep.tasks.targets import Targets

__all__ = ["TableSource", "open_table"]

NAMES = {
    "path": ("path", "file", "filename", "image"),
    "class": ("class", "label"),
    "labels": ("labels",),
    "targets": ("targets", "target"),
    "part": ("part", "split"),
    "group": ("group",),
}
"""Names of columns, for each meaning, where ``data.columns`` does not say."""
ANSWERS = ("class", "labels", "targets")
SINGLE = ("path", "class", "part", "group")
YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")


@final
@dataclass(frozen=True)
class TableSource:
    """The images of a table, in its order."""

    root: Path
    targets: Targets
    layout: Layout
    num_workers: int
    paths: Sequence[str]
    labels: Sequence[Any]
    parts: Sequence[int]
    groups: Sequence[str]
    files: tuple[SourceFile, ...] = ()
    num_ignored: int = 0

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.paths)

    def __iter__(self) -> Iterator[Sample]:
        """Decode file after file."""
        home = self.root.resolve()
        inside = [_is_inside(self.root / path, home) for path in self.paths]
        found = (self.root / path for path, is_in in zip(self.paths, inside, strict=True) if is_in)
        decoded = decode_files(found, self.layout, self.num_workers)
        for number, path in enumerate(self.paths):
            result = next(decoded) if inside[number] else Refusal("outside of data.root, which DVC follows")
            yield Sample(path, self.labels[number], self.parts[number], result, self.groups[number])


def open_table(data: DataConfig, root: Path, num_workers: int) -> TableSource:
    """Read the table that ``data.table`` names.

    Args:
        data: the section ``data``.
        root: ``data.root``, resolved; paths in the table are below it.
        num_workers: processes that decode files.

    Raises:
        DataError: there is no such table or column, or a cell is no path, part or target.
    """
    table = read_table(_find(data, root))
    columns = _columns(data, table)
    targets, labels = _targets(table, columns)
    paths = [_path(table, cell, row) for row, cell in enumerate(table.column(columns["path"][0]))]
    parts = [_part(table, cell, row) for row, cell in enumerate(table.column(columns["part"][0]))] if "part" in columns else ()
    groups = [_group(cell) for cell in table.column(columns["group"][0])] if "group" in columns else ()
    assert data.image_size is not None  # the section checks it
    layout = Layout(data.image_size, data.channels or 3, data.max_megapixels * 1e6)
    unassigned, alone = [UNASSIGNED] * len(paths), [""] * len(paths)
    return TableSource(root, targets, layout, num_workers, paths, labels, parts or unassigned, groups or alone)


def _find(data: DataConfig, root: Path) -> Path:
    names = ("labels.csv", "labels.parquet") if data.table is None else (data.table,)
    paths = [root / name for name in names if _is_inside(root / name, root.resolve())]
    for path in paths:
        if path.is_file():
            return path
    raise DataError(
        f"data.table: expected {' or '.join(names)} below data.root, which DVC follows, got none in {root}; add it, or correct "
        "data.table"
    )


def _is_inside(path: Path, home: Path) -> bool:
    """Return whether a path leads below ``home``; not by ``Path.resolve``, which raises for a loop of links."""
    return Path(os.path.realpath(path)).is_relative_to(home)


def _columns(data: DataConfig, table: Table) -> dict[str, tuple[str, ...]]:
    """Return the columns of each meaning that the table has."""
    found: dict[str, tuple[str, ...]] = {
        role: (given,) if isinstance(given, str) else tuple(given) for role, given in data.columns.items()
    }
    for role, names in found.items():
        if len(set(names)) < len(names) or (role in SINGLE and len(names) > 1):
            count = "one column" if role in SINGLE else "each column once"
            raise DataError(f"data.columns: expected {count} for {role}, got {list(names)}; correct it")
    answer = [role for role in ANSWERS if role in found]
    if len(answer) > 1:
        raise DataError(f"data.columns: expected one of class, labels and targets, got {' and '.join(answer)}; leave one")
    for role, usual in NAMES.items():
        if role not in found and not (answer and role in ANSWERS):
            known = [name for name in usual if name in table.names]
            if known:
                found[role] = (known[0],)
                answer += [role] if role in ANSWERS else []
    for role in ("path", *([] if answer else ["class, labels or targets"])):
        if role not in found:
            raise DataError(
                f"{table.name}: expected a column for {role}, got columns {', '.join(table.names)}; name it in data.columns"
            )
    return found


def _targets(table: Table, columns: dict[str, tuple[str, ...]]) -> tuple[Targets, list[Any]]:
    """Return what is learned, and the target of each row as it is stored."""
    role = next(role for role in ANSWERS if role in columns)
    cells = [table.column(name) for name in columns[role]]
    if role == "class":
        names = [_text(table, cell, row) for row, cell in enumerate(cells[0])]
        classes = ClassTargets(tuple(sorted(set(names))))
        index = {name: number for number, name in enumerate(classes.names)}
        return classes, [index[name] for name in names]
    if role == "targets":
        numbers = NumberTargets(columns[role])
        rows = [[_number(table, cell, row) for cell in row_cells] for row, row_cells in enumerate(zip(*cells, strict=True))]
        return numbers, [_read(table, numbers, values, row) for row, values in enumerate(rows)]
    if len(cells) > 1:
        labels = LabelTargets(columns[role])
        flags = [[_flag(table, cell, row) for cell in row_cells] for row, row_cells in enumerate(zip(*cells, strict=True))]
        return labels, [labels.read(values) for values in flags]
    listed = [_list(cell) for cell in cells[0]]
    labels = LabelTargets(tuple(sorted({name for names in listed for name in names})))
    if not labels.names:
        raise DataError(f"{table.name}: expected labels in the column {columns[role][0]}, got none in any row; correct it")
    return labels, [labels.read(names) for names in listed]


def _read(table: Table, targets: NumberTargets, values: Sequence[float], row: int) -> Any:
    try:
        return targets.read(values)
    except ValueError as error:
        raise _wrong(table, row, str(error)) from None


def _path(table: Table, cell: Any, row: int) -> str:
    if not isinstance(cell, str) or not cell.strip() or "\0" in cell:
        raise _wrong(table, row, f"expected the path of an image, got {cell!r}")
    return cell.strip()


def _part(table: Table, cell: Any, row: int) -> int:
    if is_missing(cell) or not str(cell).strip():
        return UNASSIGNED
    split = FOLDER_SPLITS.get(str(cell).strip().lower())
    if split is None:
        raise _wrong(table, row, f"expected a part among train, validation and test, or nothing, got {cell!r}")
    return int(split)


def _group(cell: Any) -> str:
    return "" if is_missing(cell) else str(cell).strip()


def _text(table: Table, cell: Any, row: int) -> str:
    if is_missing(cell) or not str(cell).strip():
        raise _wrong(table, row, "expected the name of a class, got nothing")
    return str(cell).strip()


def _number(table: Table, cell: Any, row: int) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise _wrong(table, row, f"expected a number, got {cell!r}") from None


def _flag(table: Table, cell: Any, row: int) -> int:
    text = "" if cell is None else str(cell).strip().lower()
    if text not in YES + NO:
        raise _wrong(table, row, f"expected 0 or 1 for a label, got {cell!r}")
    return int(text in YES)


def _list(cell: Any) -> list[str]:
    """Return the labels of a cell, a list, or names with ``|`` between them; what is missing is left out."""
    names = cell if isinstance(cell, list | tuple) else [] if is_missing(cell) else str(cell).split(BETWEEN)
    return [str(name).strip() for name in names if not is_missing(name) and str(name).strip()]


def _wrong(table: Table, row: int, problem: str) -> DataError:
    return DataError(f"{table.place(row)}: {problem}; correct the table")
