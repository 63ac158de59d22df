import os
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from bigstep.data.image_folder import Entries, Entry, list_folder
from bigstep.data.split import Split
from bigstep.errors import DataError


def _make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_class_folders_are_classes_and_nested_files_belong_to_them(tmp_path: Path) -> None:
    listing = list_folder(_make(tmp_path, "dog/b.png", "cat/deep/er/a.png", "dog/a.png", "readme.txt", ".hidden/x", "cat/.x"))
    assert listing.classes == ("cat", "dog")
    assert [(entry.name, entry.label) for entry in listing.entries] == [
        ("cat/deep/er/a.png", 0),
        ("dog/a.png", 1),
        ("dog/b.png", 1),
    ]
    assert listing.num_ignored == 1


def test_split_folders_are_parts(tmp_path: Path) -> None:
    listing = list_folder(_make(tmp_path, "train/a/1", "train/b/1", "val/a/2", "test/b/3"))
    assert sorted((entry.name, entry.split) for entry in listing.entries) == [
        ("test/b/3", Split.TEST),
        ("train/a/1", Split.TRAIN),
        ("train/b/1", Split.TRAIN),
        ("val/a/2", Split.VALIDATION),
    ]
    assert listing.classes == ("a", "b")


def test_a_folder_named_train_beside_other_classes_is_a_class(tmp_path: Path) -> None:
    assert list_folder(_make(tmp_path, "train/1", "bus/1")).classes == ("bus", "train")


def test_links_to_folders_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    root = _make(tmp_path / "root", "a/1.png", "b/2.png")
    (root / "a" / "up").symlink_to("..")
    (root / "b" / "far").symlink_to(_make(root, ".far/3.png") / ".far")
    entries = {entry.name: entry.refusal for entry in list_folder(root).entries}
    assert entries["b/far/3.png"] is None
    assert "a loop of links" in entries.values()
    assert len(entries) < 10


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "is not a directory"),
        (("file.png",), "expected one sub-directory per class in .*, got none"),
        (("Cat/1", "cat/1"), "got 'Cat' and 'cat'"),
        (("cafe\u0301/1", "caf\u00e9/1"), "; rename one"),
    ],
)
def test_what_is_no_folder_of_classes_is_one_line(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list_folder(_make(tmp_path / "root", *names))
    assert len(str(caught.value).splitlines()) == 1


def test_names_with_every_kind_of_letter_are_listed(tmp_path: Path) -> None:
    names = ["a b/'\"$(x).png", "c\nd/;rm.png", "e<f>/&.png", "\u00fc/\u4e2d.png"]
    listing = list_folder(_make(tmp_path, *names))
    assert {entry.name for entry in listing.entries} == set(names)
    assert list(listing.classes) == sorted(listing.classes, key=os.fsencode)


def test_folders_joined_by_links_are_listed_once(tmp_path: Path) -> None:
    root = _make(tmp_path, "a/x.png", "b/y.png")
    for level in range(30):  # 2 ** 30 paths
        folder = _make(root, f"a/level{level:02}/z.png") / f"a/level{level:02}"
        for side in ("left", "right"):
            (folder / side).symlink_to(f"../level{level + 1:02}")
    entries = list_folder(root).entries
    files = [entry.name for entry in entries if entry.refusal is None and entry.name.endswith(".png")]
    assert sorted(files) == ["a/" + f"level{level:02}/z.png" for level in range(30)] + ["a/x.png", "b/y.png"]
    assert {entry.refusal for entry in entries} == {None, "a link to a folder that is listed elsewhere"}


def test_pairs_of_links_to_hidden_folders_are_followed_once(tmp_path: Path) -> None:
    root = _make(tmp_path, "a/x.png", "b/y.png")
    for level in range(30):
        _make(root, f".far/{level}/z.png")
        for side in ("left", "right"):
            (root / ".far" / str(level) / side).symlink_to(f"../{level + 1}")
    (root / "b" / "far").symlink_to(root / ".far" / "0")
    entries = list_folder(root).entries
    assert len([entry for entry in entries if entry.name.endswith("z.png")]) == 30


def test_a_link_never_takes_the_files_of_a_folder_of_another_class(tmp_path: Path) -> None:
    root = _make(tmp_path, "a/x.png", "b/deep/y.png")
    (root / "a" / "0").symlink_to("../b")
    found = {entry.name: (entry.label, entry.refusal) for entry in list_folder(root).entries}
    refusal = "a link to a folder that is listed elsewhere"
    assert found == {"a/0": (0, refusal), "a/x.png": (0, None), "b/deep/y.png": (1, None)}


def test_folders_nested_thousands_deep_are_refused_by_name(tmp_path: Path) -> None:
    root = _make(tmp_path, "a/x.png", "b/y.png")
    where = os.open(root / "a", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=where)
        inner = os.open("d", os.O_RDONLY, dir_fd=where)
        os.close(where)
        where = inner
    os.close(where)
    try:
        deep = [entry for entry in list_folder(root).entries if entry.refusal]
    finally:
        subprocess.run(["rm", "-rf", root / "a"], check=True)  # pytest's own cleaning is recursive
    assert [(entry.name.count("/d"), entry.refusal) for entry in deep] == [(64, "a folder more than 64 folders deep")]


def _linked(tmp_path: Path) -> Path:
    """Class folders with 7 entries of their own, and 60 behind a link to a hidden folder."""
    root = _make(tmp_path / "root", "a/x.png", "b/deep/y.png", "b/.hidden")
    _make(root / "b" / ".hidden.d", *(f"{part}/{number}.png" for part in range(4) for number in range(14)))
    (root / "a" / "all").symlink_to(root / "b" / ".hidden.d")
    return root


def test_a_link_to_more_entries_than_the_limit_is_named_in_one_line(tmp_path: Path) -> None:
    root = _linked(tmp_path)
    assert len(list_folder(root, max_entries=68).entries) == 58
    for limit in (67, 40):
        with pytest.raises(
            DataError, match=f"at most {limit} files and folders.*below the link '{root / 'a' / 'all'}'"
        ) as caught:
            list_folder(root, max_entries=limit)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("names", [("a/1", "a/2", "a/3"), ("a/.1", "a/.2", "a/.3"), ("a/d/1", "a/2"), ("a/1", "b/1", "c")])
def test_what_the_root_itself_holds_counts_too(names: tuple[str, ...], tmp_path: Path) -> None:
    root = _make(tmp_path / "root", *names)
    count = len(list(root.rglob("*")))
    assert list_folder(root, max_entries=count).classes[0] == "a"
    with pytest.raises(DataError, match=f"at most {count - 1} files and folders"):
        list_folder(root, max_entries=count - 1)


@pytest.mark.parametrize("link", ["a/far", "c", "train", "a/proc"])
def test_a_link_to_a_folder_outside_is_refused_because_dvc_does_not_look_behind_it(link: str, tmp_path: Path) -> None:
    names = ("a/x.png", "b/y.png") if link != "train" else ("test/a/x.png", "test/b/y.png")
    root = _make(tmp_path / "root", *names)
    (root / link).symlink_to("/proc" if link == "a/proc" else _make(tmp_path, "far/a/1.png", "far/b/1.png") / "far")
    with pytest.raises(DataError, match=f"expected folders that DVC follows, got the link '{root / link}.*; copy it there"):
        list_folder(root)


def test_the_root_itself_and_files_may_be_links(tmp_path: Path) -> None:
    _make(tmp_path / "far", "a/x.png", "b/y.png")
    (tmp_path / "far" / "a" / "z.png").symlink_to(_make(tmp_path, "z.png") / "z.png")
    (tmp_path / "root").symlink_to(tmp_path / "far")
    entries = {entry.name: entry.refusal for entry in list_folder(tmp_path / "root").entries}
    assert entries == {"a/x.png": None, "a/z.png": None, "b/y.png": None}


def test_files_are_kept_in_a_few_bytes_each() -> None:
    entries = [Entry(f"class/{number}.png", number % 7, (None, Split.TEST)[number % 2]) for number in range(5000)]
    entries += [Entry("class/caf\udce9.png", 3, None, "a loop of links"), Entry("class/\u00e9.png", 0, Split.TRAIN)]
    tracemalloc.start()
    kept = Entries(iter(entries))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 60 * len(entries)
    assert list(kept) == entries
    assert kept[-1] == entries[-1]
    assert kept[10:4990:7] == entries[10:4990:7]
    with pytest.raises(IndexError):
        kept[len(entries)]
