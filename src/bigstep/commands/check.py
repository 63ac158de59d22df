"""`bigstep check`: is the configured training exact, layer by layer?"""

from dataclasses import asdict

import torch
from rich.table import Table
from torch import Tensor

from bigstep.config.params import Params
from bigstep.config.train import TrainConfig
from bigstep.console import console
from bigstep.data.mixing import mix_batch
from bigstep.data.seeding import derive_key
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.errors import ModelError, RandomnessError
from bigstep.machine_output import Report, no_report
from bigstep.models.building import InputShape
from bigstep.models.model_files import build_classifier
from bigstep.project.paths import ProjectPaths, StagePaths
from bigstep.step.exactness import LayerCheck, check_cuts
from bigstep.training.chosen_loss import build_loss
from bigstep.training.invariance import find_invariance
from bigstep.training.loop import set_training_mode
from bigstep.training.places import with_place
from bigstep.training.setup import task_of_store
from bigstep.training.state import TrainingState, build_state
from bigstep.training.training_batches import TrainingBatches
from bigstep.user_places import raised_at

__all__ = ["check", "cut_sizes"]

NUM_SAMPLES = 8  # in which the cause is looked for


def check(project: ProjectPaths, paths: StagePaths, params: Params, num_samples: int, report: Report = no_report) -> int:
    """Compare accumulated with full-batch gradients in float64 for one effective batch, and print the result for each layer.

    Args:
        project: its ``weights/`` may hold the starting weights.
        paths: of the prepared data.
        params: the configuration.
        num_samples: of the batch, at most the effective batch.
        report: takes the errors of each layer, one for each micro-batch size.

    Returns:
        0 where every layer is exact, else 1.
    """
    store = Store(paths.prepared)
    train = params.train.model_copy(update={"precision": "float64"})
    state = _state(project, store, params)
    size = min(num_samples, params.batch.effective_batch_size, len(store.indices(Split.TRAIN)))
    images, labels = next(TrainingBatches(store, train, size, 0).epoch(0))
    options = {"mixup_alpha": train.mixup_alpha, "cutmix_alpha": train.cutmix_alpha, "seed": train.seed, "step": 0}
    inputs, targets = mix_batch(images, labels, len(state.task.names), **options)  # type: ignore[arg-type] # each of its own type
    set_training_mode(state)
    cuts = cut_sizes(size, params.batch.micro_batch_size)
    seed = train.seed if train.keyed_randomness else None
    try:
        layers = check_cuts(state.classifier, state.loss, inputs, targets, cuts, seed=seed)
    except RandomnessError as error:
        raise ModelError(f"{with_place(str(error), raised_at(error))}: set train.keyed_randomness=false") from None
    except ValueError as error:
        raise ModelError(
            f"model: expected every micro-batch to pass through it, got the error {str(error)!r}; "
            "BatchNorm needs at least two samples"
        ) from None
    _print(layers, cuts, size)
    exact = all(layer.is_exact for layer in layers)
    causes = [] if exact else _causes(state, inputs, targets, train, params.model.name)
    for cause in causes:
        console.print(f"  because {cause}")
    found = [{**asdict(layer), "is_exact": layer.is_exact} for layer in layers]
    report({"exact": exact, "num_samples": size, "micro_batch_sizes": cuts, "layers": found, "causes": causes})
    return 0 if exact else 1


def cut_sizes(size: int, micro_batch_size: int) -> tuple[int, ...]:
    """Return the micro-batch sizes to compare: the configured one, a half, a quarter, a ragged one, and single samples."""
    wanted = (micro_batch_size, size // 2, size // 4, 7, 1)
    return tuple(sorted({cut for cut in wanted if 1 <= cut < size} or {size}, reverse=True))


def _state(project: ProjectPaths, store: Store, params: Params) -> TrainingState:
    manifest, task = store.manifest, task_of_store(store)
    train = params.train.model_copy(update={"precision": "float64"})
    task.check(train)
    torch.manual_seed(derive_key("weights", params.train.seed))
    classifier = build_classifier(
        params.model,
        InputShape.of(manifest),
        mean=manifest.mean,
        std=manifest.std,
        weights=None if params.model.weights is None else project.resolve(params.model.weights),
    )
    return build_state(
        classifier,
        train,
        params.batch,
        num_samples=len(store.indices(Split.TRAIN)),
        task=task,
        loss=build_loss(train, task, store.labels[store.indices(Split.TRAIN)], classifier.mean.device),
        model=params.model,
    )


def _causes(state: TrainingState, inputs: Tensor, targets: Tensor, train: TrainConfig, name: str) -> list[str]:
    samples, model = inputs[:NUM_SAMPLES], state.classifier
    found = find_invariance(
        model, samples, keyed=train.keyed_randomness, loss=state.loss, targets=targets[:NUM_SAMPLES], name=name
    )
    if found.holds:
        return [f"of a cause that {NUM_SAMPLES} samples do not show; compare the layers above"]
    return [found.reason, *(f"{layer.name} ({layer.kind}) {layer.reason}" for layer in found.layers[1:])]


def _print(layers: tuple[LayerCheck, ...], cuts: tuple[int, ...], size: int) -> None:
    table = Table(title=f"accumulated vs. full-batch gradients, float64, {size} samples", title_justify="left")
    table.add_column("layer")
    for cut in cuts:
        table.add_column(f"m = {cut}", justify="right")
    table.add_column("result")
    for layer in layers:
        verdict = "exact" if layer.is_exact else f"off by {_share(max(layer.errors))}"
        table.add_row(f"{layer.name} ({layer.kind})", *(f"{error:.0e}" for error in layer.errors), verdict)
    console.print(table)
    worst = max(max(layer.errors) for layer in layers)
    if all(layer.is_exact for layer in layers):
        console.print(
            f"exact in every layer, for every micro-batch size: the largest relative error is {worst:.0e}, which is rounding"
        )
        return
    console.print(f"not exact: gradients depend on the micro-batch size, by up to {_share(worst)}")


def _share(error: float) -> str:
    return f"{error:.1%}" if error >= 0.001 else f"{error:.0e}"
