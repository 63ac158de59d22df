import contextlib
from pathlib import Path

import pytest

from bigstep.atomic_files import whole_file, whole_folder
from bigstep.errors import ProjectError
from bigstep.project.attempts import (
    PipelineAttempt,
    attempt_key,
    begin_stage,
    finish_stage,
    note_run,
    read_attempt,
    writer_lock,
)


def test_stages_of_one_execution_share_a_run(tmp_path: Path) -> None:
    begin_stage(tmp_path, "k", "prepare")
    finish_stage(tmp_path, "k", "prepare")
    begin_stage(tmp_path, "k", "train")
    note_run(tmp_path, "k", "run1")
    assert read_attempt(tmp_path, "k") == PipelineAttempt(1, "run1", ("prepare",))
    finish_stage(tmp_path, "k", "train")
    assert begin_stage(tmp_path, "k", "evaluate").run_id == "run1"


def test_a_killed_stage_goes_on_in_its_attempt(tmp_path: Path) -> None:
    begin_stage(tmp_path, "k", "train")
    assert begin_stage(tmp_path, "k", "train", "data-code") == PipelineAttempt(1, fingerprint="data-code")
    assert begin_stage(tmp_path, "k", "train", "data-code") == PipelineAttempt(1, fingerprint="data-code")


def test_a_finished_stage_begins_a_new_attempt(tmp_path: Path) -> None:
    begin_stage(tmp_path, "k", "train")
    note_run(tmp_path, "k", "run1")
    finish_stage(tmp_path, "k", "train")
    assert begin_stage(tmp_path, "k", "train") == PipelineAttempt(2)


def test_a_stage_that_dvc_never_wrote_down_goes_on_in_its_attempt(tmp_path: Path) -> None:
    begin_stage(tmp_path, "k", "train")
    finish_stage(tmp_path, "k", "train")
    begin_stage(tmp_path, "k", "evaluate")
    finish_stage(tmp_path, "k", "evaluate")
    assert begin_stage(tmp_path, "k", "evaluate", is_recorded=False) == PipelineAttempt(1, finished=("train",))


def test_other_data_or_code_begins_a_new_attempt(tmp_path: Path) -> None:
    begin_stage(tmp_path, "k", "train", "data-code")
    assert begin_stage(tmp_path, "k", "evaluate").number == 1
    assert begin_stage(tmp_path, "k", "train", "data-other") == PipelineAttempt(2, fingerprint="data-other")


def test_one_process_at_a_time_writes(tmp_path: Path) -> None:
    lock, second = tmp_path / "k.lock", writer_lock(tmp_path / "k.lock", patience=0.3)
    with writer_lock(lock), pytest.raises(ProjectError, match="one process at a time"):
        second.__enter__()
    with writer_lock(lock, patience=0.3):
        pass


@pytest.mark.parametrize("text", ["", "[", "{}", '{"number": "x", "run_id": 1, "finished": []}'])
def test_a_torn_file_counts_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "k.json").write_text(text, encoding="utf-8")
    assert read_attempt(tmp_path, "k") is None
    assert begin_stage(tmp_path, "k", "train") == PipelineAttempt(1)


def test_the_key_is_of_the_learning_values_and_the_experiment() -> None:
    assert attempt_key({"a": 1, "b": 2}, "") == attempt_key({"b": 2, "a": 1}, "")
    assert len({attempt_key({"a": 1}, ""), attempt_key({"a": 2}, ""), attempt_key({"a": 1}, "exp")}) == 3


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    with contextlib.suppress(RuntimeError), whole_file(path) as beside:
        beside.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old"
    with whole_file(path) as beside:
        beside.write_text("new", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "store"
    for text, fails in (("old", False), ("half", True), ("new", False)):
        with contextlib.suppress(RuntimeError), whole_folder(path) as beside:
            (beside / "a").write_text(text, encoding="utf-8")
            if fails:
                raise RuntimeError
        assert (path / "a").read_text(encoding="utf-8") == ("old" if fails else text)
    assert list(tmp_path.iterdir()) == [path]
