"""Stage ``train``: the store into a model, every step through the accumulator."""

from torch import nn

from bigstep.atomic_files import check_writable
from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.model import ModelConfig
from bigstep.config.units import parse_duration
from bigstep.console import console
from bigstep.data.store import Store
from bigstep.models.classifier import Classifier
from bigstep.planning.slicing_choice import CheckedSlicing, choose_slicing
from bigstep.planning.slicing_outlook import record_slicing
from bigstep.runs.helper_processes import helper_request, training_group
from bigstep.runs.low_memory_marker import clear_marks, failed_micro_batch_size
from bigstep.runs.tracked_run import as_metrics_now
from bigstep.runs.training_run import TrainingJob, TrainingRun
from bigstep.runtime.device import has_spare_core
from bigstep.runtime.environment import keep_compiled_code
from bigstep.runtime.heap import return_memory
from bigstep.stages.attempt_checkpoints import open_checkpoints
from bigstep.stages.attempt_run import stage_run
from bigstep.stages.stage_runner import Stage, run_stage
from bigstep.stages.train_outputs import dataset_record, log_model, log_results, log_slicing, write_model, write_results
from bigstep.step.noise_scale import advise
from bigstep.tracking.delivery import Deliverer
from bigstep.tracking.tracker import Tracker
from bigstep.training.invariance import Invariance, check_slice_invariance
from bigstep.training.places import layer_place
from bigstep.training.setup import build_training
from bigstep.training.state import TrainingState

__all__ = ["main", "train"]


def main(started: float | None = None, delivery: Deliverer | None = None) -> int:
    """Run the stage in the current folder; the arguments are those of :func:`run_stage`."""
    return run_stage("train", train, started, delivery)


def train(stage: Stage) -> None:
    """Write ``results/train``: the best epoch's weights, how to rebuild the model, metrics, history and curves.

    Raises:
        CheckpointError: it was killed, and every checkpoint is damaged.
        ConfigError: the parameters do not fit the data.
        DataError: the prepared images are not those that were prepared.
        DivergedError: the gradient was not finite in too many steps in a row.
        ModelError: the model does not accept the images, or its loss was never finite.
        ProjectError: the results cannot be written.
    """
    params, model = stage.params, stage.params.model
    stage.signals.stop_after(parse_duration(params.hardware.max_time))
    check_writable(stage.paths.train)
    store = Store(stage.paths.prepared)
    store.verify_former()
    mark = stage.project.attempts / f"{stage.key}.memory.json"
    checkpoints = open_checkpoints(stage, store, parse_duration(params.hardware.checkpoint_interval))
    fit = choose_slicing(stage.project, params, store, failed_micro_batch_size(mark), checkpoints.kept_slicing())
    batch, params = fit.batch, fit.applied_to(params)
    weights = stage.project.starting_weights(model.weights)
    if params.hardware.compile:
        keep_compiled_code(stage.project.compiled)
    job = TrainingJob(store, params, batch, fit.predicted_bytes, checkpoints, mark)
    with training_group(helper_request(job, weights), stage.signals) as group:
        state = build_training(store, batch, params, weights=weights, group=group)
        _train(stage, job, state, fit)
    checkpoints.clear()
    clear_marks(mark)


def _train(stage: Stage, job: TrainingJob, state: TrainingState, fit: CheckedSlicing) -> None:
    store, params, batch, model = job.store, job.params, job.batch, job.params.model
    invariance = check_slice_invariance(state, params.train, store, model.name)
    console.print(f"{model.name}, {_num_parameters(state.classifier):,} parameters; {batch}")
    _report_invariance(invariance, model)
    _report_norms(state.classifier.network, model)
    resumed = job.checkpoints.restore(state, micro_batch_size=batch.micro_batch_size)
    with stage_run(stage, params.tracking.experiment) as tracker:
        tracker.log_dataset(dataset_record(store, "training"))
        tracker.set_tags(invariance.tags)
        tracker.set_tags(fit.tags)
        tracker.log_metrics(as_metrics_now({"predicted_peak_bytes": job.step_bytes}, step=0))
        run = TrainingRun(job, state, tracker, stage.signals, resumed)
        with stage.signals.deferred():
            run.run()
        stage.inputs.check()
        run.recalibrate()
        return_memory()  # the model's export needs some, in another process
        if params.tracking.noise_scale != "none":
            _report_noise(state, tracker, batch)
        tracker.log_metrics(as_metrics_now({"training_seconds": run.log.seconds}, step=state.step))
        card = write_model(stage.paths, store, state, params, batch)
        stage.inputs.check()
        log_model(stage.paths, tracker, store, card, export=stage.delivery is not None and not has_spare_core(params))
        log_slicing(tracker, record_slicing(stage.project, stage.params, store, fit))
        write_results(stage.paths, state, run.log.rows)
        stage.inputs.check()
        log_results(stage.paths, tracker, store)
        state.guard.close()
    stage.inputs.check()  # again, before the checkpoints are deleted


def _report_invariance(invariance: Invariance, model: ModelConfig) -> None:
    if invariance.line:
        console.print(invariance.line)
    for layer in invariance.layers:
        console.print(f"  {layer.name} ({layer.kind}) {layer.reason}; running statistics: {model.batch_norm_statistics}")


def _report_norms(network: nn.Module, model: ModelConfig) -> None:
    """Name layers of the project's own network that ``model.norm`` has replaced."""
    names: tuple[str, ...] = getattr(network, "replaced_norms", ())
    if names:
        place = layer_place(network, names[0], model.name)
        by = "GroupNorm" if model.norm == "group" else "nothing"
        console.print(f"model.norm {model.norm}: BatchNorm in {', '.join(names)} ({place}) was replaced by {by}")


def _report_noise(state: TrainingState, tracker: Tracker, batch: BatchSizes) -> None:
    shares = batch.accumulation_steps if state.processes is None else state.processes.count
    advice = advise(state.noise.summary(), batch.effective_batch_size, shares)
    console.print(advice)
    tracker.set_tags({"bigstep.advice": advice})


def _num_parameters(classifier: Classifier) -> int:
    return sum(parameter.numel() for parameter in classifier.parameters())
