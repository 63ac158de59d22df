"""JSON and YAML nested a hundred thousand deep: Python's parsers exhaust the stack, which is no reason for a traceback."""

import json
from pathlib import Path

import pytest

from bigstep.atomic_files import read_json, read_record
from bigstep.config.yaml_files import load_plain, read_yaml
from bigstep.data.manifest import Manifest
from bigstep.diagnostics.finding import Quarantine
from bigstep.diagnostics.state_files import find_dvc_lock, find_state_files
from bigstep.errors import ConfigError, DataError, ProjectError
from bigstep.project.dvc_record import check_record, read_record_before
from bigstep.project.paths import ProjectPaths
from bigstep.tracking.entries import read_entry
from bigstep.tracking.spool import Origin, Sent, Spool
from bigstep.tracking.spool_tracker import SpoolTracker

DEPTH = 100_000
TAGS = {"entry": "tags", "values": {"a": "b"}}


def _nested(depth: int) -> list[str]:
    return ["[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth]


@pytest.fixture(params=_nested(DEPTH), ids=["open", "lists", "mappings"])
def deep(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["[\n " * DEPTH, '{"a":\n ' * DEPTH], ids=["lists", "mappings"])
def deep_yaml(request: pytest.FixtureRequest) -> str:
    """On lines of their own: ruamel takes seconds for one long line."""
    return str(request.param)


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_json_and_records(deep: str, tmp_path: Path) -> None:
    path = _written(tmp_path / "x.json", deep)
    with pytest.raises(ValueError, match="deep"):
        read_json(path)
    with pytest.raises(ValueError, match="recursion"):
        read_record(Sent, path)
    with pytest.raises(DataError, match="expected a manifest"):
        Manifest.read(path)


def test_yaml(deep: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than 32 levels deep"):
        load_plain(deep)
    with pytest.raises(ConfigError, match="more than 32 levels deep"):
        read_yaml(_written(tmp_path / "params.yaml", deep))


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_line_of_a_spool_is_passed_over(deep: str, place: str, tmp_path: Path) -> None:
    lines = {"first": [deep, TAGS, TAGS], "middle": [TAGS, deep, TAGS], "last": [TAGS, TAGS, deep]}[place]
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    journal = _written(tmp_path / "journal.jsonl", "\n".join(texts) + "\n")
    spool = Spool(tmp_path)
    assert [entry for entry, _ in spool.entries()] == [TAGS, TAGS]
    assert [offset for _, offset in spool.batches(0)][-1] == journal.stat().st_size
    SpoolTracker(spool).finish("FINISHED")
    assert spool.last() == {"entry": "finish", "status": "FINISHED"}
    spool.close()


def test_state_files_of_a_spool_count_as_nothing(deep: str, tmp_path: Path) -> None:
    for name in ("sent.json", "origin.json"):
        _written(tmp_path / name, deep)
    spool = Spool(tmp_path)
    assert (spool.sent, spool.origin) == (Sent(), None)
    spool.begin("sqlite:///x.db", "named")
    assert isinstance(spool.origin, Origin)
    spool.close()


@pytest.mark.parametrize(
    "entry",
    [
        *[[], {}, {"entry": 3}, {"entry": "tags"}, {"entry": "tags", "values": []}, {"entry": "file", "path": "a"}],
        *[{"entry": "metrics", "rows": rows} for rows in (5, [5], [["a", 1.0, 2]], [[1, 1.0, 2, 3]], [["a", "b", 2, 3]])],
    ],
)
def test_an_entry_without_its_fields_is_none(entry: object, tmp_path: Path) -> None:
    _written(tmp_path / "journal.jsonl", json.dumps(entry) + "\n" + json.dumps(TAGS) + "\n")
    spool = Spool(tmp_path)
    SpoolTracker(spool)
    assert [found for found, _ in spool.batches(0)] == [TAGS]
    spool.close()


def test_entries_that_bigstep_writes_are_whole() -> None:
    for line in (TAGS, {"entry": "metrics", "rows": [["a", 1, 2, 3], ["b", 0.5, 2, 3]]}, {"entry": "of a later version"}):
        assert read_entry(json.dumps(line).encode()) == line


def test_a_sent_offset_below_zero_counts_as_nothing(tmp_path: Path) -> None:
    _written(tmp_path / "sent.json", json.dumps({"run_id": "x", "offset": -1}))
    spool = Spool(tmp_path)
    assert spool.sent == Sent()
    spool.close()


@pytest.fixture
def locks(deep_yaml: str, tmp_path: Path) -> tuple[Path, Path]:
    """A deep dvc.lock, and the notes of a stage that ran."""
    notes = tmp_path / "notes"
    notes.mkdir()
    _written(notes / "train.json", json.dumps({"params": {}, "files": {}}))
    return _written(tmp_path / "dvc.lock", f"schema: '2.0'\nstages: {deep_yaml}"), notes


def test_a_lock_of_dvc(locks: tuple[Path, Path], tmp_path: Path) -> None:
    lock, notes = locks
    with pytest.raises(ProjectError, match="doctor --fix") as caught:
        read_record_before(lock)
    assert len(str(caught.value).splitlines()) == 1
    check_record(tmp_path, notes, b"", lambda: tmp_path)
    before = lock.read_bytes()
    lock.write_text("schema: '2.0'\nstages: {train: {cmd: x}}\n", encoding="utf-8")
    check_record(tmp_path, notes, before, lambda: tmp_path)
    lock.write_bytes(before)
    (finding,) = find_dvc_lock(tmp_path, Quarantine(tmp_path))
    assert "is damaged" in finding.text


def test_an_entry_of_the_run_cache_is_passed_over(deep_yaml: str, tmp_path: Path) -> None:
    notes, run = tmp_path / "notes", tmp_path / "runs" / "ab" / "abc"
    notes.mkdir()
    run.mkdir(parents=True)
    _written(notes / "train.json", json.dumps({"params": {"train.epochs": "3"}, "files": {}}))
    _written(tmp_path / "dvc.lock", "schema: '2.0'\nstages: {train: {cmd: x}}\n")
    for number, text in enumerate([deep_yaml, "{cmd: x, deps: 3}", "{cmd: x, deps: [3]}", "{cmd: x, outs: [{}]}", "[]"]):
        _written(run / str(number), text)
    with pytest.raises(ProjectError, match="the entry was removed"):
        check_record(tmp_path, notes, b"", lambda: tmp_path)


def test_doctor_names_state_files(deep: str, tmp_path: Path) -> None:
    project = ProjectPaths(tmp_path)
    for path in (project.plans / "plan.json", project.spools / "a" / "journal.jsonl"):
        path.parent.mkdir(parents=True)
        _written(path, deep + "\n")
    assert len(list(find_state_files(project, Quarantine(tmp_path)))) == 2
