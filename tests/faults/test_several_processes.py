"""Rows 50 to 52: several processes share each effective batch, and one of them is hurt."""

import contextlib
import pickle
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
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
from conftest import Shared
from faults.project import EndState, Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # pipes of processes that are killed
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]
ROUNDS, QUICK = 100, 4
STEPS, MICRO = 8, 16
SMALL = {
    "model": {"width": 4, "dropout": 0.2},
    "train": {"precision": "float64", "effective_batch_size": 90, "mixup_alpha": 0.3, "clip_norm": 0.5, "ema_decay": 0.9},
    "hardware": {"micro_batch_size": MICRO, "num_workers": 0},
}
SHARED = (
    "train.precision=float64",
    "train.effective_batch_size=24",
    "train.mixup_alpha=0.3",
    "model.width=8",
    "model.dropout=0.2",
    "hardware.memory_budget=none",
)
SIGN = "processes share each effective batch"


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


@dataclass(frozen=True)
class Undisturbed:
    """What a training in several processes ends in that nothing happens to, and how long it takes."""

    state: EndState
    rows: list[list[float]]
    seconds: float


@pytest.fixture(scope="session")
def undisturbed_in(prepared: Path, shared: Shared) -> Callable[[int], Undisturbed]:
    """Return that of a number of processes; it is trained when it is first asked for."""

    def make(count: int, folder: Path) -> None:
        project = Project(folder / "project")
        shutil.copytree(prepared, project.root, symlinks=True)
        project.set(*SHARED, f"hardware.processes={count}")
        process = project.start("dvc", "repro", "train")
        project.until(process, lambda line: SIGN in line)
        started = time.monotonic()
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        found = Undisturbed(project.end_state(), _rows(project), time.monotonic() - started)
        (folder / "state").write_bytes(pickle.dumps(found))

    def get(count: int) -> Undisturbed:
        folder = shared(f"in {count} processes", lambda folder: make(count, folder))
        found: Undisturbed = pickle.loads((folder / "state").read_bytes())  # written above
        return found

    return get


def _rows(project: Project) -> list[list[float]]:
    lines = (project.root / "results" / "train" / "history.csv").read_text(encoding="utf-8").splitlines()[1:]
    return [[float(value) for value in line.split(",")] for line in lines]


def _below(process: Any, word: str) -> list[psutil.Process]:
    found = []
    with contextlib.suppress(psutil.Error):  # the command has ended
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # or one below it
                found += [child] if word in child.cmdline() else []
    return found


def _hurt_at_random(project: Project, process: Any, seconds: float, strike: Callable[[], None]) -> tuple[str, bool]:
    """Strike at a moment of the training; return what was printed, and whether it had ended before."""
    lines = project.until(process, lambda line: SIGN in line)
    reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
    reader.start()
    time.sleep(seconds)
    ended = not _below(process, "bigstep.runs.helper")
    if not ended:
        try:
            strike()
        except (ProcessLookupError, psutil.NoSuchProcess, IndexError):  # it ended in this instant
            ended = True
    process.wait(120)
    reader.join(120)  # the pipe is closed when the last process that has it has ended
    process.stdout.close()
    return "".join(lines), ended


@pytest.mark.fault(51, "SIGKILL at a random moment of one of two or three processes, of the stage, or of `dvc`", rounds=ROUNDS)
def test_a_kill_leaves_no_process_and_the_same_command_the_same_bytes(
    round_number: int,
    project: Project,
    undisturbed_in: Callable[[int], Undisturbed],
    record_property: Callable[[str, object], None],
) -> None:
    draw = random.Random(6000 + round_number)
    count, victim = 2 + round_number % 2, ("a process", "the stage", "dvc")[round_number // 2 % 3]
    other = 5 - count if round_number % 8 == 7 else count  # now and then another number resumes
    expected = undisturbed_in(count)
    project.set(*SHARED, f"hardware.processes={count}")
    process = project.start("dvc", "repro", "train")

    def strike() -> None:
        helpers = _below(process, "bigstep.runs.helper")
        stages = _below(process, "pipelines/train.py")
        {"a process": lambda: draw.choice(helpers), "the stage": lambda: stages[-1], "dvc": lambda: process}[victim]().kill()

    output, ended = _hurt_at_random(project, process, draw.uniform(0.0, expected.seconds), strike)
    record_property("note", "ended already" if ended else victim)
    assert not project.processes(5)
    if victim == "a process" and not ended:
        assert "expected it to train to the end, got SIGKILL; run the same command to resume" in output
        assert "Traceback" not in output
    had_checkpoint = bool(project.checkpoints())
    project.set(f"hardware.processes={other}")
    again = project.finish("train")
    assert ("resuming from the checkpoint of step" in again) == had_checkpoint
    assert len(project.runs()) == 1
    if other == count:
        assert project.end_state() == expected.state, again[-3000:]
    else:
        for mine, theirs in zip(_rows(project), expected.rows, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-10, abs=1e-10)


@pytest.mark.fault(52, "SIGTERM at a random moment to one of two or three processes", rounds=ROUNDS, rare=True)
def test_one_process_that_is_stopped_stops_all_with_a_checkpoint(
    round_number: int, project: Project, undisturbed_in: Callable[[int], Undisturbed]
) -> None:
    draw = random.Random(7000 + round_number)
    count = 2 + round_number % 2
    expected = undisturbed_in(count)
    project.set(*SHARED, f"hardware.processes={count}")
    process = project.start("bigstep", "train", PYTHONPATH=str(project.root / "src"))

    def strike() -> None:
        draw.choice(_below(process, "bigstep.runs.helper")).send_signal(signal.SIGTERM)

    output, ended = _hurt_at_random(project, process, draw.uniform(0.0, 0.8 * expected.seconds), strike)
    assert not project.processes(5)
    assert "Traceback" not in output
    if not ended and process.returncode != 0:
        assert process.returncode == 143, output
        assert "stopped by SIGTERM" in output
        step = int(project.checkpoints()[-1].name.removeprefix("step-"))
        assert f"resuming from the checkpoint of step {step}" in project.finish("train")
    assert [run.info.status for run in project.runs()] == ["FINISHED"]
    assert project.end_state() == expected.state
