import io
import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from bigstep.cli import main
from bigstep.commands.argument_values import FORMER, with_new_names
from bigstep.commands.arguments import build_parser
from bigstep.config.lock_files import load_lock, read_lock
from bigstep.config.params import SECTIONS, flatten, parse_params
from bigstep.config.search import SearchConfig
from bigstep.config.section import Section, rule_of
from bigstep.config.yaml_files import apply_overrides, load_plain, parse_overrides, read_plain, read_yaml, write_yaml
from bigstep.diagnostics.state_files import is_lock
from bigstep.errors import ConfigError
from bigstep.project.parameters import check_followed_by_dvc, check_params, learning_values

ROOT = Path(__file__).resolve().parents[1]
KEYS = [(section, key) for section in SECTIONS for key in section.model_fields]
OUT_OF_RANGE: dict[str, Any] = {
    "data.image_size": 7,
    "data.channels": 2,
    "data.table": "",
    "data.columns": {"where": "x"},
    "data.validation_fraction": 1.0,
    "data.test_fraction": 0.0,
    "data.root": "~/pics",
    "data.split_seed": -1,
    "data.max_megapixels": 0.0,
    "data.source": "mnist",
    "data.pixel_statistics": "no",
    "data.on_bad_image": "ignore",
    "model.width": 3,
    "model.norm": "layer",
    "model.ghost_batch_size": 1,
    "model.dropout": 1.0,
    "model.batch_norm_statistics": "deferred",
    "train.epochs": 0,
    "train.effective_batch_size": 0,
    "train.optimizer": "lamb",
    "train.learning_rate": 0.0,
    "train.weight_decay": -0.1,
    "train.momentum": 1.0,
    "train.betas": [0.9, 1.0],
    "train.schedule": "poly",
    "train.warmup_fraction": 1.0,
    "train.lr_decay_epochs": 0,
    "train.lr_decay_factor": 1.0,
    "train.plateau_patience": -1,
    "train.max_nonfinite_steps": 0,
    "train.loss": 3,
    "train.label_smoothing": 1.0,
    "train.class_weights": [1.0],
    "train.clip_norm": 0.0,
    "train.ema_decay": 1.0,
    "train.early_stopping_patience": 0,
    "train.monitor": "loss",
    "train.augmentation": "cutout",
    "train.mixup_alpha": 0.0,
    "train.cutmix_alpha": -1.0,
    "train.precision": "fp8",
    "train.seed": -1,
    "evaluate.calibration_bins": 1,
    "evaluate.metrics": [3],
    "evaluate.num_mistakes": 0,
    "hardware.device": "tpu",
    "hardware.processes": 0,
    "hardware.micro_batch_size": 0,
    "hardware.accumulation_steps": 0,
    "hardware.num_workers": -1,
    "hardware.threads": 0,
    "hardware.memory_format": "nchw",
    "hardware.memory_budget": "4 gigs",
    "hardware.checkpoint_interval": "often",
    "hardware.max_time": "often",
    "tracking.noise_scale": "all",
    "search.trials": 0,
    "search.max_time": "soon",
    "search.epochs": 0,
    "search.space": "flat",
    "search.learning_rate": [0.0, 1.0],
    "search.effective_batch_size": [0, 8],
    "search.micro_batch_size": [1, 2, 3],
    "search.accumulation_steps": [0, 8],
    "model.options": 3,
    "data.options": [1],
    "search.parameters": {"train.weight_decay": [1]},
    "search.objective": "test_loss",
    "search.sampler": "grid",
    "search.pruner": "asha",
    "search.confirm_top": -1,
    "search.confirm_seeds": 0,
    "search.audit_fraction": 1.5,
    "search.workers": 0,
    "search.study": "../other",
    "search.seed": -1,
    "search.storage": "",
}
UNBOUNDED = {
    "data.download",
    "model.name",
    "model.weights",
    "model.freeze_backbone",
    "train.nesterov",
    "train.keyed_randomness",
    "hardware.activation_checkpointing",
    "hardware.compile",
}
UNBOUNDED |= {"tracking.experiment", "tracking.registered_model"}


def _shipped() -> dict[str, Any]:
    return read_yaml(ROOT / "params.yaml")


def _with(*texts: str) -> dict[str, Any]:
    return apply_overrides(_shipped(), parse_overrides(texts))


def test_an_experiment_of_dvc_changes_one_line_of_params_yaml(tmp_path: Path) -> None:
    """The file has the form that `dvc exp run -S` writes."""
    from dvc.utils.serialize import modify_yaml  # type: ignore[import-untyped]

    before = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(before, encoding="utf-8")
    with modify_yaml(str(tmp_path / "params.yaml")) as content:
        content["train"]["learning_rate"] = 0.01
    after = (tmp_path / "params.yaml").read_text(encoding="utf-8")
    changed = [line for line, other in zip(before.splitlines(), after.splitlines(), strict=True) if line != other]
    assert [line.split(":")[0].strip() for line in changed] == ["learning_rate"]


def test_the_shipped_file_holds_every_key_with_its_default_and_a_comment() -> None:
    content = _shipped()
    assert {name: set(values) for name, values in content.items()} == {s.title: set(s.model_fields) for s in SECTIONS}
    assert parse_params(content) == parse_params({})
    parts = (ROOT / "params.yaml").read_text(encoding="utf-8").split("\n\n")
    found = {part.lstrip().partition(":")[0]: part.splitlines() for part in parts}
    for section, key in KEYS:
        (line,) = [line for line in found[section.title] if line.startswith(f"  {key}:")]
        assert "# " in line, f"{key} has no comment"


def _found_line(content: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    (folder / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    write_yaml(content, folder / "params.yaml")
    before = sorted(folder.rglob("*"))
    assert main(["repro"]) == 2
    assert sorted(folder.rglob("*")) == before, "something was written"
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(("section", "key"), KEYS, ids=lambda item: item if isinstance(item, str) else item.title)
@pytest.mark.parametrize("fault", ["type", "range", "name"])
def test_each_bad_value_is_one_line_code_2_and_nothing_written(
    section: type[Section],
    key: str,
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    content, name = _shipped(), f"{section.title}.{key}"
    if fault == "name":
        content[section.title][f"{key}x"] = content[section.title].pop(key)
        assert f"did you mean {key!r}?" in _found_line(content, tmp_path, capsys)
        return
    if fault == "range" and name in UNBOUNDED:
        return
    content[section.title][key] = {"a": ["mapping"]} if fault == "type" else OUT_OF_RANGE[name]
    line = _found_line(content, tmp_path, capsys)
    assert line.startswith(f"bigstep: params.yaml: {name}: expected ")
    assert ", got " in line
    assert "; " in line


def _pattern_of(section: type[Section], key: str) -> str | None:
    """Return the regular expression that a value must match, if any."""
    schema = section.model_json_schema()["properties"][key]
    return next((option["pattern"] for option in schema.get("anyOf", [schema]) if "pattern" in option), None)


def test_keys_with_different_patterns_have_different_rules() -> None:
    """search.study had the rule of a memory size."""
    rules: dict[str, set[str]] = {}
    for section, key in KEYS:
        pattern = _pattern_of(section, key)
        if pattern is not None:
            rules.setdefault(pattern, set()).add(rule_of(section.model_fields[key]))
    found = [rule for texts in rules.values() for rule in texts]
    assert len(rules) >= 4
    assert len(found) == len(set(found)) == len(rules)
    assert "string" not in found
    assert "text" not in found
    assert "name of letters" in rule_of(SearchConfig.model_fields["study"])


def test_every_key_has_a_range_to_test_or_none() -> None:
    assert {f"{section.title}.{key}" for section, key in KEYS} == set(OUT_OF_RANGE) | UNBOUNDED


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.source=image-folder"], "data.image_size: expected a number"),
        (["data.download=true"], "nothing to download"),
        (["data.validation_fraction=0.6", "data.test_fraction=0.5"], "expected a sum < 1, got 1.1"),
        (["data.image_size=100"], "8 to 64 with model.name small_cnn, got 100"),
        (["model.norm=batch"], "ghost_batch_size: expected a number"),
        (["model.ghost_batch_size=8"], "ghost_batch_size: expected null with model.norm group, got 8"),
        (["model.freeze_backbone=true"], "set model.weights"),
        (["model.weights=/tmp/x.pth"], "expected a file in weights/"),
        (["model.name=resnet19"], "did you mean"),
        (["train.nesterov=true"], "got true with adamw"),
        (["train.augmentation=[RandomCropp]"], "did you mean 'RandomCrop'"),
        (["train.augmentation=[{RandomCrop: {siz: 3}}]"], "RandomCrop does not accept these arguments"),
        (["train.schedule=plateau"], "warmup_fraction: expected 0 with train.schedule plateau, got 0.05"),
        (["hardware.micro_batch_size=null"], "expected at least two values, got 64, null and null"),
        (
            ["model.norm=batch", "model.ghost_batch_size=8", "hardware.micro_batch_size=4"],
            r"\(8\) with model.norm batch, got 4",
        ),
        (["train.effective_batch_size=10", "hardware.accumulation_steps=6"], "rounded up, 5 for 10 / 2, got 6"),
        (["tracking.registered_model=a'b"], "registered_model: expected null or a name without quotes"),
        (["tracking.registered_model=a/b"], "registered_model: expected null or a name without quotes"),
    ],
)
def test_impossible_combinations_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_params(_with(*overrides))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (64, 32, 2)),
        (["hardware.micro_batch_size=30"], (64, 30, 3)),
        (["hardware.accumulation_steps=8"], (64, 8, 8)),
        (["train.effective_batch_size=100"], (100, 32, 4)),
        (["hardware.micro_batch_size=16", "hardware.accumulation_steps=5"], (80, 16, 5)),
        (["train.effective_batch_size=96", "hardware.accumulation_steps=4"], (96, 24, 4)),
        (["train.effective_batch_size=24"], (24, 24, 1)),
        (["train.effective_batch_size=64", "hardware.micro_batch_size=16", "hardware.accumulation_steps=4"], (64, 16, 4)),
        (["model.norm=batch", "model.ghost_batch_size=16", "hardware.micro_batch_size=null"], (64, 16, 4)),
    ],
)
def test_any_two_of_the_three_sizes_are_taken(overrides: list[str], expected: tuple[int, int, int]) -> None:
    params = parse_params(_with(*overrides))
    batch = params.batch
    assert (batch.effective_batch_size, batch.micro_batch_size, batch.accumulation_steps) == expected
    assert flatten(params)["hardware.accumulation_steps"] == (expected[2] if batch.is_planned else None)


def test_dvc_needs_the_effective_batch_in_the_file() -> None:
    params = parse_params(_with("hardware.micro_batch_size=16", "hardware.accumulation_steps=5"))
    with pytest.raises(ConfigError, match="write 80"):
        check_followed_by_dvc(params)


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-03"])
def test_a_number_is_the_same_wherever_it_is_written(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"train:\n  learning_rate: {text}\n", encoding="utf-8")
    assert parse_params(read_yaml(path)).train.learning_rate == 0.001
    assert parse_params(_with(f"train.learning_rate={text}")).train.learning_rate == 0.001


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml"])
def test_a_file_that_is_only_looked_at_has_the_same_values_is_parsed_once_and_seen_to_change(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes((ROOT / name).read_bytes())
    read = read_plain(path)
    assert json.dumps(read) == json.dumps(read_yaml(path))
    assert read_plain(path) is read
    path.write_text(path.read_text(encoding="utf-8") + "more: {value: 1e-3}\n", encoding="utf-8")
    assert read_plain(path) == {**read, "more": {"value": 0.001}}


VALUES = (1e-5, 1e22, -0.0, float("inf"), 10**20, True, None, [1, 2.5, "on", None], {"a": {"b": [False]}})
TEXTS = (
    "yes",
    "no",
    "010",
    "0o17",
    "1_000",
    "12:30",
    "2024-01-01",
    "~",
    "1e-5",
    "",
    "=",
    "<<",
    "a: b",
    "- x",
    ".5",
    "true",
    "+1",
)


@pytest.mark.parametrize("value", [*VALUES, *TEXTS, "\u00e9", "# no"], ids=repr)
def test_dvcs_record_is_read_as_dvc_reads_it(value: object) -> None:
    text = io.StringIO()
    YAML().dump({"stages": value}, text)
    found = load_lock(text.getvalue())
    assert repr(found) == repr(load_plain(text.getvalue()))
    assert found["stages"] == value


def test_the_record_of_this_project_is_read_as_dvc_reads_it() -> None:
    assert json.dumps(read_lock(ROOT / "dvc.lock")) == json.dumps(load_plain((ROOT / "dvc.lock").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "text", ["a: [", "a: 1\na: 2\n", "a: &x 1\nb: *x\n", "[" * 50, "\x00", "a\tb: ]", "{a: {b", "!!python/object:os.system x"]
)
def test_a_torn_record_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"dvc\.lock: expected valid YAML, got: ") as caught:
        read_lock(tmp_path / "dvc.lock")
    assert len(str(caught.value).splitlines()) == 1
    assert not is_lock(tmp_path / "dvc.lock")


@pytest.mark.parametrize("text", ["train", "train.learning_rate", "=1", "train.=1", "a.b.c=1"])
def test_an_override_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"section.key=value, got"):
        parse_overrides([text])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "expected valid YAML, got: "),
        ("- 1\n", "expected a mapping of sections, got"),
        ("train: 3\n", "train: expected a mapping of keys, got 3"),
        ("trian: {}\n", "did you mean 'train'"),
        ("train: {epochs: 1}\ntrain: {epochs: 2}\n", "duplicate key"),
        ("\x00", "expected valid YAML"),
    ],
)
def test_a_file_of_another_form_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        parse_params(read_yaml(path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read params.yaml: No such file"):
        read_yaml(tmp_path / "params.yaml")


def test_overrides_keep_the_comments(tmp_path: Path) -> None:
    write_yaml(_with("train.learning_rate=1e-3"), tmp_path / "params.yaml")
    text = (tmp_path / "params.yaml").read_text(encoding="utf-8")
    assert "learning_rate: 0.001" in text
    assert text.count("#") == (ROOT / "params.yaml").read_text(encoding="utf-8").count("#")


@pytest.mark.parametrize(
    "text", ["{since: 2020-01-01}", "{deep: [{since: 2020-01-01}]}", "{2020-01-01: a}", "{raw: !!binary aGk=}"]
)
def test_arguments_that_are_no_json_are_refused(text: str) -> None:
    """They are sent to other processes, as by a search to its workers."""
    options = load_plain(text)
    with pytest.raises(
        ConfigError, match=r"params\.yaml: model\.options: expected text, numbers, lists and mappings, got "
    ) as caught:
        parse_params({"model": {"name": "custom/model/net.py:Net", "options": options}})
    assert str(caught.value).endswith("; put it in quotes")
    assert "\n" not in str(caught.value)
    parse_params(
        {"model": {"name": "custom/model/net.py:Net", "options": load_plain("{since: '2020-01-01', deep: [1.5, {a: null}]}")}}
    )


def test_hardware_and_tracking_are_no_learning_values() -> None:
    before, after = (learning_values(parse_params(content)) for content in (_shipped(), _with("hardware.micro_batch_size=7")))
    assert before == after
    assert before != learning_values(parse_params(_with("train.seed=1")))


def test_every_preset_is_valid() -> None:
    for path in (ROOT / "presets").glob("*.yaml"):
        content = _shipped()
        for section, values in read_yaml(path).items():
            content[section].update(values)
        check_params(content)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[" * 3000 + "]" * 3000, "nested more than 32 levels deep"),
        ("&a {x: *a}", "the alias *a"),
        ("[&a [1,1], &b [*a,*a,*a], [*b,*b,*b]]", "the alias *a"),
        ("- " * 3000 + "x", "nested more than 32 levels deep"),
    ],
)
def test_yaml_that_nests_too_deep_or_has_aliases_is_one_line(value: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(f"train:\n  seed:\n    {value}\n", encoding="utf-8")
    for read in (lambda: read_yaml(tmp_path / "params.yaml"), lambda: parse_overrides([f"train.seed={value}"])):
        with pytest.raises(ConfigError, match=r"expected (valid|a) YAML") as error:
            read()
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "presets").mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_set_takes_several_values_and_may_be_repeated() -> None:
    options = build_parser().parse_args(["repro", "--set", "train.epochs=1", "train.seed=2", "--set", "model.width=8"])
    assert options.set == ["train.epochs=1", "train.seed=2", "model.width=8"]


def test_a_mistake_in_an_override_is_blamed_on_where_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (_project(tmp_path, monkeypatch) / "presets" / "mine.yaml").write_text("train: {epochs: none}\n", encoding="utf-8")
    for arguments, message in {
        (
            "--set",
            "train.learning_rat=1",
        ): "--set: train.learning_rat: unknown key; did you mean 'learning_rate'",
        ("--set", "train.epochs=x"): "--set: train.epochs: expected",
        ("--set", "trian.epochs=1"): "--set: trian: unknown section; did you mean 'train'?",
        ("--preset", "mine"): "presets/mine.yaml: train.epochs: expected",
    }.items():
        assert main(["repro", *arguments]) == 2
        assert capsys.readouterr().err.startswith(f"bigstep: {message}")


def test_a_preset_or_params_yaml_with_an_empty_section_takes_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigstep.commands.overrides import read_preset

    (_project(tmp_path, monkeypatch) / "presets" / "mine.yaml").write_text("train:\ndata: {split_seed: 3}\n", encoding="utf-8")
    assert read_preset(tmp_path, "mine") == (("data", "split_seed", 3),)
    content = apply_overrides({**_shipped(), "train": None}, parse_overrides(["train.seed=5"]))
    assert check_params(content).train.seed == 5


@pytest.mark.parametrize("section", ["[a]", "5"])
def test_a_section_that_is_no_mapping_is_one_line_with_an_override_of_another_one_too(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (_project(tmp_path, monkeypatch) / "params.yaml").write_text(f"train: {section}\n", encoding="utf-8")
    assert main(["repro", "--set", "evaluate.num_mistakes=5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bigstep: params.yaml: train: expected a mapping of keys, got ")


def test_a_misspelt_command_is_one_line_and_none_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rpro"]) == 2
    assert capsys.readouterr().err == "bigstep: COMMAND: expected a command of bigstep, got 'rpro'; did you mean 'repro'?\n"
    assert main([]) == 0
    assert "bigstep repro" in capsys.readouterr().out


@pytest.mark.parametrize(("former", "name"), sorted(FORMER.items()))
def test_the_former_name_of_an_option_works_and_names_the_new_one(former: str, name: str) -> None:
    line = f"{former} is now {name}; the former name works until version 0.3"
    assert with_new_names(["search", former, "x"]) == (["search", name, "x"], [line])
    assert with_new_names([f"{former}=x"]) == ([f"{name}=x"], [line])
    assert with_new_names(["--set", f"a={former}"]) == (["--set", f"a={former}"], [])


def test_the_command_line_says_that_an_option_has_another_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["plan", "--adopt", "--again", "--help"])
    assert "--adopt is now --apply" in capsys.readouterr().err
