"""Peaks predicted before a step is run, against peaks measured; activation checkpointing; the mark of a step."""

import copy
import gc
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from bigstep import predict_memory
from bigstep.config.model import ModelConfig
from bigstep.config.params import parse_params
from bigstep.config.train import TrainConfig
from bigstep.data.sources import open_source
from bigstep.data.store import Store
from bigstep.data.store_writer import prepare_store
from bigstep.errors import ConfigError
from bigstep.memory import inner_peak as inner
from bigstep.memory import prediction as memory
from bigstep.memory.measurement import held_bytes, peak_growth
from bigstep.memory.storage_tracker import ACTIVATIONS, DIRECT, PLAIN, OperationCall, StorageTracker
from bigstep.models.activation_checkpointing import checkpoint_blocks
from bigstep.models.small_cnn import SmallCNN
from bigstep.planning.training_memory import predict_training
from bigstep.runs import low_memory_marker as marks
from bigstep.runs.low_memory_marker import LowMemoryMarker, failed_micro_batch_size
from bigstep.step.precision import PRECISIONS
from bigstep.training.loop import take_step
from bigstep.training.optimization import build_optimizer
from bigstep.training.setup import build_training
from bigstep.training.training_batches import TrainingBatches
from dvc_dependencies import ROOT

aten = torch.ops.aten
# where gradient and input lie differently, torch is asked, and for these its fake tensors have other strides than the real ones
MISLAID = {aten.hardsigmoid_backward.default, aten.hardswish_backward.default}


def _build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "small_cnn":
        return SmallCNN(channels=3, size=32, num_classes=10, width=16, dropout=0.0).train()
    options = {"image_size": 32} if name.startswith("vit") else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    return model.train()


def _measured(name: str, micro: int, precision: str, optimizer: str) -> int:
    def run() -> None:
        model = _build(name).to(PRECISIONS[precision].parameter_dtype)
        checkpoints = {"sgd": lambda p: torch.optim.SGD(p, lr=1e-9, momentum=0.9), "adamw": torch.optim.AdamW}
        made = checkpoints[optimizer](model.parameters())
        images = torch.randn(micro, 3, 32, 32, dtype=PRECISIONS[precision].parameter_dtype)
        labels, autocast = torch.zeros(micro, dtype=torch.int64), PRECISIONS[precision].autocast
        for _ in range(2):
            made.zero_grad()
            for _ in range(2):
                with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                    loss = F.cross_entropy(model(images), labels, reduction="sum") / micro
                loss.backward()
                del loss
            made.step()

    return peak_growth(run)


@pytest.mark.parametrize(
    ("name", "micro", "precision", "optimizer"),
    [
        ("small_cnn", 16, "float32", "sgd"),
        ("small_cnn", 5, "float64", "adamw"),
        ("small_cnn", 16, "bfloat16", "adamw"),
        ("resnet18", 4, "float32", "sgd"),
        ("mobilenet_v3_small", 8, "float32", "adamw"),
        ("convnext_tiny", 2, "float32", "sgd"),
        ("vit_b_16", 2, "float32", "sgd"),
    ],
)
def test_the_prediction_is_within_a_percent_of_the_measured_peak(name: str, micro: int, precision: str, optimizer: str) -> None:
    predicted = predict_memory(_build(name), (3, 32, 32), micro, precision=precision, optimizer=optimizer)
    assert predicted.method == "fake"
    assert predicted.peak_bytes == pytest.approx(_measured(name, micro, precision, optimizer), rel=0.01)
    assert predicted.at(micro) == pytest.approx(predicted.peak_bytes, rel=1e-6)


@pytest.mark.parametrize(("size", "micro"), [(8, 4), (16, 16), (28, 16), (8, 64)])
def test_the_prediction_of_a_training_on_small_grey_images_is_within_a_percent_too(
    size: int, micro: int, tmp_path: Path
) -> None:
    """Their layout makes oneDNN reorder weights, which are most of what such a step holds."""
    content = {"data": {"source": "digits", "image_size": size}, "train": {"effective_batch_size": 64}}
    params = parse_params({**content, "hardware": {"micro_batch_size": micro, "threads": 1, "memory_budget": "none"}})
    for _ in prepare_store(open_source(params.data, tmp_path, num_workers=0), params.data, tmp_path):
        pass
    store = Store(tmp_path)
    state = build_training(store, params.batch, params, weights=None)
    images, labels = next(TrainingBatches(store, params.train, 64, 0).epoch(0))
    take_step(state, params.train, images, labels)
    take_step(state, params.train, images, labels, measure_memory=True)
    predicted = predict_training(state.classifier, params.train, (1, size, size), params.batch)
    assert predicted.peak_bytes == pytest.approx(state.peak_bytes, rel=0.01)


def test_prediction_leaves_model_and_random_state_alone() -> None:
    model = _build("resnet18")
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    predict_memory(model, (3, 32, 32), 2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_line_through_two_sizes_answers_any_budget() -> None:
    found = predict_memory(_build("small_cnn"), (3, 32, 32), 64)
    size = found.largest(found.at(200))
    assert size == 200
    assert found.largest(found.fixed_bytes // 2) == 0
    again = predict_memory(_build("small_cnn"), (3, 32, 32), 200)
    assert again.peak_bytes == pytest.approx(found.at(200), rel=0.02)


def test_an_average_and_a_held_batch_are_counted() -> None:
    model = _build("small_cnn")
    plain = predict_memory(model, (3, 32, 32), 8)
    average = predict_memory(model, (3, 32, 32), 8, average=True)
    held = predict_memory(model, (3, 32, 32), 8, effective_batch_size=1008)
    assert average.peak_bytes - plain.peak_bytes == held_bytes(_build("small_cnn"))
    assert held.peak_bytes - plain.peak_bytes == 1000 * 3 * 32 * 32 * 4


def _cases() -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    dense, part, other = torch.ones(4, 6, 5, 7), torch.ones(4, 12, 5, 7)[:, 3:9], torch.ones(4, 9, 5, 7)[:, 1:7]
    last, half = dense.to(memory_format=torch.channels_last), dense.to(torch.bfloat16)
    row, flat, square = torch.ones(6), torch.ones(4, 6), torch.ones(6, 6)
    running, kept = (torch.zeros(6), torch.ones(6)), (torch.zeros(6), torch.ones(6))
    found: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (aten._unsafe_view.default, (dense, [4, 210]), {}),
        (aten.addmm.default, (row, flat, square), {}),
        (aten.bmm.default, (torch.ones(2, 3, 4), torch.ones(2, 5, 4).transpose(1, 2)), {}),
        (aten.cat.default, ([last, part], 1), {}),
        (aten.cat.default, ([last, last], 1), {}),
        (aten.expand.default, (row, [4, 6]), {}),
        (aten.mm.default, (flat, square.t()), {}),
        (aten.mul.Tensor, (part, 2.0), {}),
        (aten.mul_.Tensor, (dense, 0.9), {}),
        (aten.permute.default, (part, [0, 2, 3, 1]), {}),
        (aten.relu_.default, (part,), {}),
        (aten.select.int, (part, 1, -2), {}),
        (aten.slice.Tensor, (part, 1, 1, 6, 2), {}),
        (aten.slice.Tensor, (part, 2, 1), {}),
        (aten.sum.dim_IntList, (part, [0, 2], True), {}),
        (aten.sum.dim_IntList, (half, [0, 2]), {"dtype": torch.float32}),
        (aten.t.default, (flat,), {}),
        (aten.transpose.int, (part, 1, -1), {}),
        (aten.view.default, (part, [4, 6, 35]), {}),
        (aten.add_.Tensor, (dense, part), {"alpha": -1}),
        (aten.native_batch_norm.default, (dense, None, None, None, None, True, 0.1, 1e-5), {}),
        (aten.native_batch_norm.default, (dense, row, row, *running, False, 0.1, 1e-5), {}),
    ]
    for kind in (dense, part, last, half):
        alike = (aten.clone.default, aten.detach.default, aten.empty_like.default, aten.zeros_like.default)
        found += [(operation, (kind,), {}) for operation in alike]
        for second in (dense, part, other, last, half):
            found += [(aten.add.Tensor, (kind, second), {}), (aten.mul.Tensor, (kind, second), {})]
        found += [(aten._to_copy.default, (kind,), {"dtype": dtype}) for dtype in (torch.float64, torch.bfloat16)]
        found.append((aten._to_copy.default, (kind,), {"dtype": torch.float64, "device": torch.device("cpu")}))
    for kind in (dense, last, half):
        arguments = (kind, kind, row, *running, *kept, True, 1e-5)
        found += [
            (aten.native_batch_norm.default, (kind, row, row, *running, True, 0.1, 1e-5), {}),
            (aten.native_batch_norm_backward.default, (*arguments, [True, True, True]), {}),
            (aten.native_batch_norm_backward.default, (*arguments, [True, False, False]), {}),
        ]
        grouped, groups = (kind, row.to(kind.dtype), row.to(kind.dtype), 4, 6, 35, 3, 1e-5), torch.ones(4, 3, dtype=kind.dtype)
        found += [
            (aten.native_group_norm.default, grouped, {}),
            (aten.native_group_norm.default, (kind, None, None, 4, 6, 35, 3, 1e-5), {}),
        ]
        found += [
            (aten.native_group_norm_backward.default, (kind, kind, groups, groups, grouped[1], 4, 6, 35, 3, mask), {})
            for mask in ([True, True, True], [True, False, False])
        ]
        for operation in ACTIVATIONS:
            rest = (0,) if operation is aten.threshold_backward.default else ()
            found.append((operation, (kind, kind, *rest), {}))
            if operation not in MISLAID:
                found.append((operation, (dense.to(kind.dtype), kind, *rest), {}))
    return found


def _layouts(value: Any) -> list[Any]:
    return [
        (item.shape, item.stride(), item.dtype, item.device, item.storage_offset(), item.untyped_storage().nbytes())
        for item in tree_leaves(value)
        if isinstance(item, Tensor)
    ]


def test_what_is_said_at_once_is_what_the_operation_leaves() -> None:
    cases = _cases()
    assert {operation for operation, _, _ in cases} == PLAIN | set(DIRECT)
    for operation, arguments, named in cases:
        fake = FakeTensorMode()
        within = tree_map(lambda item, fake=fake: fake.from_tensor(item) if isinstance(item, Tensor) else item, arguments)
        with fake, StorageTracker() as tracker:
            tracker.track(within)
            held = tracker.current_bytes
            found = operation(*within, **named)
            left = tracker.current_bytes - held
        wanted = operation(*arguments, **named)
        assert _layouts(found) == _layouts(wanted), (operation, _layouts(arguments), named)
        assert left == held_bytes(arguments, wanted) - held_bytes(arguments), operation


def test_the_smaller_sizes_probes_spare_the_larger_ones_and_the_peak_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, inner_peak = inner._probe, memory.inner_peak
    probed: list[OperationCall] = []
    compared: list[tuple[int, int, int, int]] = []

    def counting(call: OperationCall) -> int:
        probed.append(call)
        return probe(call)

    def comparing(calls: list[OperationCall], peak: int, known: list[int | None]) -> Any:
        before, found = len(probed), inner_peak(calls, peak, known)
        if known:
            spared = len(probed) - before
            compared.append((found[0], inner_peak(calls, peak, [])[0], spared, len(probed) - before - spared))
        return found

    monkeypatch.setattr(inner, "PROBE_SECONDS", 60.0)
    monkeypatch.setattr(inner, "_probe", counting)
    monkeypatch.setattr(memory, "inner_peak", comparing)
    assert predict_memory(_build("resnet18"), (3, 32, 32), 8).method == "fake"
    ((found, wanted, few, all_of_them),) = compared
    assert found == wanted
    assert 4 * few < all_of_them


class _Branching(nn.Module):
    """What it computes depends on values, which fake tensors do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(inputs) if float(inputs.sum()) > 0 else -self.linear(inputs)
        return result


def test_a_model_that_looks_at_values_is_measured_and_says_so() -> None:
    found = predict_memory(_Branching(), (8,), 1000)
    assert found.method == "measured"
    assert found.peak_bytes > 1000 * (8 + 10) * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batch_size": 0}, "micro_batch_size: expected an integer >= 1, got 0"),
        ({"precision": "fp8"}, "precision: expected one of"),
        ({"optimizer": "lamb"}, "optimizer: expected one of"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict_memory(nn.Linear(2, 2), (2,), **{"micro_batch_size": 2, **options})


def test_the_trainings_own_optimizer_is_predicted_too() -> None:
    train = TrainConfig()
    found = predict_memory(_build("small_cnn"), (3, 32, 32), 8, optimizer=lambda p: build_optimizer(train, p))
    plain = predict_memory(_build("small_cnn"), (3, 32, 32), 8, optimizer="adamw")
    assert found.peak_bytes == pytest.approx(plain.peak_bytes, rel=0.01)


def _gradients(model: nn.Module, images: Tensor) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    model(images).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vit_b_16"])
def test_checkpointing_gives_the_same_gradients_with_less_memory_and_predicts_it(name: str) -> None:
    model = _build(name).eval().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = torch.randn(4, 3, 32, 32)
    names, expected = list(model.state_dict()), _gradients(model, images)
    plain = predict_memory(model, (3, 32, 32), 16)
    assert checkpoint_blocks(model, ModelConfig(name=name)) >= 4
    assert list(model.state_dict()) == names
    for found, wanted in zip(_gradients(model, images), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert type(copy.deepcopy(model)) is type(model)
    saved = predict_memory(model, (3, 32, 32), 16)
    assert saved.method == "fake"
    assert saved.bytes_per_sample < 0.8 * plain.bytes_per_sample


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "small_cnn"}, "which has no blocks"),
        (
            {"name": "resnet18", "norm": "batch", "ghost_batch_size": 4, "batch_norm_statistics": "plain"},
            "batch_norm_statistics: expected corrected",
        ),
    ],
)
def test_what_cannot_be_checkpointed_is_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checkpoint_blocks(_build(model["name"]), ModelConfig.model_validate(model))


class _Two:
    def epoch(self, epoch: int, start: int = 0) -> Any:
        return iter([(torch.zeros(epoch + 1), torch.zeros(1))] * (2 - start))


def test_a_mark_is_set_only_while_memory_is_scarce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = {"bytes": 100}
    monkeypatch.setattr(marks, "headroom_bytes", lambda: left["bytes"])
    path = tmp_path / "mark.json"
    source = LowMemoryMarker(_Two(), path, 10, lambda: 32)
    batches = source.epoch(0)
    next(batches)
    assert failed_micro_batch_size(path) == 32
    left["bytes"] = 2**40
    next(batches)
    assert failed_micro_batch_size(path) is None
    left["bytes"] = marks.LEAST_BYTES - 5
    monkeypatch.setattr(marks, "free_heap_bytes", lambda: 2**40)  # of which a step takes ten
    next(source.epoch(0))
    assert failed_micro_batch_size(path) is None
    left["bytes"] = marks.LEAST_BYTES - 11
    next(source.epoch(1))
    source.clear()
    assert failed_micro_batch_size(path) is None
    path.write_text("{", encoding="utf-8")
    assert failed_micro_batch_size(path) is None


class _Transformer(nn.Module):
    """Token ids and an attention mask in, logits out; with ``extra``, features of each sample are added."""

    def __init__(self, *, extra: bool = False) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(500, 64), nn.Embedding(32, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.extra = nn.Linear(5, 64) if extra else None
        self.head = nn.Linear(64, 10)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, extra: Any = None) -> Tensor:
        hidden = self.tokens(input_ids) + self.places(torch.arange(input_ids.shape[1], device=input_ids.device))
        if self.extra is not None:
            hidden = hidden + self.extra(extra[0]["features"])[:, None]
        hidden = self.encoder(hidden, src_key_padding_mask=attention_mask == 0)
        result: Tensor = self.head(hidden[:, 0])
        return result


IDS = {"input_ids": (32,), "attention_mask": (32,)}
TOKENS: list[tuple[Any, Any, bool]] = [
    (IDS, torch.int64, False),
    (((32,), (32,)), (torch.int64, torch.int32), False),
    (
        {**IDS, "extra": ({"features": (5,)},)},
        {"input_ids": torch.int64, "attention_mask": torch.bool, "extra": ({"features": None},)},
        True,
    ),
]


def _of_tokens(shape: Any, dtype: Any, count: int) -> Any:
    if isinstance(shape, dict):
        return {
            key: _of_tokens(item, dtype if isinstance(dtype, torch.dtype) else dtype[key], count) for key, item in shape.items()
        }
    if isinstance(shape[0], int):
        return torch.ones(count, *shape, dtype=dtype or torch.float32)
    return tuple(_of_tokens(item, kind, count) for item, kind in zip(shape, dtype, strict=True))


def _measured_on_tokens(shape: Any, dtype: Any, micro: int, optimizer: str, *, extra: bool) -> int:
    def run() -> None:
        model = _Transformer(extra=extra).train()
        kinds = {"sgd": lambda p: torch.optim.SGD(p, lr=1e-9, momentum=0.9), "adamw": torch.optim.AdamW}
        made = kinds[optimizer](model.parameters())
        inputs, labels = _of_tokens(shape, dtype, micro), torch.zeros(micro, dtype=torch.int64)
        for _ in range(2):
            made.zero_grad()
            for _ in range(2):
                outputs = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
                loss = F.cross_entropy(outputs, labels, reduction="sum") / micro
                del outputs
                loss.backward()
                del loss
            made.step()

    return peak_growth(run)


@pytest.mark.parametrize(("micro", "optimizer"), [(16, "sgd"), (5, "adamw")])
@pytest.mark.parametrize(("shape", "dtype", "extra"), TOKENS, ids=["dictionary", "tuple", "nested"])
def test_token_ids_and_masks_are_predicted_within_a_percent(
    shape: Any, dtype: Any, micro: int, optimizer: str, *, extra: bool
) -> None:
    model = _Transformer(extra=extra).train()
    predicted = predict_memory(model, shape, micro, input_dtype=dtype, optimizer=optimizer)
    assert predicted.method == "fake"
    measured = _measured_on_tokens(shape, dtype, micro, optimizer, extra=extra)
    assert predicted.peak_bytes == pytest.approx(measured, rel=0.01)


def test_a_held_batch_of_tokens_is_counted() -> None:
    model = _Transformer().train()
    plain = predict_memory(model, IDS, 8, input_dtype=torch.int64)
    held = predict_memory(model, IDS, 8, input_dtype=torch.int64, effective_batch_size=1008)
    assert held.peak_bytes - plain.peak_bytes == 1000 * 2 * 32 * 8


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ({"input_ids": ("L",)}, torch.int64, r"sample_shape\['input_ids'\]\[0\]: expected a shape such as"),
        ((-3, 4), None, r"sample_shape\[0\]: expected a shape such as .*got -3"),
        ({}, None, "sample_shape: expected a shape such as .*, or a dictionary or tuple of shapes, got {}"),
        (IDS, {"input_ids": torch.int64}, r"input_dtype: expected one torch.dtype or the structure of sample_shape"),
        (IDS, (torch.int64, torch.int64), "input_dtype: expected one torch.dtype or the structure"),
        (IDS, {"input_ids": "int64", "attention_mask": None}, r"input_dtype\['input_ids'\]: expected a torch.dtype or None"),
        ((3, 4), {"x": torch.int64}, "input_dtype: expected a torch.dtype or None"),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_refused(shape: Any, dtype: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict_memory(nn.Linear(2, 2), shape, 2, input_dtype=dtype)


def test_the_documented_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "memory.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # the page is the project's own
    peak, largest = map(int, capsys.readouterr().out.split())
    assert names["prediction"].method == "fake"
    assert peak > 2**20
    assert largest > 16


def test_garbage_of_before_is_not_collected_while_a_peak_is_measured() -> None:
    class Holder:
        pass

    def hold_in_a_circle() -> None:
        holder = Holder()
        holder.itself, holder.tensor = holder, torch.zeros(1000)

    gc.collect()
    hold_in_a_circle()

    def allocate() -> torch.Tensor:
        found = [[] for _ in range(100_000)]  # enough new objects for the collector to run
        return torch.zeros(len(found) // 1000)

    assert peak_growth(allocate) == 400
    assert gc.isenabled()
