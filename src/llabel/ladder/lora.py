"""Between a rung's settings and the engine's: adapters, their training, and what came of it."""

from dataclasses import dataclass

from llabel.engine.batching import Example
from llabel.engine.model import LoraSettings
from llabel.engine.training import Progress, TrainingSettings
from llabel.ladder.contract import Trial
from llabel.settings import LLMSettings, steps_per_epoch
from llabel.task import Split


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One training: on what, how, under which name, judged by which rows."""

    examples: list[Example]
    settings: TrainingSettings
    stage: str
    validation: Split | None = None


def trial_of(job: TrainingJob, progress: Progress) -> Trial:
    """What is recorded of a training; the epoch in which `max_steps` ended it counts as a part."""
    rate, validated = job.settings.learning_rate, job.validation is not None
    per_epoch = steps_per_epoch(len(job.examples), job.settings.batch_size)
    return Trial(
        settings={"learning_rate": rate},
        validation_loss=progress.best_loss if validated else None,
        epochs=min(progress.best_epoch, round(progress.best_step / per_epoch, 4)),
        epoch_losses=progress.epoch_losses,
        steps=progress.step,
        training_loss=progress.loss_sum / progress.step if progress.step else None,
        rows=progress.rows,
        tokens=progress.tokens,
        seconds=progress.seconds,
        stopped=progress.reason,
    )


def keeps_lower_states(settings: LLMSettings, rows: int) -> bool:
    """Whether what lies below the adapters is worth keeping: some of the rows are read again."""
    again = settings.passes(rows) > 1 or settings.trials > 1 or settings.refit
    return settings.adapt_layers is not None and again


def lora_settings(settings: LLMSettings) -> LoraSettings:
    """The adapters that are asked for."""
    modules = settings.target_modules
    return LoraSettings(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear" if modules == ("all-linear",) else modules,
        use_rslora=settings.use_rslora,
        layers=settings.adapt_layers,
    )


def training_settings(settings: LLMSettings) -> TrainingSettings:
    """How they are trained."""
    return TrainingSettings(
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        warmup_ratio=settings.warmup_ratio,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        token_budget=settings.token_budget,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        patience=settings.patience,
        seed=settings.seed,
        max_steps=settings.max_steps,
        warmup_steps=settings.warmup_steps,
        optim=settings.optim,
        betas=(0.9, settings.adam_beta2),
    )
