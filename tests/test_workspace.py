"""Private copies of the project, and what is written into .dvcignore: neither touches what it does not own."""

import json
import os
import pwd
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zc.lockfile
from dvc.fs import localfs
from dvc.ignore import DvcIgnoreFilter

from bigstep.config.yaml_files import parse_overrides, read_plain
from bigstep.errors import DataError, ProjectError
from bigstep.project.dvc import Request, find_project_root, run_pipeline, wait_for_dying, wait_for_lock
from bigstep.project.dvcignore import ignore_unhashable
from bigstep.project.paths import ProjectPaths
from bigstep.project.workspace import private_workspace

NAMES = (
    "p q.jpg",
    "a*b.jpg",
    "[x].jpg",
    "#first.jpg",
    "!no.jpg",
    "back\\slash.jpg",
    "q?.jpg",
    "end ",
    "ü\u4e2d.jpg",
    "a**",
    "{a,b}.jpg",
)
DECOYS = ("p_q.jpg", "pxq.jpg", "aXb.jpg", "x.jpg", "first.jpg", "no.jpg", "backslash.jpg", "qx.jpg", "end", "ab", "a.jpg")


@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_hides_the_file_meant_and_no_other(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "class"
    folder.mkdir(parents=True)
    os.mkfifo(folder / name)
    for other in (*DECOYS, *NAMES):
        if not (folder / other).exists():
            (folder / other).write_bytes(b"")
    (tmp_path / ".dvc").mkdir()
    ignore_unhashable(tmp_path, "data")
    rules = DvcIgnoreFilter(localfs, str(tmp_path))
    hidden = {other for other in {*DECOYS, *NAMES} if rules.is_ignored_file(str(folder / other))}
    assert hidden == {name}


def test_a_pattern_of_an_earlier_version_is_replaced_and_no_other_line(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "class"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "p q.jpg")
    (folder / "p_q.jpg").touch()
    lines = ["# mine", "", "/data/class/p?q.jpg", "/data/class/x?.jpg", "p?q.jpg", "/else/"]
    (tmp_path / ".dvcignore").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / ".dvc").mkdir()
    for _ in range(2):
        ignore_unhashable(tmp_path, "data")
        found = (tmp_path / ".dvcignore").read_text(encoding="utf-8")
        assert found.splitlines() == [*lines[:2], *lines[3:], "/data/class/p[ ]q.jpg"]
    (tmp_path / ".dvcignore").write_text(found.replace("\np?q.jpg", ""), encoding="utf-8")
    rules = DvcIgnoreFilter(localfs, str(tmp_path))
    assert [rules.is_ignored_file(str(folder / name)) for name in ("p q.jpg", "p_q.jpg")] == [True, False]


@pytest.mark.parametrize("name", ["two\nlines.jpg", "tab\t.jpg", os.fsdecode(b"\xff.jpg")])
def test_a_name_that_no_pattern_can_hold_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / name)
    with pytest.raises(DataError, match="rename or remove it"):
        ignore_unhashable(tmp_path, "data")
    assert not (tmp_path / ".dvcignore").exists()


@pytest.mark.parametrize("data_root", ["../../../photos", "../../../w/photos", "../photos", "weights/photos"])
def test_data_outside_of_a_private_copy_is_neither_linked_nor_replaced(data_root: str, tmp_path: Path) -> None:
    root = tmp_path / "a" / "b" / "project"
    for name in ("src", "pipelines", "weights"):
        (root / name).mkdir(parents=True)
    mine = tmp_path / "mine"
    mine.mkdir()
    (root / "photos").symlink_to(mine)
    (root / "weights" / "photos").symlink_to(mine)
    target = root / data_root
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir()
    before = sorted((str(path), str(path.readlink()) if path.is_symlink() else "") for path in tmp_path.rglob("*"))
    content = {"data": {"root": data_root}}
    with private_workspace(ProjectPaths(root), content, tmp_path / "cache") as folder:
        assert (folder / content["data"]["root"]).resolve() == target.resolve()
    found = sorted((str(path), str(path.readlink()) if path.is_symlink() else "") for path in tmp_path.rglob("*"))
    state = str(root / ".bigstep")
    assert [item for item in found if not item[0].startswith(state)] == before


def test_dvcs_lock_is_waited_for_after_a_kill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / ".dvc" / "tmp" / "lock"
    wait_for_lock(tmp_path)
    lock.parent.mkdir(parents=True)
    lock.touch()
    holder = zc.lockfile.LockFile(str(lock))
    with pytest.raises(ProjectError, match="is locked by another dvc"):
        wait_for_lock(tmp_path, patience=0.3)
    timer = threading.Timer(0.5, holder.close)
    timer.start()
    wait_for_lock(tmp_path)
    timer.join()
    assert capsys.readouterr().out.count("waiting for its lock") == 2
    zc.lockfile.LockFile(str(lock)).close()  # it is free for dvc


def test_sections_without_keys_take_the_defaults_in_a_private_copy_too(tmp_path: Path) -> None:
    root = tmp_path / "project"
    (root / "data" / "raw").mkdir(parents=True)
    (root / "params.yaml").write_text("data:\ntrain:\nhardware:\nsearch:\n  # trials: 3\n", encoding="utf-8")
    (root / "dvc.yaml").write_text("stages: {prepare: {cmd: touch ran, params: [train.epochs]}}\n", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=root, check=True)
    code, paths, params = run_pipeline(root, Request("prepare", (parse_overrides(["train.epochs=2"]),)))
    assert (code, params.train.epochs) == (0, 2)
    assert (paths.root / "ran").exists()
    assert read_plain(paths.params)["search"] == {}


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Root may read and write everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize(("name", "wait"), [("lock", wait_for_lock), ("rwlock", wait_for_dying)])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_of_dvc_that_belongs_to_another_user_is_one_line(name: str, wait: Callable[[Path], None], kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        Path(folder).chmod(0o755)
        path = Path(folder, ".dvc", "tmp", name)
        path.parent.mkdir(parents=True)
        path.mkdir() if kind == "folder" else path.touch(0)
        with _as_nobody(), pytest.raises(ProjectError, match="expected a file that this user can write") as caught:
            wait(Path(folder))
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["it's", 'a "b"', "what?", "100%", "#1"])
def test_a_project_in_a_folder_that_mlflow_cannot_address_is_refused_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    for file in ("params.yaml", "dvc.yaml"):
        (tmp_path / name / file).touch()
    with pytest.raises(ProjectError, match="rename or move the folder"):
        find_project_root(tmp_path / name)


@pytest.mark.parametrize("name", ["two words", "проект"])
def test_spaces_and_other_letters_are_no_reason(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    for file in ("params.yaml", "dvc.yaml"):
        (tmp_path / name / file).touch()
    assert find_project_root(tmp_path / name) == tmp_path / name


def test_a_zombie_that_dvcs_rwlock_names_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / ".dvc" / "tmp" / "rwlock"
    wait_for_dying(tmp_path)
    path.parent.mkdir(parents=True)
    child = subprocess.Popen(["true"])
    path.write_text(json.dumps({"write": {"data": {"pid": child.pid, "cmd": "dvc repro"}}}), encoding="utf-8")
    timer = threading.Timer(1.5, child.wait)  # a zombie until then
    timer.start()
    started = time.monotonic()
    wait_for_dying(tmp_path)
    assert time.monotonic() - started > 1.2
    timer.join()
    wait_for_dying(tmp_path, patience=0.1)


def test_an_rwlock_torn_by_a_kill_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True)
    path.write_text('{"write": {"data": {"pid": 1', encoding="utf-8")
    wait_for_dying(tmp_path, patience=0.5)  # too soon to tell it from one that is being written
    assert path.exists()
    wait_for_dying(tmp_path)
    assert not path.exists()
    assert path.with_suffix(".torn").exists()
