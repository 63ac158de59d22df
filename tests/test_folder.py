import os
from pathlib import Path

import pytest

from bigstep.data.folder import list_folder
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
        ("test/b/3", "test"),
        ("train/a/1", "train"),
        ("train/b/1", "train"),
        ("val/a/2", "validation"),
    ]
    assert listing.classes == ("a", "b")


def test_a_folder_named_train_beside_other_classes_is_a_class(tmp_path: Path) -> None:
    assert list_folder(_make(tmp_path, "train/1", "bus/1")).classes == ("bus", "train")


def test_links_to_folders_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    root = _make(tmp_path / "root", "a/1.png", "b/2.png")
    (root / "a" / "up").symlink_to("..")
    (_make(tmp_path, "far/3.png") / "far").rename(tmp_path / "far2")
    (root / "b" / "far").symlink_to(tmp_path / "far2")
    entries = {entry.name: entry.refusal for entry in list_folder(root).entries}
    assert entries["b/far/3.png"] is None
    assert "a loop of links" in entries.values()
    assert len(entries) < 10


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "is none"),
        (("file.png",), "holds no folder"),
        (("Cat/1", "cat/1"), "'Cat' and 'cat' do not"),
        (("cafe\u0301/1", "caf\u00e9/1"), "rename one folder"),
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
