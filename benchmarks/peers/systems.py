"""How each system accumulates, as its documentation shows it. Every loop is plain SGD, so a step's gradient can be read off."""

import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cases import CAUSAL, Case

__all__ = ["RATE", "SYSTEMS", "Outcome", "System"]

RATE = 0.1


@dataclass(frozen=True)
class Outcome:
    """What a run left: the gradient of each step, the model, and where asked for the schedule's steps and the average."""

    gradients: list[Tensor]
    model: nn.Module
    schedule_steps: int | None = None
    average: Tensor | None = None


@dataclass(frozen=True)
class Options:
    """What else a run does: clip to this norm, scale the loss, step a schedule now and then, average weights, BatchNorm."""

    clip: float | None = None
    loss_scale: float | None = None
    frequency: int = 1
    average: float | None = None
    batch_norm: bool = False


class System(Protocol):
    """A way to accumulate; ``run`` gives None for what it has no feature for."""

    name: str

    def run(self, case: Case, options: Options) -> Outcome | None:
        """Train one epoch over the case's samples in order."""
        ...


class _Recorder:
    """Reads the gradient of each step off the change of the weights."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = self.flat()
        self.gradients: list[Tensor] = []

    def flat(self) -> Tensor:
        return torch.cat([p.detach().flatten().clone() for p in self.model.parameters()])

    def note(self, *_: Any) -> None:
        now = self.flat()
        if (now != self.before).any():
            self.gradients.append((self.before - now) / RATE)
            self.before = now


class _Counted(torch.optim.lr_scheduler.LRScheduler):
    """A schedule that changes nothing and counts its steps."""

    def __init__(self, optimizer: Any) -> None:
        self.count = -1
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        self.count += 1
        return list(self.base_lrs)


def _parts(case: Case, options: Options) -> tuple[nn.Module, torch.optim.SGD, DataLoader[Any], _Recorder]:
    model = case.make(batch_norm=options.batch_norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    recorder = _Recorder(model)
    optimizer.register_step_post_hook(recorder.note)
    loader = DataLoader(TensorDataset(case.inputs, case.targets), batch_size=case.micro)
    return model, optimizer, loader, recorder


class Bigstep:
    name = f"bigstep {version('bigstep')}"

    def run(self, case: Case, options: Options) -> Outcome | None:
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        from bigstep import Accumulator
        from bigstep.step.batch_norm import DeferredStatistics

        model, optimizer, _, recorder = _parts(case, options)
        statistics = DeferredStatistics(model)
        scale = options.loss_scale
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        accumulator = Accumulator(model, case.ours(), micro_batch_size=case.micro, scaler=scaler, statistics=statistics)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.average)) if options.average else None
        schedule = _Counted(optimizer)
        for updates, window in enumerate(case.windows(), 1):
            accumulator.backward(case.inputs[window], case.targets[window])
            scaler.unscale_(optimizer)
            if options.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            scaler.step(optimizer)
            scaler.update()
            statistics.commit()
            if updates % options.frequency == 0:
                schedule.step()
            if average is not None:
                average.update_parameters(model)
            optimizer.zero_grad()
        return Outcome(recorder.gradients, model, schedule.count, None if average is None else _flat(average))


class Tutorial:
    """The loop most people copy: it clears the gradients inside the loop."""

    name = "tutorial loop (zero_grad inside)"

    def run(self, case: Case, options: Options) -> Outcome | None:
        if options.average or options.loss_scale:
            return None
        model, optimizer, loader, recorder = _parts(case, options)
        schedule = _Counted(optimizer)
        for index, (inputs, targets) in enumerate(loader):
            optimizer.zero_grad()
            (case.loss(model(inputs), targets) / case.steps).backward()
            if options.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            if (index + 1) % case.steps == 0:
                optimizer.step()
            schedule.step()
        return Outcome(recorder.gradients, model, schedule.count)


class Accelerate:
    name = f"accelerate {version('accelerate')}"

    def run(self, case: Case, options: Options) -> Outcome | None:
        from accelerate import Accelerator

        if options.average or options.loss_scale or options.frequency > 1:
            return None
        accelerator = Accelerator(gradient_accumulation_steps=case.steps, cpu=True)
        model, optimizer, loader, recorder = _parts(case, options)
        schedule = _Counted(optimizer)
        wrapped, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, schedule)
        for inputs, targets in loader:
            with accelerator.accumulate(wrapped):
                accelerator.backward(case.loss(wrapped(inputs), targets))
                if accelerator.sync_gradients and options.clip is not None:
                    accelerator.clip_grad_norm_(wrapped.parameters(), options.clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        return Outcome(recorder.gradients, model, schedule.count)


class Lightning:
    name = f"Lightning {version('lightning')}"

    def run(self, case: Case, options: Options) -> Outcome | None:
        import lightning
        from lightning.pytorch.callbacks import EMAWeightAveraging

        if options.loss_scale:
            return None
        model, optimizer, loader, recorder = _parts(case, options)
        schedule = _Counted(optimizer)

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def training_step(self, batch: Any, _: int) -> Tensor:
                return case.loss(self.model(batch[0]), batch[1])

            def configure_optimizers(self) -> Any:
                interval = {"scheduler": schedule, "interval": "step", "frequency": options.frequency}
                return {"optimizer": optimizer, "lr_scheduler": interval}

        averaging = EMAWeightAveraging(decay=options.average) if options.average else None
        kept: list[Tensor] = []
        if averaging is not None:
            averaging.on_train_end = lambda *_: kept.append(_flat(averaging._average_model))  # noqa: SLF001 # before it is swapped in
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            accumulate_grad_batches=case.steps,
            gradient_clip_val=options.clip,
            callbacks=[] if averaging is None else [averaging],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), loader)
        return Outcome(recorder.gradients, model, schedule.count, kept[0] if kept else None)


class Transformers:
    name = f"transformers {version('transformers')} Trainer"

    def run(self, case: Case, options: Options) -> Outcome | None:
        from transformers import Trainer, TrainingArguments

        if options.average or options.loss_scale or options.frequency > 1:
            return None
        model, optimizer, _, recorder = _parts(case, options)
        schedule = _Counted(optimizer)

        class InOrder(Trainer):
            def _get_train_sampler(self, *_: Any) -> Any:
                return torch.utils.data.SequentialSampler(self.train_dataset)

        rows = [{"inputs": x, "labels": y} for x, y in zip(case.inputs, case.targets, strict=True)]
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=case.micro,
                gradient_accumulation_steps=case.steps,
                num_train_epochs=1,
                max_grad_norm=options.clip or 0.0,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            )
            InOrder(
                model=_wrapped(case, model),
                args=arguments,
                train_dataset=rows,
                optimizers=(optimizer, schedule),
                data_collator=_collate,
            ).train()
        return Outcome(recorder.gradients, model, schedule.count)


def _wrapped(case: Case, model: nn.Module) -> nn.Module:
    """Return a model as Trainer wants it: a custom one with its mean loss, or a language model as the library has them."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.model(inputs)
            return {"loss": case.loss(logits, labels), "logits": logits}

    class LanguageModel(Wrapped):
        loss_type = "ForCausalLM"  # Trainer counts the tokens that such a loss predicts, and passes their number

        def forward(self, inputs: Tensor, labels: Tensor, **counts: Any) -> dict[str, Tensor]:
            logits = self.model(inputs)
            return {"loss": ForCausalLMLoss(logits, labels, logits.shape[-1], **counts), "logits": logits}

    return LanguageModel() if case is CAUSAL else Wrapped()


def _collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def _flat(module: Any) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def quiet(function: Callable[[], Any]) -> Any:
    """Call without the systems' own messages."""
    for name in ("lightning", "lightning.pytorch", "transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()


SYSTEMS: tuple[System, ...] = (Bigstep(), Accelerate(), Lightning(), Transformers(), Tutorial())
