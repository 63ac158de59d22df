"""Former names of keys of params.yaml: they work in every place where a key can be written, with one line each."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from ruamel.yaml import YAML

from bigstep.cli import main
from bigstep.commands.arguments import build_parser
from bigstep.commands.overrides import chosen_overrides, read_preset
from bigstep.config.former_keys import FORMER, FORMER_SECTIONS, former_values, new_values, update_content, update_overrides
from bigstep.config.params import SECTIONS, parse_params, read_params
from bigstep.config.yaml_files import apply_overrides, parse_overrides, read_yaml, write_yaml
from bigstep.data.store import Store
from bigstep.errors import ConfigError
from bigstep.project.attempts import attempt_key, find_key
from bigstep.project.parameters import learning_values
from bigstep.search.initial_points import ensure_starts
from bigstep.search.space import RATE, build_space
from bigstep.search.storage import open_storage, open_study
from bigstep.search.trial_params import trial_params
from bigstep.search.trial_queue import TrialQueue
from conftest import copy_project
from dvc_dependencies import ROOT
from faults.project import Project

OTHERS = {  # a value that is not the default, for each key that has another name now
    "data.normalization": "imagenet",
    "train.step_epochs": 7,
    "train.factor": 0.25,
    "train.select_by": "val_accuracy",
    "train.max_bad_steps": 5,
    "memory.checkpoint_activations": True,
    "checkpoint.every": "10min",
    "search.top": 2,
    "search.replicates": 4,
    "search.audit": 0.5,
}
CASES = [pytest.param(former, FORMER[former], value, id=former) for former, value in OTHERS.items()]


def _content(name: str, value: Any) -> dict[str, Any]:
    section, key = name.split(".")
    return {section: {key: value}}


def _get(params: Any, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(params, section), key)


def test_each_former_name_has_a_case_and_a_key_of_now() -> None:
    keys = {f"{section.title}.{key}" for section in SECTIONS for key in section.model_fields}
    assert OTHERS.keys() == FORMER.keys()
    assert set(FORMER.values()) <= keys
    assert not FORMER.keys() & keys
    assert not set(FORMER_SECTIONS) & {section.title for section in SECTIONS}


@pytest.mark.parametrize(("former", "name", "value"), CASES)
def test_it_works_in_the_file_and_names_the_new_one(
    former: str, name: str, value: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"{former}.yaml"
    write_yaml(_content(former, value), path)
    with caplog.at_level(logging.WARNING):
        params = [parse_params(read_params(path)) for _ in range(2)]
    assert params[0] == params[1] == parse_params(_content(name, value)) != parse_params({})
    assert caplog.messages == [f"{former}.yaml: {former} is now {name}; the former name works until version 0.3"]


@pytest.mark.parametrize(("former", "name", "value"), CASES)
def test_under_both_names_it_is_refused_in_one_line(former: str, name: str, value: Any) -> None:
    content: dict[str, Any] = {}
    apply_overrides(content, parse_overrides([f"{former}={value}", f"{name}={value}"]))
    before = repr(content)
    with pytest.raises(ConfigError) as caught:
        update_content(content)
    assert str(caught.value) == (
        f"params.yaml: {name}: expected it once, got it as {former}, its former name, too; delete {former}"
    )
    assert repr(content) == before


@pytest.mark.parametrize(("former", "name", "value"), CASES)
def test_it_works_in_an_override(former: str, name: str, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    options = build_parser().parse_args(["repro", "--set", f"{former}={value}"])
    with caplog.at_level(logging.WARNING):
        (found,) = chosen_overrides(options)
    assert found == (*name.split("."), value)
    assert caplog.messages == [f"--set: {former} is now {name}; the former name works until version 0.3"]


@pytest.mark.parametrize(("former", "name", "value"), CASES)
def test_it_works_in_a_preset(former: str, name: str, value: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "presets").mkdir()
    write_yaml(_content(former, value), tmp_path / "presets" / "old.yaml")
    with caplog.at_level(logging.WARNING):
        assert read_preset(tmp_path, "old") == ((*name.split("."), value),)
    assert caplog.messages == [f"presets/old.yaml: {former} is now {name}; the former name works until version 0.3"]


def test_an_override_of_now_replaces_the_former_key_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("train:\n  select_by: val_loss\n", encoding="utf-8")
    content = apply_overrides(read_params(tmp_path / "params.yaml"), parse_overrides(["train.monitor=val_accuracy"]))
    assert parse_params(content).train.monitor == "val_accuracy"


def test_the_former_value_works_in_the_file_and_in_an_override() -> None:
    line = "data.on_bad_image: refuse is now skip; the former value works until version 0.3"
    content = {"data": {"on_bad_image": "refuse"}}
    assert update_content(content) == [f"params.yaml: {line}"]
    assert content == {"data": {"on_bad_image": "skip"}}
    found = update_overrides([("data", "on_bad_image", "refuse")], "--set")
    assert found == ((("data", "on_bad_image", "skip"),), [f"--set: {line}"])
    assert update_content({"data": {"on_bad_image": "fail"}}) == []


def test_a_search_over_a_former_name_searches_the_key_of_now() -> None:
    searched = {"train.factor": {"low": 0.1, "high": 0.5}, "train.weight_decay": [0.0, 0.1]}
    line = "search.parameters: train.factor is now train.lr_decay_factor; the former name works until version 0.3"
    content: dict[str, Any] = {"search": {"parameters": dict(searched)}}
    assert update_content(content) == [f"params.yaml: {line}"]
    assert list(content["search"]["parameters"]) == ["train.lr_decay_factor", "train.weight_decay"]
    found, lines = update_overrides([("search", "parameters", searched)], "--set")
    assert (dict(found[0][2]), lines) == (content["search"]["parameters"], [f"--set: {line}"])
    assert trial_params(content, {"train.lr_decay_factor": 0.3, "hardware.micro_batch_size": 8}).train.lr_decay_factor == 0.3
    content["search"]["parameters"]["train.factor"] = [0.1, 0.2]
    with pytest.raises(ConfigError, match=r"train.lr_decay_factor: expected it once, got it as train.factor"):
        update_content(content)


def test_a_file_keeps_its_order_and_comments(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    text = (tmp_path / "params.yaml").read_text(encoding="utf-8")
    for name in ("train.monitor", "search.confirm_top", "data.pixel_statistics"):
        former = {new: old for old, new in FORMER.items()}[name]
        text = text.replace(f"\n  {name.split('.')[1]}:", f"\n  {former.split('.')[1]}:")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    write_yaml(read_params(tmp_path / "params.yaml"), tmp_path / "updated.yaml")
    write_yaml(read_yaml(ROOT / "params.yaml"), tmp_path / "shipped.yaml")
    updated, shipped = ((tmp_path / name).read_text(encoding="utf-8") for name in ("updated.yaml", "shipped.yaml"))
    assert [line.split() for line in updated.splitlines()] == [line.split() for line in shipped.splitlines()]


def test_a_command_refuses_both_names_with_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    (tmp_path / "params.yaml").write_text("train: {select_by: val_loss, monitor: val_loss}\n", encoding="utf-8")
    assert main(["repro"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bigstep: params.yaml: train.monitor: expected it once")


def test_what_was_recorded_under_former_names_is_read_under_those_of_now() -> None:
    now = learning_values(parse_params(read_yaml(ROOT / "params.yaml")))
    before = former_values(now)
    assert before["train.select_by"] == now["train.monitor"]
    assert (before["data.on_bad_image"], now["data.on_bad_image"]) == ("refuse", "skip")
    assert new_values(before) == now


def test_a_spelling_changes_no_key_of_an_attempt_and_a_former_attempt_keeps_its_own(tmp_path: Path) -> None:
    content = {"train": {"select_by": "val_accuracy"}}
    update_content(content)
    learning = learning_values(parse_params(content))
    key = find_key(tmp_path, learning, "")
    assert key == find_key(tmp_path, learning_values(parse_params({"train": {"monitor": "val_accuracy"}})), "")
    former = attempt_key(former_values(learning), "")
    assert former != key
    (tmp_path / f"{former}.json").write_text("{}", encoding="utf-8")
    assert find_key(tmp_path, learning, "") == former


def test_the_former_sections_move_into_hardware_with_their_comments(tmp_path: Path) -> None:
    text = (
        "hardware:\n  device: cpu  # here\n\nmemory:\n  checkpoint_activations: true  # why\n\n"
        "checkpoint:\n\ntracking:\n  experiment: x\n"
    )
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    write_yaml(read_params(tmp_path / "params.yaml"), tmp_path / "params.yaml")
    lines = [line.split() for line in (tmp_path / "params.yaml").read_text(encoding="utf-8").splitlines() if line]
    assert [" ".join(words) for words in lines] == [
        "hardware:",
        "device: cpu # here",
        "activation_checkpointing: true # why",
        "tracking:",
        "experiment: x",
    ]
    with pytest.raises(ConfigError, match="memory: unknown section"):
        parse_params(read_params(_written(tmp_path, "memory: {budget: 3}\n")))


def _written(folder: Path, text: str) -> Path:
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    return folder / "params.yaml"


def test_plain_yaml_is_left_as_it_is() -> None:
    content = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    before = repr(content)
    assert update_content(content) == []
    assert repr(content) == before
    odd: dict[str, Any] = {"train": None, "search": 3}
    assert update_content(odd) == []
    assert odd == {"train": None, "search": 3}


def test_a_study_that_searched_a_former_name_starts_another_one(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "search.journal"))
    former = open_study(storage, "former", ["minimize"])
    ranges = {"train.factor": FloatDistribution(0.1, 0.5), RATE: FloatDistribution(1e-4, 1.0)}
    former.add_trial(create_trial(params={"train.factor": 0.3, RATE: 0.02}, distributions=ranges, value=1.0))
    params = parse_params({"search": {"parameters": {"train.lr_decay_factor": {"low": 0.1, "high": 0.5}}}})
    ledger = TrialQueue(open_study(storage, "now", ["minimize"]), 20, 200)
    ensure_starts(ledger, params, build_space(params), "former")
    fixed = [trial.system_attrs["fixed_params"] for trial in ledger.study.trials]
    assert [point[RATE] for point in fixed if point["train.lr_decay_factor"] == 0.3] == [0.02]


@pytest.mark.slow
def test_dvc_exp_run_sets_a_key_by_the_name_that_the_file_has(tmp_path: Path) -> None:
    project = Project(copy_project(tmp_path / "project"))
    path = project.root / "params.yaml"
    shipped = path.read_text(encoding="utf-8")
    path.write_text(shipped.replace("  pixel_statistics:", "  normalization:"), encoding="utf-8")
    output = project.run("dvc", "exp", "run", "-n", "former", "-S", "data.normalization=imagenet", "prepare")
    assert output.count("params.yaml: data.normalization is now data.pixel_statistics") == 1
    assert Store(project.root / "data" / "prepared").manifest.normalization == "imagenet"
    path.write_text(shipped, encoding="utf-8")
    output = project.run("dvc", "exp", "run", "-n", "both", "-S", "+data.normalization=imagenet", "prepare", code=None)
    assert "bigstep: params.yaml: data.pixel_statistics: expected it once, got it as data.normalization" in output
    assert "Traceback" not in output
