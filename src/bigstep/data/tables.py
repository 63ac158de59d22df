"""A table in a file, column by column: CSV with a header, or Parquet."""

import csv
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigstep.config.yaml_files import nearest
from bigstep.data.counting import MAX_ENTRIES
from bigstep.errors import DataError

__all__ = ["Table", "read_table"]


@dataclass(frozen=True)
class Table:
    """Cells by column, of a file that is called ``name`` in messages; in CSV every cell is text."""

    name: str
    cells: dict[str, list[Any]]
    lines: Sequence[int] = ()
    """Where each row of a CSV file starts; the header is in line 1."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.cells)

    def place(self, row: int) -> str:
        """Return where a row is, as messages name it."""
        return f"{self.name}, line {self.lines[row]}" if self.lines else f"{self.name}, row {row + 1}"

    def column(self, name: str) -> list[Any]:
        """Return the cells of a column.

        Raises:
            DataError: there is no such column.
        """
        if name not in self.cells:
            raise DataError(f"data.columns: expected a column of {self.name}, got {name!r}; {nearest(name, self.names)}")
        return self.cells[name]


def read_table(path: Path) -> Table:
    """Read a table with at least one row.

    Raises:
        DataError: the file is no such table.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise DataError(f"data.table: expected a .csv or .parquet file, got {path.name}; convert it")
    table = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    count = len(next(iter(table.cells.values()), []))
    if not 0 < count <= MAX_ENTRIES:
        raise DataError(f"{path.name}: expected 1 to {MAX_ENTRIES} rows below the header, got {count}; correct the table")
    return table


def _read_csv(path: Path) -> Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            names = [name.strip() for name in next(rows, [])]
            _check_header(path.name, names)
            cells: dict[str, list[Any]] = {name: [] for name in names}
            lines, end = array("q"), rows.line_num
            for row in rows:
                line, end = end + 1, rows.line_num
                if not row:  # a blank line
                    continue
                if len(row) != len(names):
                    raise DataError(
                        f"{path.name}, line {line}: expected {len(names)} cells, got {len(row)}; put commas in quotes"
                    )
                lines.append(line)
                for name, cell in zip(names, row, strict=True):
                    cells[name].append(cell)
            return Table(path.name, cells, lines)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path.name}: expected a table as CSV in UTF-8, got: {error}; correct it") from None


def _check_header(table: str, names: list[str]) -> None:
    if not all(names):
        raise DataError(
            f"{table}: expected a header with a name for each column, got {names}; name each, or write it with index=False "
            "in pandas"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{table}: expected a header with a name for each column, got {twice[0]!r} twice; rename a column")


def _read_parquet(path: Path) -> Table:
    from pyarrow import ArrowException, parquet  # only here: it takes a second

    try:
        table = parquet.read_table(path)
        return Table(path.name, {name: table.column(name).to_pylist() for name in table.column_names})
    except (OSError, ArrowException, ValueError, KeyError) as error:
        problem = (str(error).splitlines() or [""])[0]
        raise DataError(f"{path.name}: expected a Parquet file, got: {problem}; write it again") from None
