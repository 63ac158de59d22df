"""A journal is opened again from its end: in a time that does not depend on its length, and with all that it holds."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigstep.tracking.journal_lines import last_lines
from bigstep.tracking.spool import Spool
from bigstep.tracking.spool_index import SpoolIndex, read_index
from bigstep.tracking.spool_tracker import SpoolTracker
from bigstep.tracking.tracker import Metric


def _log(folder: Path, steps: range, stride: int = 1) -> None:
    spool = Spool(folder)
    tracker = SpoolTracker(spool)
    for start in steps[::50]:
        chosen = range(start, min(start + 50, steps.stop), stride)
        tracker.log_metrics([Metric(key, 0.5, step, step) for step in chosen for key in ("loss", "rate")])
    spool.close()


def _steps(folder: Path, key: str = "loss") -> list[int]:
    spool = Spool(folder)
    rows = [row for entry, _ in spool.entries() if entry["entry"] == "metrics" for row in entry["rows"]]
    spool.close()
    return [step for name, _, step, _ in rows if name == key]


@given(st.lists(st.integers(-3, 40), max_size=60))
def test_an_index_holds_the_steps_that_were_added_and_no_others(steps: list[int]) -> None:
    index = SpoolIndex()
    for offset, step in enumerate(steps):
        index.add({"entry": "metrics", "rows": [["loss", 0.0, step, 0]]}, offset)
    assert {step for step in range(-5, 45) if index.has("loss", step)} == set(steps)
    assert not index.has("rate", 0)


@settings(max_examples=60)
@given(lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=12), torn=st.booleans())
@pytest.mark.parametrize("block", [1, 3, 2**16])
def test_lines_are_read_from_the_last_to_the_first(
    block: int, lines: list[bytes], torn: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + (b"torn" if torn else b""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bigstep.tracking.journal_lines.BLOCK_BYTES", block)
        found = list(last_lines(path))
    content = path.read_bytes()
    assert [line for line, _ in reversed(found)] == content.splitlines(keepends=True) or b"\r" in content
    assert b"".join(line for line, _ in reversed(found)) == content
    assert all(content[start:].startswith(line) for line, start in found)


def test_steps_once_an_epoch_cost_one_run(tmp_path: Path) -> None:
    _log(tmp_path, range(40_000))
    index = read_index(tmp_path / "journal.jsonl")
    assert index.offset > 0.5 * (tmp_path / "journal.jsonl").stat().st_size
    for step in range(19, 20_000, 20):
        index.add({"entry": "metrics", "rows": [["val_loss", 0.0, step, 0]]}, index.offset)
    assert {key: len(runs) for key, runs in index.runs.items()} == {"loss": 1, "rate": 1, "val_loss": 1}


def test_a_resumed_run_repeats_no_step_wherever_it_was_killed(tmp_path: Path) -> None:
    _log(tmp_path, range(30_000))
    assert (tmp_path / "index.json").stat().st_size < 1000
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"entry": "metr')  # as after a kill
    _log(tmp_path, range(29_000, 31_000))
    assert _steps(tmp_path) == list(range(31_000))


@pytest.mark.parametrize("damage", ["missing", "torn", "changed", "of another journal", "of a longer journal"])
def test_an_index_that_does_not_fit_is_built_again(damage: str, tmp_path: Path) -> None:
    _log(tmp_path / "spool", range(30_000))
    path, journal = tmp_path / "spool" / "index.json", tmp_path / "spool" / "journal.jsonl"
    content = path.read_text(encoding="utf-8")
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_text(content[: len(content) // 2], encoding="utf-8")
    elif damage == "changed":
        found = json.loads(content)
        path.write_text(json.dumps({**found, "runs": {"loss": [[0, 7, 29_995]]}}), encoding="utf-8")
    elif damage == "of another journal":
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join([*lines[1:], lines[0]]))
    else:
        journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:10]))
    before = _steps(tmp_path / "spool")
    assert read_index(journal).offset == 0 or damage == "of another journal"
    _log(tmp_path / "spool", range(29_000, 30_100))
    assert sorted(_steps(tmp_path / "spool")) == sorted({*before, *range(29_000, 30_100)})


def test_a_long_journal_opens_as_fast_as_a_short_one(tmp_path: Path) -> None:
    _log(tmp_path, range(100_000))
    size = (tmp_path / "journal.jsonl").stat().st_size
    assert size > 5 * 2**20
    started = time.perf_counter()
    spool = Spool(tmp_path)
    tracker = SpoolTracker(spool)
    last = spool.last()
    opened = time.perf_counter() - started
    started = time.perf_counter()
    assert sum(1 for _ in spool.entries()) == 2000
    read = time.perf_counter() - started
    spool.close()
    assert last is not None
    assert last["rows"][-1][2] == 99_999
    assert tracker.spool is spool
    assert opened < read / 3
