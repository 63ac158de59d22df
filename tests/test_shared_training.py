"""A training that several processes share learns what one process learns, with everything on; and what must not be left out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.params import Params, parse_params
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.errors import ConfigError, OtherProcessError, OutOfMemoryError
from bigstep.step.process_group import Processes
from bigstep.step.slicing import balanced_sizes, share_sizes
from bigstep.training import loop, setup
from bigstep.training.loop import train_epochs
from bigstep.training.records import EpochRecord, StepRecord
from bigstep.training.setup import build_training
from bigstep.training.shares import BatchShare, batch_share
from bigstep.training.state import TrainingState
from bigstep.training.training_batches import TrainingBatches
from bigstep.training.validation import recalibrate_best

COUNTS = (2, 3, 4)
EVERYTHING: dict[str, Any] = {
    "model": {"width": 4, "dropout": 0.3},
    "train": {
        "epochs": 6,
        "effective_batch_size": 100,
        "precision": "float64",
        "learning_rate": 0.05,
        "warmup_fraction": 0.1,
        "augmentation": [{"RandomHorizontalFlip": {"p": 0.5}}, {"RandomErasing": {"p": 0.5}}],
        "mixup_alpha": 0.4,
        "cutmix_alpha": 1.0,
        "class_weights": [1.0, 2.0, 0.5, 1.0, 1.0, 3.0, 1.0, 0.7, 1.0, 1.2],
        "ema_decay": 0.9,
        "clip_norm": 0.5,
        "early_stopping_patience": 1,
        "monitor": "val_accuracy",
    },
    "tracking": {"noise_scale": "first"},
}
NORMED = {"norm": "batch", "ghost_batch_size": 16, "dropout": 0.0, "width": 4}
SHORT = {"epochs": 1, "mixup_alpha": None, "cutmix_alpha": None, "augmentation": "shift-flip", "ema_decay": None}


def params_of(model: dict[str, Any] | None = None, micro: int | None = None, **train: Any) -> Params:
    content = {**EVERYTHING, "train": {**EVERYTHING["train"], **train}, "model": {**EVERYTHING["model"], **(model or {})}}
    return parse_params({**content, "hardware": {"micro_batch_size": micro or "auto", "num_workers": 0}})


CASES: dict[str, tuple[Params, int | None]] = {  # and the steps after which it ends
    "everything": (params_of(), None),
    "three samples": (params_of(effective_batch_size=3), 25),
    "shift, unmixed, plateau": (params_of(**{**SHORT, "schedule": "plateau", "warmup_fraction": 0.0}), None),
    "corrected": (params_of({**NORMED, "batch_norm_statistics": "corrected"}, 16, **SHORT), None),
    "recalibrated": (params_of({**NORMED, "batch_norm_statistics": "recalibrated"}, 16, **SHORT), None),
}
KINDS: dict[str, dict[str, Any]] = {  # each kind of weight, and BatchNorm whose statistics are pooled
    "class weights": SHORT,
    "mixed": {},
    "a callable": {**SHORT, "class_weights": None, "loss": {"MultiMarginLoss": {}}},
    "pooled": {"model": NORMED, "micro": 16, **SHORT},
}
Result = dict[str, Any]


def batches_of(state: TrainingState, params: Params, store: Store, share: BatchShare | None = None) -> TrainingBatches:
    share = share or batch_share(state.processes, params.train, params.model.ghost_batch_size)
    return TrainingBatches(store, params.train, params.batch.effective_batch_size, 0, share=share)


def begun(params: Params, store: Store, micro: int, group: Any) -> TrainingState:
    size = micro if params.model.ghost_batch_size is None else params.batch.micro_batch_size
    whole = params.batch.effective_batch_size
    return build_training(store, BatchSizes(whole, size, -(-whole // size)), params, weights=None, group=group)


def trained(state: TrainingState, params: Params, store: Store, steps: int | None, share: BatchShare | None = None) -> Result:
    rows, losses, done = [], [], 0
    for record in train_epochs(state, params.train, store, batches_of(state, params, store, share)):
        if isinstance(record, StepRecord):
            done += 1
            losses.append([float(record.loss), record.gradient_norm, record.learning_rate, float(record.num_samples)])
            if done == steps:
                break
        else:
            rows.append(_row(record))
    if params.model.batch_norm_statistics == "recalibrated" and params.model.norm == "batch":
        recalibrated = recalibrate_best(state, store)
        rows.append([recalibrated.loss, recalibrated.score])
    best = state.best
    return {
        "weights": _flat(state.classifier),
        "average": _flat(state.evaluated_model),
        "best": torch.zeros(1) if best is None else torch.cat([value.double().flatten() for value in best.weights.values()]),
        "steps": torch.tensor(losses, dtype=torch.float64),
        "rows": torch.tensor([value for row in rows for value in row], dtype=torch.float64),
        "best epoch": -1 if best is None else best.epoch,
        "epochs": state.epoch,
    }


def _row(record: EpochRecord) -> list[float]:
    found = record.validation
    return [record.num_updates, record.num_dropped, record.train_loss, found.loss, found.score, record.is_best]


def _flat(model: torch.nn.Module) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()])


def _distance(found: Result, expected: Result) -> float:
    """The largest difference of all numbers; infinite where another epoch is the best, or the last."""
    if any(found[name] != expected[name] for name in ("best epoch", "epochs")):
        return float("inf")
    tensors = [name for name, value in expected.items() if isinstance(value, Tensor)]
    return max([float((found[name] - expected[name]).abs().max()) for name in tensors if expected[name].numel()])


def _controls(store: Store, group: Any, alone: dict[str, Result]) -> dict[str, float]:
    """What differs with a mean of means, positions of the share, dropout without keys, and mixup in each process."""
    changes: dict[str, tuple[str, Callable[[TrainingState], None]]] = {
        "mean of means": ("shift, unmixed, plateau", _average_means),
        "positions forgotten": ("everything", _forget_positions),
        "unkeyed": ("everything", lambda state: setattr(state.accumulator._runner, "_randomness", None)),
        "mixup per process": ("everything", lambda _: None),
    }
    found, mix = {}, loop.mix_batch
    for name, (case, change) in changes.items():
        params, _ = CASES[case]
        state = begun(params, store, 16, group)
        change(state)
        if name == "mixup per process":
            loop.mix_batch = lambda *given, seed, **named: mix(*given, seed=seed + dist.get_rank(group), **named)
        result = trained(state, params, store, 4)
        loop.mix_batch = mix
        found[name] = _distance(result, alone[case])
    return found


def _forget_positions(state: TrainingState) -> None:
    backward = state.accumulator.backward

    def call(inputs: Any, targets: Any, *, step: int, **known: Any) -> Any:
        return backward(inputs, targets, step=step, positions=torch.arange(len(targets)), **known)

    state.accumulator.backward = call  # type: ignore[method-assign]


def _average_means(state: TrainingState) -> None:
    """Divide by the weight of the own share, and average over the processes, as DistributedDataParallel does."""
    backward, loss = state.accumulator.backward, state.loss
    total, processes = loss.sum, state.processes
    assert processes is not None

    def call(inputs: Any, targets: Any, *, step: int, **known: Any) -> Any:
        own = loss.weight(targets)
        whole = float(processes.add_up(torch.tensor([own], dtype=torch.float64)))
        factor = whole / processes.count / own
        object.__setattr__(loss, "sum", lambda outputs, given: total(outputs, given) * factor)
        return backward(inputs, targets, step=step, **known)

    state.accumulator.backward = call  # type: ignore[method-assign]


def _memory(store: Store, group: Any) -> tuple[Result, list[int]]:
    """Memory runs out in one process only, in two of its passes and as it mixes its samples; the others keep their size."""
    params, _ = CASES["everything"]
    state, passes = begun(params, store, 32, group), []
    if dist.get_rank(group) == 1:

        def strike(*_: Any) -> None:
            passes.append(1)
            if len(passes) in (3, 9):
                raise MemoryError("no memory left")

        state.classifier.register_forward_hook(strike)
    mix = loop.mix_batch

    def mix_or_strike(*given: Any, **named: Any) -> Any:
        if dist.get_rank(group) == 1 and state.step == 4 and state.guard.num_failures == 2:
            raise MemoryError("no memory left")
        return mix(*given, **named)

    loop.mix_batch = mix_or_strike
    found = trained(state, params, store, 6)
    loop.mix_batch = mix
    return found, [state.accumulator.micro_batch_size, state.guard.num_failures]


def _no_memory(store: Store, group: Any) -> str:
    """Not one sample fits in one process: all end in the same step."""
    params, _ = CASES["everything"]
    state = begun(params, store, 2, group)
    if dist.get_rank(group) == 1:

        def strike(*_: Any) -> None:
            if state.step == 1:
                raise MemoryError("no memory left")

        state.classifier.register_forward_hook(strike)
    with pytest.raises((OutOfMemoryError, OtherProcessError)) as caught:
        trained(state, params, store, 6)
    return f"{type(caught.value).__name__} {state.step} {state.num_updates}"


def _not_finite(store: Store, group: Any) -> tuple[float, int]:
    """One process has a sample that is not finite: all drop the same step."""
    params, _ = CASES["shift, unmixed, plateau"]
    state = begun(params, store, 32, group)

    def spoil(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        return output * float("nan") if dist.get_rank(group) == 1 and state.step == 2 else output

    state.classifier.register_forward_hook(spoil)
    found = trained(state, params, store, 5)
    return float(found["weights"].sum()), state.num_dropped


Sums = list[tuple[int, torch.dtype]]


@contextmanager
def _counted() -> Iterator[Sums]:
    """Note the size and type of every sum over the processes."""
    seen: Sums = []
    add_up = Processes.add_up

    def counting(self: Processes, values: Tensor) -> Tensor:
        seen.append((values.numel(), values.dtype))
        return add_up(self, values)

    Processes.add_up = counting  # type: ignore[method-assign] # for this process only
    try:
        yield seen
    finally:
        Processes.add_up = add_up  # type: ignore[method-assign]


def _sums(store: Store, group: Any, steps: int, **changes: Any) -> int:
    """Count the sums over the processes in undisturbed steps."""
    params = params_of(changes.pop("model", None), changes.pop("micro", None), **changes)
    state = begun(params, store, 16, group)
    with _counted() as seen:
        trained(state, params, store, steps)
    return len(seen)


def _collectives(store: Store, group: Any) -> tuple[Sums, list[int]]:
    """200 steps, with one process that has no sample, another that runs out of memory, and a third that is not finite."""
    params = params_of(**{**SHORT, "effective_batch_size": 2, "max_nonfinite_steps": 300})
    state = begun(params, store, 4, group)
    rank, failed = dist.get_rank(group), [step for step in range(200) if step % 23 == 7]
    struck = set()

    def strike(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        if rank == 1 and state.step in failed and state.step not in struck:
            struck.add(state.step)
            state.accumulator.micro_batch_size = 4
            raise MemoryError("no memory left")
        return output * float("nan") if rank == 0 and state.step % 31 == 5 else output

    state.classifier.register_forward_hook(strike)
    with _counted() as seen:
        trained(state, params, store, 200)
    return seen, [state.step, state.num_dropped, len(failed)]


def _refused(store: Store, group: Any) -> list[str]:
    said = []
    for params in (
        params_of({**NORMED, "batch_norm_statistics": "plain"}, 16),
        params_of(keyed_randomness=False),
        parse_params({**EVERYTHING, "hardware": {"compile": True}}),
    ):
        with pytest.raises(ConfigError) as caught:
            begun(params, store, 16, group)
        said.append(str(caught.value))
    state = begun(CASES["everything"][0], store, 16, group)
    with pytest.raises(ConfigError) as caught:
        setup._check_shared(state, CASES["everything"][0], num_samples=2)
    said.append(str(caught.value))
    state.classifier.add_module("talking", torch.nn.SyncBatchNorm(3))
    with pytest.raises(ConfigError) as caught:
        setup._check_shared(state, CASES["everything"][0], num_samples=100)
    return [*said, str(caught.value)]


def _work(rank: int, place: str, data: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/group", rank=rank, world_size=4)
    groups = {count: dist.new_group(list(range(count))) for count in COUNTS}
    store, found = Store(Path(data)), {}
    alone = {
        name: trained(begun(params, store, 100, None), params, store, steps)
        for number, (name, (params, steps)) in enumerate(CASES.items())
        if rank == number % 4
    }
    torch.save(alone, f"{place}/alone {rank}.pt")
    dist.barrier()
    for other in range(4):
        alone |= torch.load(f"{place}/alone {other}.pt", weights_only=False)
    for count, group in groups.items():
        if rank >= count:
            continue
        for name, (params, steps) in CASES.items():
            result = trained(begun(params, store, 8 * rank + 5, group), params, store, steps)
            found[f"{count} {name}"] = _distance(result, alone[name])
            found[f"{count} {name} bits"] = result["weights"].sum().item()
            found[f"{count} {name} epochs"] = result["epochs"]
    if rank < 2:
        four = {name: trained(begun(CASES[name][0], store, 100, None), CASES[name][0], store, 4) for name in list(CASES)[:3]}
        found["controls"] = _controls(store, groups[2], four)
    if rank < 3:
        longer = trained(begun(CASES["everything"][0], store, 100, None), CASES["everything"][0], store, 6)
        memory, sizes = _memory(store, groups[3])
        found["memory"], found["sizes"] = _distance(memory, longer), sizes
        found["no memory"] = _no_memory(store, groups[3])
        found["not finite"] = _not_finite(store, groups[3])
        found["refused"] = _refused(store, groups[3])
        found["collectives"] = _collectives(store, groups[3])
        found["sums"] = {name: _sums(store, groups[3], 10, **changes) for name, changes in KINDS.items()}
    torch.save(found, f"{place}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory, digits: Store) -> list[dict[str, Any]]:
    """What each of four processes found, in groups of two, three and four of them."""
    place = tmp_path_factory.mktemp("shared")
    torch.multiprocessing.spawn(_work, (str(place), str(digits.paths.root)), nprocs=4)
    return [torch.load(place / f"{rank}.pt", weights_only=False) for rank in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("case", CASES)
def test_several_processes_learn_what_one_learns(processes: list[dict[str, Any]], case: str, count: int) -> None:
    """Weights, average, best weights, every step and every epoch; the micro-batch size differs between the processes."""
    assert max(process[f"{count} {case}"] for process in processes[:count]) <= 1e-10
    assert len({process[f"{count} {case} bits"] for process in processes[:count]}) == 1
    if case == "everything":
        assert processes[0][f"{count} {case} epochs"] < params_of().train.epochs, "it stops early"


@pytest.mark.slow
def test_what_is_left_out_is_missed(processes: list[dict[str, Any]]) -> None:
    for process in processes[:2]:
        assert set(process["controls"]) == {"positions forgotten", "unkeyed", "mixup per process", "mean of means"}
        assert min(process["controls"].values()) > 1e-3, process["controls"]


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_changes_nothing(processes: list[dict[str, Any]]) -> None:
    assert max(process["memory"] for process in processes[:3]) <= 1e-10
    assert [process["sizes"] for process in processes[:3]] == [[32, 0], [4, 3], [32, 0]]
    assert [process["no memory"] for process in processes[:3]] == [
        "OtherProcessError 1 1",
        "OutOfMemoryError 1 1",
        "OtherProcessError 1 1",
    ]


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_in_one_process_is_dropped_by_all(processes: list[dict[str, Any]]) -> None:
    assert len({process["not finite"] for process in processes[:3]}) == 1
    assert processes[0]["not finite"][1] == 1


@pytest.mark.slow
def test_every_process_takes_part_in_the_same_sums(processes: list[dict[str, Any]]) -> None:
    """Two a step, the agreement and the gradients, and two more where memory ran out: the agreement, and to repeat it."""
    (sums, (steps, dropped, failed)), *others = (process["collectives"] for process in processes[:3])
    assert all(other == (sums, [steps, dropped, failed]) for other in others)
    assert (steps, dropped, failed) == (200, 7, 9)
    assert len(sums) == 2 * steps + 2 * failed
    assert sums.count(sums[1]) == steps, "the gradients"


@pytest.mark.slow
def test_no_weight_is_exchanged_and_pooled_statistics_take_two_sums_more(processes: list[dict[str, Any]]) -> None:
    """Every process knows all labels of an effective batch, ignored, mixed and weighed ones."""
    for process in processes[:3]:
        assert process["sums"] == {"class weights": 20, "mixed": 20, "a callable": 20, "pooled": 40}


@pytest.mark.slow
def test_what_would_depend_on_the_number_of_processes_is_refused(processes: list[dict[str, Any]]) -> None:
    for process in processes[:3]:
        plain, unkeyed, compiled, few, talking = process["refused"]
        assert plain.startswith("model.batch_norm_statistics: expected corrected, recalibrated or frozen")
        assert unkeyed.startswith("train.keyed_randomness: expected true with several processes")
        assert compiled.startswith("hardware.compile: expected false with several processes")
        assert few == "hardware.processes: expected at most the 2 training samples, got 3; write 2 or fewer"
        assert talking.startswith(
            "hardware.processes: expected 1 with this network, got several (model: expected no layer that"
        )
        assert "\n" not in talking


@pytest.mark.parametrize("unit", [1, 3, 16, 32])
def test_shares_are_whole_micro_batches_in_the_order_of_one_process(unit: int) -> None:
    for total in range(130):
        whole = balanced_sizes(total, unit)
        for count in range(1, 8):
            shares = share_sizes(total, count, unit)
            assert len(shares) == count
            assert sum((balanced_sizes(share, unit) for share in shares), ()) == whole


def test_the_own_samples_of_a_batch_and_the_one_before_them(digits: Store) -> None:
    params, _ = CASES["everything"]
    whole = list(TrainingBatches(digits, params.train, 100, 0).epoch(1))
    for rank in range(3):
        shares = TrainingBatches(digits, params.train, 100, 0, share=BatchShare(rank, 3, 1, with_previous=True)).epoch(1)
        for (images, labels), (own, own_labels, known) in zip(whole, shares, strict=True):
            assert len(labels) in (100, len(digits.indices(Split.TRAIN)) % 100)
            places = BatchShare(rank, 3, 1, with_previous=True).positions(len(labels))
            assert torch.equal(own, images[places])
            assert torch.equal(own_labels, labels[places])
            assert torch.equal(known.labels, labels)
            assert (sum(known.sizes), known.sizes[rank]) == (len(labels), len(places) - 1)
