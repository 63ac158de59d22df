"""Row 50: several processes share each effective batch, and memory runs out in one of them."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bigstep.config.params import parse_params
from bigstep.data.store import Store
from bigstep.training import loop
from bigstep.training.loop import train_epochs
from bigstep.training.records import StepRecord
from bigstep.training.setup import build_training
from bigstep.training.shares import batch_share
from bigstep.training.state import TrainingState
from bigstep.training.training_batches import TrainingBatches

pytestmark = pytest.mark.slow
ROUNDS, QUICK = 100, 4
STEPS, MICRO = 8, 16
SMALL = {
    "model": {"width": 4, "dropout": 0.2},
    "train": {"precision": "float64", "effective_batch_size": 90, "mixup_alpha": 0.3, "clip_norm": 0.5, "ema_decay": 0.9},
    "hardware": {"micro_batch_size": MICRO, "num_workers": 0},
}


@dataclass(frozen=True)
class Drawn:
    """What a round does: how many processes there are, which one has too little memory, and when."""

    count: int
    rank: int
    at: tuple[int, int]
    """The calls, of its passes or of mixing its samples, that fail."""
    where: str

    @classmethod
    def of(cls, round_number: int) -> "Drawn":
        draw = random.Random(5000 + round_number)
        count, where = draw.choice((2, 3)), draw.choice(("forward", "backward", "mixing"))
        most = STEPS if where == "mixing" else STEPS * 90 // count // MICRO
        first, second = sorted(draw.sample(range(1, most), 2))
        return cls(count, draw.randrange(count), (first, second), where)


def _fail(drawn: Drawn, state: TrainingState) -> list[int]:
    """Make the drawn calls ask for more memory than there is; return a list that grows with each that did."""
    calls, failed, mix = [0], [], loop.mix_batch

    def strike(*_: Any) -> None:
        calls[0] += 1
        if calls[0] in drawn.at:
            failed.append(calls[0])
            torch.empty(1 << 56, dtype=torch.uint8)

    def struck_mix(*given: Any, **named: Any) -> Any:
        strike()
        return mix(*given, **named)

    if drawn.where == "forward":
        state.classifier.network.register_forward_hook(strike)
    elif drawn.where == "backward":
        state.classifier.network.register_full_backward_hook(strike)
    else:
        loop.mix_batch = struck_mix
    return failed


def _trained(store: Store, group: Any, drawn: Drawn | None) -> dict[str, Any]:
    params, mix = parse_params(SMALL), loop.mix_batch
    state = build_training(store, params.batch, params, weights=None, group=group)
    is_hurt = drawn is not None and group is not None and dist.get_rank(group) == drawn.rank
    failed = _fail(drawn, state) if drawn is not None and is_hurt else []
    batches = TrainingBatches(store, params.train, 90, 0, share=batch_share(state.processes, params.train, None))
    records, losses = train_epochs(state, params.train, store, batches), []
    while len(losses) < STEPS:
        record = next(records)
        assert isinstance(record, StepRecord)
        losses.append([float(record.loss), record.gradient_norm, float(record.num_samples)])
    loop.mix_batch = mix
    weights = torch.cat([value.double().flatten() for value in state.evaluated_model.state_dict().values()])
    numbers = torch.cat([weights, torch.tensor(losses, dtype=torch.float64).flatten()])
    return {"numbers": numbers, "failed": failed, "size": state.accumulator.micro_batch_size, "updates": state.num_updates}


def _work(rank: int, place: str, data: str, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/group", rank=rank, world_size=3)
    groups, store = {count: dist.new_group(list(range(count))) for count in (2, 3)}, Store(Path(data))
    alone, found = _trained(store, None, None)["numbers"], []
    for number in range(rounds):
        drawn = Drawn.of(number)
        if rank < drawn.count:
            result = _trained(store, groups[drawn.count], drawn)
            found.append({**result, "distance": float((result.pop("numbers") - alone).abs().max())})
        else:
            found.append({})
    torch.save(found, f"{place}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def hurt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, digits: Store) -> list[list[dict[str, Any]]]:
    """What each of three processes found in each round; all rounds run one after another in the same processes."""
    place = tmp_path_factory.mktemp("hurt")
    rounds = min(ROUNDS, request.config.getoption("--rounds", default=None) or QUICK)
    context = torch.multiprocessing.spawn(_work, (str(place), str(digits.paths.root), rounds), nprocs=3, join=False)
    assert context is not None
    deadline = time.monotonic() + 120 + 30 * rounds
    try:
        while not context.join(5):
            assert time.monotonic() < deadline, "a process waits for ever"
    finally:
        for process in context.processes:
            process.kill()
            process.join()
    return [torch.load(place / f"{rank}.pt", weights_only=False) for rank in range(3)]


@pytest.mark.fault(
    50, "memory that runs out in one of two or three processes, at two moments of a training", rounds=ROUNDS, quick=QUICK
)
def test_memory_of_one_process_costs_no_step_and_changes_nothing(
    round_number: int, hurt: list[list[dict[str, Any]]], record_property: Callable[[str, object], None]
) -> None:
    drawn = Drawn.of(round_number)
    for rank, found in enumerate(process[round_number] for process in hurt[: drawn.count]):
        assert found["distance"] <= 1e-10
        assert found["updates"] == STEPS
        assert found["failed"] == (list(drawn.at) if rank == drawn.rank else [])
        assert found["size"] == (MICRO // 4 if rank == drawn.rank else MICRO)
    record_property("note", drawn.where)
