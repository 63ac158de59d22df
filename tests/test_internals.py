"""The private names of other libraries that bigstep uses: each is there, and does what it is used for."""

import ast
import importlib
import shutil
import subprocess
import sys
import threading
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import optuna
import pytest
import torch
from alembic.script import ScriptDirectory
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna_dashboard import save_note
from packaging.requirements import Requirement
from ruamel.yaml import YAML
from sklearn.datasets import load_digits
from torch.nn.attention.flex_attention import flex_attention

import bigstep
from bigstep.data.sklearn_internals import digits_file, read_digits
from bigstep.diagnostics.dvc_internals import matches_lock_schema
from bigstep.errors import ProjectError
from bigstep.memory import torch_internals as memory_internals
from bigstep.models.torch_internals import assert_flag
from bigstep.optuna_mlflow.callback import MLflowCallback
from bigstep.optuna_mlflow.optuna_internals import StoragePlace, id_of, storage_of, storage_place, trial_id_of
from bigstep.optuna_mlflow.study_identity import storage_identity
from bigstep.optuna_mlflow.study_lock import study_lock
from bigstep.randomness import torch_internals as random_internals
from bigstep.randomness.kernels import IGNORED, KEYED, REFUSED, drawing_from
from bigstep.search.dashboard_internals import note_of, open_ended
from bigstep.step import torch_internals as step_internals
from bigstep.tracking.database import open_client
from bigstep.tracking.mlflow_internals import PACKAGES, forget_engine, known_packages, migrations_folder
from bigstep.tracking.model_export import save_model
from bigstep.training import torch_internals as training_internals
from dvc_dependencies import ROOT

SOURCE = ROOT / "src" / "bigstep"
HOMES = sorted(path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".") for path in SOURCE.rglob("*_internals.py"))
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


class OtherBackend(BaseJournalBackend):
    """A backend that keeps its operations where nobody else looks."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Any:
        return iter(self.logs[log_number_from:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += logs


@pytest.mark.parametrize("name", HOMES)
def test_every_private_name_is_there(name: str) -> None:
    """Importing a home imports each of its names; an update that drops one fails here first."""
    home = importlib.import_module(f"bigstep.{name}")
    assert home.__all__
    assert [item for item in home.__all__ if not hasattr(home, item)] == []


def test_each_library_has_its_home() -> None:
    """Torch has five, as `step` imports nothing of the others."""
    found = {name.rpartition(".")[2].removesuffix("_internals") for name in HOMES}
    assert found == {"torch", "optuna", "dashboard", "mlflow", "dvc", "sklearn", "python"}
    assert len(HOMES) == 11


def test_private_names_are_used_in_their_homes_only() -> None:
    others = [path for path in SOURCE.rglob("*.py") if not path.stem.endswith("_internals")]
    assert len(others) > 150
    for path in others:
        text = path.read_text(encoding="utf-8")
        assert "SLF001" not in text, path.name
        tree = ast.parse(text)
        assert [name for name in _imports(tree) if "._" in name] == [], path.name
        assert [name for name in _foreign_attributes(tree) if name.startswith("_")] == [], path.name
        assert not [node for node in ast.walk(tree) if _asks_for_private(node)], path.name
        assert "dvc" not in {name.partition(".")[0] for name in _imports(tree)}, "its modules are not public"


def _imports(tree: ast.Module) -> list[str]:
    """Return modules, and modules with the names that are imported from them."""
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module}.{alias.name}" for node in froms for alias in node.names if not alias.name.startswith("__")]
    return names + [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]


def _foreign_attributes(tree: ast.Module) -> list[str]:
    """Return the attributes of what is not the object itself; those with two underscores are public, as is `os._exit`."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and not node.attr.startswith("__")]
    return [node.attr for node in nodes if ast.unparse(node.value) != "self" and ast.unparse(node) != "os._exit"]


def _asks_for_private(node: ast.AST) -> bool:
    """Return whether a node is ``getattr(library, "_name")``, which no linter sees; ``_fields`` of named tuples is public."""
    is_call = isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr")
    return (
        is_call
        and len(node.args) > 1
        and isinstance(node.args[1], ast.Constant)
        and str(node.args[1].value).startswith("_")
        and not str(node.args[1].value).startswith(("__", "_fields"))
    )


def test_torchs_private_names_do_what_they_are_used_for() -> None:
    events = [event for thread in memory_internals.allocation_events(lambda: torch.ones(1000)) for event in thread]
    assert 4000 in [event.cpu_memory_usage() for event in events if event.kind() == "memory_alloc"]
    tensor = torch.arange(6.0)
    assert memory_internals.storage_key(tensor.untyped_storage()) == memory_internals.storage_key(tensor[2:].untyped_storage())
    assert memory_internals.storage_key(tensor.untyped_storage()) != memory_internals.storage_key(
        tensor.clone().untyped_storage()
    )
    with memory_internals.FakeTensorMode():
        assert isinstance(torch.ones(2), memory_internals.FakeTensor)
        with memory_internals.without_modes():
            assert torch.ones(2).tolist() == [1.0, 1.0]
    names = [argument.name for argument in random_internals.operation_arguments(torch.ops.aten.native_dropout.default)]
    assert names == ["input", "p", "train"]
    step_internals.scale_all([tensor], 2.0)
    assert tensor.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert [float(norm) for norm in step_internals.vector_norms([torch.tensor([3.0, 4.0])])] == [5.0]


def test_torchs_kernels_are_replaced_on_the_thread_that_asks_only() -> None:
    class Sevens:
        def draw(self, operation: str, shape: torch.Size, values: Any) -> torch.Tensor:
            del operation, values
            return torch.full(shape, 7.0)

    others: list[torch.Tensor] = []
    with drawing_from(Sevens()):
        assert torch.empty(2).normal_().tolist() == torch.rand(2).tolist() == [7.0, 7.0]
        thread = threading.Thread(target=lambda: others.append(torch.rand(2)))
        thread.start()
        thread.join()
    assert others[0].max() < 1
    assert torch.empty(2).normal_().tolist() != [7.0, 7.0]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_operators_that_take_functions_pass_through_the_mode() -> None:
    """Flex attention is one; compilers insert others."""
    query = torch.rand(2, 1, 5, 8)
    expected = flex_attention(query, query, query)

    class Nothing:
        def draw(self, operation: str, _shape: torch.Size, _values: Any) -> torch.Tensor:
            raise AssertionError(operation)

    with drawing_from(Nothing()):
        assert not random_internals.is_compiling()
        assert torch.equal(flex_attention(query, query, query), expected)


def test_every_operation_that_torch_marks_as_drawing_is_keyed_refused_or_built_of_others() -> None:
    """An operation that torch adds is named here, to be sorted."""
    unsorted = set()
    for name in torch._C._dispatch_get_all_op_names():
        base, _, overload = name.removeprefix("aten::").partition(".")
        operation = getattr(getattr(torch.ops.aten, base, None), overload or "default", None)
        if not name.startswith("aten::") or operation is None or torch.Tag.nondeterministic_seeded not in operation.tags:
            continue
        composite = any(
            torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
            for key in ("CompositeImplicitAutograd", "CompositeExplicitAutograd")
        )
        if not composite and not overload.endswith("out"):
            unsorted.add(base + (f".{overload}" if overload else ""))
    assert unsorted - set(KEYED) - set(REFUSED) - set(IGNORED) == set(MADE_OF_OTHERS)


MADE_OF_OTHERS = ("bernoulli.p",)


def test_a_storage_says_where_it_is(tmp_path: Path) -> None:
    journal, database = tmp_path / "s.journal", f"sqlite:///{tmp_path / 's.db'}"
    assert storage_place(InMemoryStorage()) == StoragePlace()
    assert storage_place(JournalStorage(JournalFileBackend(str(journal)))) == StoragePlace(file=journal)
    assert storage_place(RDBStorage(database)) == storage_place(get_storage(database)) == StoragePlace(address=database)


def test_a_study_and_a_trial_have_a_number_in_the_storage() -> None:
    study = optuna.create_study()
    trial = study.ask()
    storage = storage_of(study)
    assert storage.get_study_name_from_id(id_of(study)) == study.study_name
    assert storage.get_trial(trial_id_of(trial)).number == trial.number == 0
    assert trial_id_of(study.get_trials()[0]) == trial_id_of(trial)


def test_a_storage_of_an_unknown_kind_is_refused_and_not_left_without_a_lock(tmp_path: Path) -> None:
    storage = JournalStorage(OtherBackend())
    study = optuna.create_study(storage=storage)
    callback = MLflowCallback(f"sqlite:///{tmp_path / 'mlflow.db'}")
    trial = study.ask()
    study.tell(trial, 1.0)
    for use in (
        lambda: study_lock(storage).__enter__(),
        lambda: storage_identity(storage),
        lambda: callback(study, study.trials[0]),
        lambda: callback.catch_up(study),
    ):
        with pytest.raises(ProjectError, match="got OtherBackend, which cannot be locked; use JournalFileBackend"):
            use()
    assert not list(tmp_path.iterdir())


def test_a_notes_text_is_read_back() -> None:
    study = optuna.create_study()
    study.tell(study.ask(), 1.0)
    subject = open_ended(study, study.trials[0])
    assert note_of(subject) == ""
    save_note(subject, "a *note*")
    assert note_of(subject) == "a *note*"


def test_an_engine_that_mlflow_keeps_is_closed(tmp_path: Path, empty_database: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path = tmp_path / "mlflow.db"
    shutil.copyfile(empty_database, path)
    uri = f"sqlite:///{path}"
    forget_engine(uri)  # there is none yet
    open_client(uri).search_experiments()
    assert uri in SqlAlchemyStore._engine_map
    forget_engine(uri)
    assert uri not in SqlAlchemyStore._engine_map


def test_the_digits_read_from_their_file_are_those_that_scikit_learn_loads() -> None:
    bunch = load_digits()
    images, labels = read_digits(digits_file())
    assert (images.dtype, labels.dtype) == (bunch.images.dtype, bunch.target.dtype)
    assert np.array_equal(images, bunch.images)
    assert np.array_equal(labels, bunch.target)
    assert bunch.target_names.tolist() == sorted(set(labels.tolist()))


OPTIMIZERS = """
import sys, torch
from torch.optim import SGD, Adam, AdamW
from bigstep.training.torch_internals import COMPILER, without_compiler

def train(kind, options):
    weights = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    optimizer = kind([{"params": [weights], "weight_decay": 0.1}], lr=0.1, fused=True, **options)
    for _ in range(3):
        (weights**3).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    (weights**2).sum().backward()
    optimizer.step(lambda: torch.zeros(()))
    states = [value for item in optimizer.state.values() for value in item.values() if isinstance(value, torch.Tensor)]
    return [weights.detach(), weights.grad, *states]

CASES = [(SGD, {"momentum": 0.9, "nesterov": True}), (Adam, {}), (AdamW, {})]
without = [train(without_compiler(kind), options) for kind, options in CASES]
assert COMPILER not in sys.modules, "torch's wrappers have other names: see training/torch_internals.py"
usual = [train(kind, options) for kind, options in CASES]
assert COMPILER in sys.modules, "torch does not import it any more: training/torch_internals.py is not needed"
later = [train(without_compiler(kind), options) for kind, options in CASES]
for found in (without, later):
    for mine, theirs in zip(found, usual, strict=True):
        assert len(mine) == len(theirs) > 2 and all(map(torch.equal, mine, theirs))
"""


def test_an_optimizer_without_the_compiler_does_the_same_and_does_not_import_it() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", OPTIMIZERS], check=True)


TORCHVISION = """
import sys, torch
from bigstep.models.torch_internals import COMPILER, import_torchvision

torchvision = import_torchvision()
assert COMPILER not in sys.modules, "torchvision asks for more: see models/torch_internals.py"
roi_align = sys.modules["torchvision.ops.roi_align"]
for given in FIRST:
    compiler = roi_align.is_compile_supported(given)
    assert compiler is sys.modules[COMPILER].is_compile_supported(given)
assert import_torchvision() is torchvision
corners = torchvision.ops.roi_align(torch.arange(16.0).reshape(1, 1, 4, 4), [torch.tensor([[0.0, 0, 2, 2]])], 1)
assert corners.shape == (1, 1, 1, 1)
import torch._dynamo
assert torch.compile(lambda rows: rows * 2, backend="eager")(torch.ones(2)).tolist() == [2, 2]
"""


@pytest.mark.parametrize("first", ['("cpu", "cuda")', "()"], ids=["asked", "unasked"])
def test_torchvision_without_the_compiler_is_the_same_and_does_not_import_it(first: str) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", TORCHVISION.replace("FIRST", first)], check=True)


def test_torchvision_still_imports_the_compiler() -> None:
    """Otherwise ``import_torchvision`` is not needed any more; and what else it may ask of the substitute is the compiler's."""
    code = "import torchvision, sys; assert 'torch._dynamo.utils' in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    code = (
        "import sys, types; from bigstep.models import torch_internals as ours; substitute = types.ModuleType(ours.COMPILER)\n"
        "substitute.is_compile_supported, substitute.__getattr__ = ours._is_compile_supported, ours._of_compiler\n"
        "sys.modules[ours.COMPILER] = substitute\n"
        "from torch._dynamo.utils import counters\n"
        "assert sys.modules[ours.COMPILER] is not substitute and counters is sys.modules[ours.COMPILER].counters\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_the_compiler_knows_the_options_writes_one_code_for_all_sizes_and_has_errors_of_its_own() -> None:
    assert training_internals.inductor_options() == training_internals.OPTIONS
    compilations: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compilations.append(len(inputs))
        return graph

    torch.compiler.reset()
    compiled = torch.compile(lambda rows: rows * 2, backend=backend)
    for count in (3, 5, 7):
        rows = torch.ones(count, 2)
        training_internals.mark_batch(rows)
        assert compiled(rows).shape == (count, 2)
    assert len(compilations) == 1
    with pytest.raises(Exception, match="no-such-backend") as caught:
        torch.compile(lambda rows: rows + 1, backend="no-such-backend")(torch.ones(2))
    assert "no-such-backend" in (training_internals.compiler_problem(caught.value) or "")
    assert training_internals.compiler_problem(ValueError("no-such-backend")) is None
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's own
def test_a_models_files_are_those_of_mlflows_own_flavor(tmp_path: Path) -> None:
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    module, example = torch.nn.Linear(3, 2).eval(), np.ones((2, 3), np.float32)
    signature = ModelSignature(inputs=Schema([TensorSpec(example.dtype, (-1, 3))]))
    pins = [f"{name}=={version(name).partition('+')[0]}" for name in ("mlflow", "numpy", "torch")]
    mlflow.pytorch.save_model(
        module,
        tmp_path / "theirs",
        signature=signature,
        input_example=example,
        serialization_format="pt2",
        pip_requirements=pins,
    )
    model = Model()
    save_model(
        str(tmp_path / "ours"),
        model,
        program=tmp_path / "theirs" / "data" / "model.pt2",
        torch_version=str(torch.__version__),
        signature=signature,
        names=["x", "y"],
        input_example=example,
        requirements=pins,
        validate_serving_input=False,
    )
    ours, theirs = (
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "ours", tmp_path / "theirs")
    )
    assert ours.keys() - theirs.keys() == {"names.json", "named_answers.py", "__pycache__"}
    assert theirs.keys() <= ours.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == ["MLmodel"]
    same = Model.load(tmp_path / "theirs")
    assert model.flavors["pytorch"] == same.flavors["pytorch"]
    assert model.flavors["python_function"]["env"] == same.flavors["python_function"]["env"]
    assert model.saved_input_example_info == same.saved_input_example_info
    assert model.signature == same.signature


def test_the_versions_of_known_packages_are_compared_without_listing_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.utils import requirements_utils

    monkeypatch.setattr(requirements_utils, PACKAGES, None)  # a test before may have read them
    lines, installed = [], version("numpy")
    monkeypatch.setattr(requirements_utils._logger, "warning", lambda text, *_: lines.append(text))
    with known_packages(["mlflow", "numpy"]):
        requirements_utils.warn_dependency_requirement_mismatches([f"numpy=={installed}", f"mlflow=={version('mlflow')}"])
        assert set(getattr(requirements_utils, PACKAGES)) >= {"mlflow", "numpy"}
        assert len(getattr(requirements_utils, PACKAGES)) == 2
        assert lines == []
        requirements_utils.warn_dependency_requirement_mismatches(["numpy==0.1"])
    assert len(lines) == 1
    assert f"numpy (current: {installed}, required: numpy==0.1)" in lines[0]
    assert getattr(requirements_utils, PACKAGES) is None


def test_mlflows_schema_has_one_newest_version() -> None:
    scripts = ScriptDirectory(str(migrations_folder()))
    (newest,) = scripts.get_heads()
    assert len(list(scripts.walk_revisions())) > 30
    assert scripts.get_revision(newest).down_revision


def test_a_lock_of_dvc_is_told_from_other_yaml() -> None:
    own = YAML(typ="safe").load((ROOT / "dvc.lock").read_text(encoding="utf-8"))
    assert matches_lock_schema(own)
    assert not matches_lock_schema({**own, "stages": ["prepare"]})
    assert not matches_lock_schema("schema")


def test_what_an_export_imports_can_be_imported_before() -> None:
    code = """
import sys, torch
from bigstep.models.torch_internals import preload_export
preload_export()
before = {name for name in sys.modules if name.startswith(("torch._dynamo", "torch._export", "torch._inductor"))}
torch.export.export(torch.nn.Linear(2, 3), (torch.ones(4, 2),))
after = {name for name in sys.modules if name.startswith(("torch._dynamo", "torch._export", "torch._inductor"))}
print(len(before), len(after - before))
"""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    before, more = int(found[-2]), int(found[-1])
    assert before > 50
    assert more < 20


def test_a_flag_that_is_not_set_is_an_error_in_an_exported_model_too() -> None:
    class Checked(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert_flag((x > 0).all().float().item(), "not all positive")
            return x + 1

    exported = torch.export.export(Checked(), (torch.ones(2),)).module()
    for model in (Checked(), exported):
        assert model(torch.ones(2)).tolist() == [2.0, 2.0]
        with pytest.raises(RuntimeError, match="not all positive"):
            model(torch.zeros(2))


def test_a_private_name_that_optuna_renamed_is_an_error(tmp_path: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "s.journal")))
    vars(storage._backend)["_path_of_file"] = vars(storage._backend).pop("_file_path")
    with pytest.raises(AttributeError, match="_file_path"), study_lock(storage):
        pytest.fail("the block ran without a lock")


@pytest.mark.parametrize("name", ["torch", "optuna", "optuna-dashboard"])
def test_the_installed_version_is_within_bounds_that_end_above(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["pipeline"]]
    (wanted,) = [item for item in map(Requirement, texts) if item.name == name]
    assert "<" in {item.operator for item in wanted.specifier}
    assert wanted.specifier.contains(version(name).partition("+")[0])
    (locked,) = [
        line for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}==")
    ]
    assert wanted.specifier.contains(locked.partition("==")[2].split()[0])


def test_the_version_is_written_once() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "bigstep.__version__"}
    assert version("bigstep") == bigstep.__version__
    assert f'"{bigstep.__version__}"' not in text
