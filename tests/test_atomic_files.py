"""Files that are written whole or not at all."""

import csv
import json
import math
from pathlib import Path

import pytest

from bigstep.atomic_files import write_csv, write_json


def test_a_table_is_written_as_csv_writes_it_and_other_bytes_are_escaped(tmp_path: Path) -> None:
    rows = [{"name": 'a "quoted", name', "value": 0.1}, {"name": "\udcff", "value": None}, {"name": "é\nß", "value": 3}]
    with (tmp_path / "expected.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, ["name", "value"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_csv(["name", "value"], (row.values() for row in rows), tmp_path / "folder" / "rows.csv")
    assert (tmp_path / "folder" / "rows.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()
    assert b"\\udcff" in (tmp_path / "expected.csv").read_bytes()


def test_a_cell_with_a_carriage_return_is_read_back(tmp_path: Path) -> None:
    cells = ["a\rb", "\r\n", "c\r", "d\r\n"]
    write_csv(["name", "value"], ([cell, cell] for cell in cells), tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["name", "value"], *([cell, cell] for cell in cells)]


def test_a_table_whose_rows_fail_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_csv(["number"], [[1]], path)
    with pytest.raises(ZeroDivisionError):
        write_csv(["number"], ([1 // number] for number in (1, 0)), path)
    assert path.read_text(encoding="utf-8") == "number\n1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_number_that_json_cannot_hold_is_null(tmp_path: Path) -> None:
    write_json({"a": [math.nan, 1.5, (math.inf,)], "b": {"c": -math.inf, "d": True}}, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, 1.5, [None]], "b": {"c": None, "d": True}}
