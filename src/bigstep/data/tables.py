"""A table in a file, column by column: CSV with a header, or Parquet."""

import csv
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

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.cells)

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
    cells = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    count = len(next(iter(cells.values()), []))
    if not 0 < count <= MAX_ENTRIES:
        raise DataError(f"{path.name}: expected 1 to {MAX_ENTRIES} rows below the header, got {count}; correct the table")
    return Table(path.name, cells)


def _read_csv(path: Path) -> dict[str, list[Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            names = [name.strip() for name in next(rows, [])]
            cells: dict[str, list[Any]] = {name: [] for name in names}
            if len(cells) < len(names) or not all(names):
                raise DataError(f"{path.name}: expected a header with a name for each column, got {names}; correct it")
            for number, row in enumerate(filter(None, rows), 1):
                if len(row) != len(names):
                    raise DataError(
                        f"{path.name}, row {number}: expected {len(names)} cells, got {len(row)}; put commas in quotes"
                    )
                for name, cell in zip(names, row, strict=True):
                    cells[name].append(cell)
            return cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path.name}: expected a table as CSV in UTF-8, got: {error}; correct it") from None


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    from pyarrow import ArrowException, parquet  # only here: it takes a second

    try:
        table = parquet.read_table(path)
        return {name: table.column(name).to_pylist() for name in table.column_names}
    except (OSError, ArrowException, ValueError, KeyError) as error:
        problem = (str(error).splitlines() or [""])[0]
        raise DataError(f"{path.name}: expected a Parquet file, got: {problem}; write it again") from None
