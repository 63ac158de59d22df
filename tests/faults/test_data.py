"""Rows 19 to 22 and 32 to 34: data that is damaged, changes, has evil names, or is a trap."""

import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import random_images, read_rows
from faults.project import EndState, Project
from images import add_damaged, encode, png_header

pytestmark = pytest.mark.slow
EVIL = [
    "plain",
    'it\'s "quoted"',
    "two\nlines",
    "$(touch canary)",
    "; touch canary #",
    "`touch canary`",
    "<img src=x onerror=alert(1)>",
    "dots..",
    "a|b&c>d",
    "%s%n{0}",
    "-rf",
    "ünïcödé ☃",
]


def _folder(root: Path, classes: list[str], count: int = 12) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index, pixels in enumerate(random_images(count, 8, 1, seed=number)):
            kind = "PNG" if index % 2 else "JPEG"
            (root / name / f"{name[:20]}{index}.{kind.lower()}").write_bytes(encode(np.minimum(pixels, 60 + 15 * number), kind))
    return root


def _use(project: Project, name: str) -> None:
    project.set(f"data.root=data/raw/{name}", "data.source=image-folder", "data.image_size=8", "data.channels=1")
    project.set("train.epochs=1", "train.effective_batch_size=16", "hardware.micro_batch_size=8", "train.augmentation=none")


@pytest.mark.fault(19, "truncated, empty and foreign files with image names", rounds=3, rare=True)
def test_damaged_images_are_listed_and_left_out(round_number: int, project: Project) -> None:
    folder = _folder(project.root / "data/raw/photos", ["a", "b"])
    bad = add_damaged(folder / "a", random_images(1, 8, 1, seed=round_number)[0])
    _use(project, "photos")
    output = project.bigstep("prepare")
    assert f"{len(bad)} files skipped" in output
    refused = {row["name"] for row in read_rows(project.root / "data/prepared/skipped.csv")}
    assert refused == {path.relative_to(folder).as_posix() for path in bad}
    counts = json.loads((project.root / "data/prepared/manifest.json").read_text(encoding="utf-8"))["counts"]
    assert sum(part["a"] for part in counts.values()) == 12


@pytest.mark.fault(20, "decompression bombs, and EPS and SVG with image names", rounds=3, rare=True)
def test_bombs_are_refused_without_decoding(round_number: int, project: Project) -> None:
    folder = _folder(project.root / "data/raw/photos", ["a", "b"])
    for number, side in enumerate((9_000, 12_000, 20_000, 50_000)):
        (folder / "a" / f"bomb{number}.png").write_bytes(png_header(side, side + round_number))
    _use(project, "photos")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert "4 files skipped" in project.bigstep("prepare")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert peak <= max(before, 700 * 1024), "KiB; of which Python and torch alone take 500 MiB"


@pytest.mark.fault(21, "a source file vanishes or changes after prepare", rounds=4, rare=True)
def test_a_file_that_changed_is_named(round_number: int, project: Project) -> None:
    folder = _folder(project.root / "data/raw/photos", ["a", "b"])
    _use(project, "photos")
    project.bigstep("prepare")
    assert "all files match" in project.bigstep("verify")
    victim = sorted((folder / "a").iterdir())[round_number]
    victim.unlink() if round_number % 2 else victim.write_bytes(victim.read_bytes() + b"\0")
    output = project.bigstep("verify", code=4)
    assert str(victim) in output
    assert ("is missing" if round_number % 2 else "changed") in output
    assert "Running stage 'prepare'" in project.bigstep("prepare")


@pytest.mark.long
@pytest.mark.fault(22, "names with quotes, newlines, shell and HTML characters", rounds=2)
def test_evil_names_go_through_and_touch_nothing(round_number: int, project: Project) -> None:
    del round_number
    _folder(project.root / "data/raw/evil", EVIL, count=8)
    _use(project, "evil")
    before = {path for path in project.root.parent.rglob("*") if project.root not in path.parents}
    output = project.bigstep("repro")
    assert "test_accuracy" in output
    assert not list(project.root.parent.rglob("canary"))
    assert {path for path in project.root.parent.rglob("*") if project.root not in path.parents} == before
    page = (project.root / "results/evaluate/report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert {row["class"] for row in read_rows(project.root / "results/evaluate/classes.csv")} == set(EVIL)
    assert project.runs()[-1].info.status == "FINISHED"
    shell = project.run("mlflow", "run", ".", "--env-manager", "local", "-P", "epochs=$(touch canary)", code=1)
    assert "train.epochs: expected" in shell
    assert not list(project.root.parent.rglob("canary"))


@pytest.mark.fault(32, "a byte of a DVC cache object flipped", rounds=6)
def test_a_rotten_cache_object_is_named(round_number: int, project: Project) -> None:
    objects = sorted(path for path in (project.root / ".dvc/cache/files/md5").rglob("*") if path.is_file())
    victim = random.Random(round_number).choice([path for path in objects if path.stat().st_size])
    mode = [0o444, 0o644][round_number % 2]
    victim.chmod(0o644)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    victim.chmod(mode)
    output = project.bigstep("verify", code=4)
    assert str(victim) in output


@pytest.mark.fault("32a", "pixels that DVC checks out differ from those that were prepared", rounds=3)
def test_training_refuses_pixels_that_changed(round_number: int, project: Project) -> None:
    path = project.root / "data/prepared/images.u8"
    content = bytearray(path.read_bytes())
    content[1000 * (round_number + 1)] ^= 1
    path.unlink()
    path.write_bytes(content)
    output = project.run("python", "pipelines/train.py", code=2)
    assert "expected what prepare wrote, got other pixels in images.u8" in output
    assert "Traceback" not in output


@pytest.mark.fault(33, "DVC's rwlock or dvc.lock torn", rounds=6, rare=True)
def test_torn_files_of_dvc_are_put_right(round_number: int, project: Project, undisturbed: EndState) -> None:
    name = [".dvc/tmp/rwlock", "dvc.lock"][round_number % 2]
    path = project.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b"{}"
    path.write_bytes(content[: len(content) // 2] + b"\n{" if round_number < 4 else b"\xff\x00")
    assert "is damaged" in project.bigstep("doctor", code=4)
    assert "is damaged" in project.bigstep("doctor", "--fix", code=None)
    project.finish("train")
    assert project.end_state().metrics == undisturbed.metrics


class _Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.fault(34, "a malicious pickle as checkpoint, as weights and in DVC's notes", rounds=3)
def test_no_pickle_is_ever_executed(round_number: int, project: Project, tmp_path: Path) -> None:
    canary, bomb = tmp_path / "canary", tmp_path / "bomb"
    bomb.write_bytes(pickle.dumps(_Bomb(canary)))
    if round_number == 0:
        project.strike("os.rename", r"\.step-\d+\.\d+\.tmp$", 3)
        for folder in project.checkpoints():
            for name in ("tensors.safetensors", "values.json", "commit.json"):
                shutil.copyfile(bomb, folder / name)
        project.bigstep("train", code=4)
    elif round_number == 1:
        torch.save({"a": _Bomb(canary)}, project.root / "weights/evil.pth")
        project.set("model.weights=weights/evil.pth")
        output = project.bigstep("train", code=2)
        assert "expected a safetensors file or a state_dict" in output
    else:
        state = project.root / ".bigstep"
        project.bigstep("doctor", "--fix", code=None)
        assert state.stat().st_mode & 0o077 == 0, "others may write where DVC unpickles"
        assert str(state / "dvc") in (project.root / ".dvc/config.local").read_text(encoding="utf-8")
    assert not canary.exists()
    subprocess.run([sys.executable, "-c", f"import pickle; pickle.load(open({str(bomb)!r}, 'rb'))"], check=True)
    assert canary.exists(), "the bomb was none"


@pytest.mark.fault("43", "SIGKILL at a random moment of prepare", rounds=10, rare=True)
def test_prepare_killed_leaves_no_half_store(round_number: int, project: Project, undisturbed: EndState) -> None:
    shutil.rmtree(project.root / "data/prepared")
    shutil.rmtree(project.root / ".dvc/cache")
    (project.root / "dvc.lock").unlink()
    places = [("open", r"\.prepared.*labels\.npy"), ("os.rename", r"\.prepared\.\d+\.tmp$"), ("open", r"manifest\.json")]
    event, pattern = places[round_number % len(places)]
    project.strike(event, pattern, command=("dvc", "repro", "prepare"))
    assert not (project.root / "data/prepared").exists()
    project.finish("train")
    assert not list((project.root / "data").glob(".prepared*"))
    assert project.end_state() == undisturbed
