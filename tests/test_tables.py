"""Images that a table names: their targets, parts and groups; groups stay together."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigstep.config.data import DataConfig
from bigstep.config.params import flatten, parse_params
from bigstep.data.group_split import split_groups
from bigstep.data.sources import open_source
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.data.store_writer import prepare_store
from bigstep.diagnostics.verify import _sources
from bigstep.errors import ConfigError, DataError
from conftest import read_rows

COUNT = 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with images."""
    folder = tmp_path / "raw"
    (folder / "photos").mkdir(parents=True)
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    return folder


@pytest.fixture
def table(root: Path) -> Callable[..., None]:
    """Write a table with a path in each row, and further columns made from the row's number."""

    def write(name: str = "labels.csv", path: str = "path", **columns: Callable[[int], Any]) -> None:
        rows = [
            {path: f"photos/{number}.png", **{key: make(number) for key, make in columns.items()}} for number in range(COUNT)
        ]
        if name.endswith(".parquet"):
            import pyarrow as pa
            from pyarrow import parquet

            parquet.write_table(pa.Table.from_pylist(rows), root / name)
            return
        with (root / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    return write


def _prepare(root: Path, **data: Any) -> Store:
    section = DataConfig.model_validate({"source": "table", "image_size": 8, "channels": 1, **data})
    folder = root.parent / "store"
    folder.mkdir(exist_ok=True)
    for _ in prepare_store(open_source(section, root, num_workers=0), section, folder):
        pass
    return Store(folder)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_of_classes(root: Path, table: Callable[..., None], suffix: str) -> None:
    table(f"labels.{suffix}", label=lambda n: ("dog", "cat", "owl")[n % 3], split=lambda n: "test" if n < 9 else None)
    store = _prepare(root)
    assert store.manifest.classes == ("cat", "dog", "owl")
    assert store.labels[:3].tolist() == [1, 0, 2]
    assert store.parts[:9].tolist() == [2] * 9
    assert store.manifest.counts["test"] == {"cat": 3, "dog": 3, "owl": 3}
    assert read_rows(store.paths.samples)[4]["name"] == "photos/4.png"
    assert not list(_sources(store, root))
    (root / "photos" / "4.png").write_bytes(b"changed")
    assert len(list(_sources(store, root))) == 1


@pytest.mark.parametrize("kind", ["listed", "flags", "parquet"])
def test_columns_of_labels(root: Path, table: Callable[..., None], kind: str) -> None:
    columns: dict[str, Any] = {}
    if kind == "flags":
        table(sun=lambda n: n % 2, sea=lambda n: str(n % 3 == 0).lower())
        columns = {"labels": ["sun", "sea"]}
    elif kind == "listed":
        table(labels=lambda n: " | ".join(["sun"] * (n % 2) + ["sea"] * (n % 3 == 0)))
    else:
        table("labels.parquet", labels=lambda n: ["sun"] * (n % 2) + ["sea"] * (n % 3 == 0))
    store = _prepare(root, columns=columns)
    assert store.manifest.task == "multilabel"
    order = [store.manifest.classes.index(name) for name in ("sun", "sea")]
    assert store.labels[:4][:, order].tolist() == [[0, 1], [1, 0], [0, 0], [1, 1]]


def test_what_a_parquet_table_leaves_out_is_no_label_of_its_own(root: Path, table: Callable[..., None]) -> None:
    """Null, a list with a null in it, and NaN, which pandas writes into a column of names."""
    table("labels.parquet", labels=lambda n: (["sun", None], ["sea"], None, [])[n % 4], part=lambda _: None)
    assert _prepare(root).manifest.classes == ("sea", "sun")
    table("nan.parquet", labels=lambda _: float("nan"), part=lambda _: float("nan"))
    with pytest.raises(DataError, match=r"nan\.parquet: expected labels in the column labels, got none in any row"):
        _prepare(root, table="nan.parquet")
    table("null.parquet", label=lambda n: None if n == 4 else "owl")
    with pytest.raises(DataError, match=r"null\.parquet, row 5: expected the name of a class, got nothing"):
        _prepare(root, table="null.parquet")


def test_a_label_that_looks_like_two_is_refused(root: Path, table: Callable[..., None]) -> None:
    table("labels.parquet", labels=lambda n: ["sun|sea"] * (n % 2))
    with pytest.raises(DataError, match=r"labels: expected names without '\|', which separates .*, got 'sun\|sea'; rename"):
        _prepare(root)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_of_numbers(root: Path, table: Callable[..., None], suffix: str) -> None:
    table(f"people.{suffix}", path="file", age=lambda n: 20 + n, weight=lambda n: 60.5 + n / 7)
    store = _prepare(root, table=f"people.{suffix}", columns={"targets": ["age", "weight"]})
    assert store.manifest.task == "regression"
    assert store.manifest.classes == ("age", "weight")
    assert store.labels[3].tolist() == [23.0, 60.5 + 3 / 7]


def test_a_group_is_in_one_part_and_classes_are_in_every_part(root: Path, table: Callable[..., None]) -> None:
    table(label=lambda n: "ill" if n % 2 else "healthy", group=lambda n: f"patient {n % 10}" + " " * (n % 3))
    store = _prepare(root, validation_fraction=0.25, test_fraction=0.25)
    parts = {number % 10: set() for number in range(COUNT)}
    for number in range(COUNT):
        parts[number % 10].add(int(store.parts[number]))
    assert all(len(found) == 1 for found in parts.values())
    assert all(min(counts.values()) > 0 for counts in store.manifest.counts.values())


def test_samples_of_a_data_set_of_the_projects_own_have_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").touch()
    (tmp_path / "custom" / "data").mkdir(parents=True)
    text = "import numpy as np\nimport pandas as pd\nNOTHING = (float('nan'), np.float32('nan'), pd.NA, pd.NaT)\n"
    text += "class Made:\n    targets = ['x']\n    def __iter__(self):\n        for n in range(40):\n"
    text += "            yield np.full(3, n, np.float32), float(n), None, n // 5\n"
    text += "        for n in range(40, 60):\n"
    text += "            yield np.full(3, n, np.float32), float(n), None, NOTHING[n % 4]\n"
    (tmp_path / "custom" / "data" / "made.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    section = DataConfig(source="custom/data/made.py:Made")
    (tmp_path / "store").mkdir()
    assert sum(1 for _ in prepare_store(open_source(section, tmp_path, 0), section, tmp_path / "store")) == 60
    all_parts = Store(tmp_path / "store").parts
    parts = all_parts[:40].reshape(8, 5)
    assert (parts == parts[:, :1]).all()
    assert set(parts[:, 0].tolist()) == {0, 1, 2}
    assert len(set(all_parts[40:].tolist())) > 1  # NaN, as pandas writes what is missing, is no group


@pytest.mark.parametrize("seed", range(20))
def test_shares_of_groups_are_near_those_asked_for(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [f"{number}" for number in np.repeat(np.arange(60), rng.integers(1, 9, 60))]
    nothing = np.full(len(groups), -1, np.int8)
    parts = split_groups(
        groups, nothing, np.zeros(len(groups), np.int64), validation_fraction=0.15, test_fraction=0.2, seed=seed
    )
    assert abs((parts == Split.TEST).mean() - 0.2) < 0.03
    assert abs((parts == Split.VALIDATION).mean() - 0.15 * 0.8) < 0.03
    again = split_groups(
        groups, nothing, np.zeros(len(groups), np.int64), validation_fraction=0.15, test_fraction=0.2, seed=seed
    )
    assert (parts == again).all()


def test_groups_that_are_given_to_training_stay_there() -> None:
    groups = [f"{number // 5}" for number in range(200)]
    given = np.array([0] * 100 + [-1] * 100, np.int8)
    parts = split_groups(groups, given, np.zeros(200, np.int64), validation_fraction=0.15, test_fraction=0.2, seed=0)
    assert (parts[:100] == Split.TRAIN).all()
    assert np.bincount(parts[100:], minlength=3).tolist() == [70, 10, 20]


@pytest.mark.parametrize("seed", range(6))
def test_a_group_that_is_most_of_the_samples_is_trained_on(seed: int) -> None:
    groups = ["small"] * 6 + ["large"] * 90 + ["other"] * 4
    nothing = np.full(100, -1, np.int8)
    parts = split_groups(groups, nothing, np.zeros(100, np.int64), validation_fraction=0.15, test_fraction=0.2, seed=seed)
    assert set(parts[6:96].tolist()) == {Split.TRAIN}
    assert {Split.VALIDATION, Split.TEST} == {parts[0], parts[-1]}
    parts = split_groups(
        ["a"] * 50 + ["b"] * 30 + ["c"] * 20, nothing, nothing + 1, validation_fraction=0.01, test_fraction=0.01, seed=0
    )
    assert (parts[0], parts[50], parts[80]) == (Split.TRAIN, Split.VALIDATION, Split.TEST)


def test_a_path_out_of_the_folder_and_a_missing_file_are_skipped_by_name(root: Path, table: Callable[..., None]) -> None:
    table(label=lambda n: "ab"[n % 2])
    text = (root / "labels.csv").read_text(encoding="utf-8")
    (root.parent / "away.png").write_bytes((root / "photos" / "1.png").read_bytes())
    text = text.replace("photos/1.png", "../away.png").replace("photos/2.png", "photos/none.png")
    text = text.replace("photos/3.png", "photos/loop.png")
    (root / "photos" / "loop.png").symlink_to("loop.png")
    (root / "labels.csv").write_text(text, encoding="utf-8")
    store = _prepare(root)
    found = {row["name"]: row["reason"] for row in read_rows(store.paths.skipped)}
    assert found == {
        "../away.png": "outside of data.root, which DVC follows",
        "photos/none.png": "unreadable: No such file or directory",
        "photos/loop.png": "a loop of links",
    }


@pytest.mark.parametrize(
    ("text", "data", "expected"),
    [
        ("path,label\n", {}, "labels.csv: expected 1 to 20000000 rows below the header, got 0"),
        ("path,x,path\na,b,c\n", {}, "expected a header with a name for each column, got 'path' twice; rename a column"),
        (",path\n0,a\n", {}, "a name for each column, got ['', 'path']; name each, or write it with index=False in pandas"),
        ("path,label\na\n", {}, "labels.csv, line 2: expected 2 cells, got 1"),
        ("path,label\n\na,x\n\n,x\n", {}, "labels.csv, line 5: expected the path of an image, got ''"),
        ('path,label\n"a\nb",x\n\na\n', {}, "labels.csv, line 5: expected 2 cells, got 1"),
        ("path,kind\na,b\n", {}, "labels.csv: expected a column for class, labels or targets, got columns path, kind"),
        ("where,label\na,b\n", {}, "labels.csv: expected a column for path, got columns where, label"),
        (
            "path,label\na,b\n",
            {"columns": {"path": "pth"}},
            "data.columns: expected a column of labels.csv, got 'pth'; did you mean",
        ),
        ("path,label\na,\n", {}, "labels.csv, line 2: expected the name of a class, got nothing"),
        ("path,label\n,x\n", {}, "labels.csv, line 2: expected the path of an image, got ''"),
        ("path,label\na,x\n", {}, "classes: expected at least two, got only 'x'; add samples of another class"),
        ("path,label,part\na,x,train\na,x,exam\n", {}, "labels.csv, line 3: expected a part among train, validation and test"),
        ("path,target\na,1\na,many\n", {}, "labels.csv, line 3: expected a number, got 'many'"),
        ("path,target\na,1e308\n", {}, "labels.csv, line 2: a target: expected a finite number of at most 3.4e+38 (target)"),
        ("path,target\na,nan\n", {}, "labels.csv, line 2: a target: expected a finite number of at most 3.4e+38 (target)"),
        ("path,x,y\na,1,2\n", {"columns": {"labels": ["x", "y"]}}, "labels.csv, line 2: expected 0 or 1 for a label, got '2'"),
        ("path,labels\na,\n", {}, "labels.csv: expected labels in the column labels, got none in any row"),
        ("path,x\na,1\n", {"columns": {"path": ["path", "x"]}}, "data.columns: expected one column for path"),
        ("path,x\na,1\n", {"columns": {"class": "x", "targets": "x"}}, "expected one of class, labels and targets"),
        ("path,x\na,1\n", {"table": "other.csv"}, "data.table: expected other.csv below data.root"),
        ("path,x\na,1\n", {"table": "../labels.csv"}, "data.table: expected ../labels.csv below data.root"),
        ("PAR1", {"table": "bad.parquet"}, "bad.parquet: expected a Parquet file, got"),
        ("\x00\udcff", {}, "labels.csv: expected a table as CSV in UTF-8"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(root: Path, text: str, data: dict[str, Any], expected: str) -> None:
    for name in ("labels.csv", "bad.parquet", "../labels.csv"):
        (root / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError) as raised:
        _prepare(root, **data)
    assert expected in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_groups_that_cannot_be_split_are_one_line(root: Path, table: Callable[..., None]) -> None:
    table(target=float, group=lambda n: n % 2)
    with pytest.raises(DataError, match="groups: expected at least 3 of them to split"):
        _prepare(root)
    (root.parent / "store").rename(root.parent / "former")
    table(target=float, group=lambda n: n % 5, part=lambda n: "test" if n == 0 else "train" if n == 5 else "")
    with pytest.raises(DataError, match="group '0': expected samples in one part, got some in train and some in test"):
        _prepare(root)


def test_keys_of_a_table_are_refused_elsewhere_and_count_only_where_they_are_set() -> None:
    for key, value in (("table", "a.csv"), ("columns", {"path": "file"})):
        with pytest.raises(ConfigError, match=rf"data\.{key}: expected (null|{{}}) with data\.source digits"):
            parse_params({"data": {key: value}})
    with pytest.raises(ConfigError, match=r"data\.image_size: expected a number with data\.source table"):
        parse_params({"data": {"source": "table"}})
    assert not {"data.table", "data.columns"} & set(flatten(parse_params({})))
    params = parse_params({"data": {"source": "table", "image_size": 8, "table": "a.csv", "columns": {"path": "file"}}})
    assert flatten(params)["data.columns"] == {"path": "file"}
