"""The trainings of an LLM's adapters: one for each learning rate, and the refit of the best."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from llabel.engine.answer import AnswerHead
from llabel.engine.batching import Example
from llabel.engine.checkpoint import CheckpointFolder
from llabel.engine.training import Progress, Trainer, Watch, seeded
from llabel.events import Listener, StageStarted
from llabel.ladder.contract import Trial
from llabel.ladder.lora import TrainingJob, training_settings, trial_of
from llabel.ladder.targets import mean_log_loss
from llabel.ladder.trials import REFIT, around, best_of, refit_or_keep, stage
from llabel.settings import LLMSettings
from llabel.task import Probabilities, Split, Text

if TYPE_CHECKING:
    from peft import PeftModel

_Adapter: TypeAlias = dict[str, Tensor]  # the weights that are trained, by name


@dataclass
class Tuning:
    """Trains the adapters of one loaded model; all trainings begin with those it has now.

    Attributes:
        model: the base model with adapters.
        head: its log-probabilities of answers, and their loss.
        predict: texts → probabilities, by the model as it is.
        settings: of the rung.
        device: where the model is.
        checkpoints: where to keep snapshots of the first trial; those of the others lie in
            `trial-N` beside it, those of the refit in `refit`.
        watch: sees every training while it goes on.
        notify: told of progress.
        progress: of the training whose adapters the model has, after `search` and `refit`.
    """

    model: "PeftModel"
    head: AnswerHead
    predict: Callable[[Sequence[Text], Listener], Probabilities]
    settings: LLMSettings
    device: torch.device
    checkpoints: CheckpointFolder | None
    watch: Watch | None
    notify: Listener
    progress: Progress = field(default_factory=Progress, init=False)

    def __post_init__(self) -> None:
        self._start = self._adapter()

    def search(
        self, examples: list[Example], validation: Split
    ) -> tuple[tuple[Trial, ...], int, Probabilities]:
        """One training a learning rate; leaves the best adapters in the model.

        Returns:
            The trials, which of them was the best on `validation`, and what it says of these rows:
            (n_validation, n_classes).

        Raises:
            DivergedError: every trial diverged.
        """
        rates = around(self.settings.learning_rate, self.settings.trials)
        best: _Adapter = {}
        last = Progress()
        proba: Probabilities | None = None
        validated: Probabilities | None = None

        def train_once(number: int, rate: float, seconds: float | None) -> Trial:
            nonlocal last, proba
            plan = training_settings(self.settings)
            plan = replace(plan, learning_rate=rate, time_limit=seconds)
            folder = self.checkpoints
            if folder and number:
                folder = folder.beside(f"trial-{number}")
            job = TrainingJob(examples, plan, stage(number, len(rates)), validation)
            last, proba = self._train(job, folder)
            return trial_of(job, last)

        def keep(number: int) -> None:
            nonlocal validated
            self.progress, validated = last, proba
            best.update(self._adapter())

        trials, chosen = best_of(rates, train_once, keep, budget=self.settings.budget)
        self._put(best)
        self.model.eval()  # the last one may have diverged in the midst of training
        if validated is None:  # its best epoch was before the last interruption
            self.notify(StageStarted("scoring validation rows", len(validation)))
            validated = self.predict(validation.texts, self.notify)
        return trials, chosen, validated

    def refit(self, examples: list[Example], rate: float, passes: float) -> Trial:
        """Train anew on other rows, without validation; where that diverges, nothing changes.

        Args:
            examples: the rows.
            rate: learning rate.
            passes: epochs.
        """
        plan = replace(
            training_settings(self.settings),
            learning_rate=rate,
            epochs=passes,
            max_steps=None,
            patience=None,
        )
        job = TrainingJob(examples, plan, REFIT)
        folder = self.checkpoints and self.checkpoints.beside("refit")
        chosen = self._adapter()

        def train_anew() -> Trial:
            self.progress, _ = self._train(job, folder)
            return trial_of(job, self.progress)

        refit = refit_or_keep(train_anew, rate, self.notify)
        if refit.stopped == "diverged":
            self._put(chosen)
            self.model.eval()
        return refit

    def _train(
        self, job: TrainingJob, checkpoints: CheckpointFolder | None
    ) -> tuple[Progress, Probabilities | None]:
        """What one training came to, and the validation rows' probabilities at its best.

        None where that epoch was before the last interruption.
        """
        best: tuple[float, Probabilities | None] = (math.inf, None)

        def validation_loss() -> float:
            nonlocal best
            assert job.validation is not None
            self.notify(StageStarted("validating", len(job.validation)))
            proba = self.predict(job.validation.texts, self.notify)
            loss = mean_log_loss(job.validation.y, proba)
            if loss < best[0]:
                best = loss, proba
            return loss

        self._put(self._start)
        trainer = Trainer(
            module=self.model,
            loss=self.head.loss,
            settings=job.settings,
            validate=None if job.validation is None else validation_loss,
            checkpoints=checkpoints,
            notify=self.notify,
            stage=job.stage,
            device=self.device,
            watch=self.watch,
            reads_start_once=self.head.reader.reads_start_once,
        )
        with seeded(job.settings.seed, self.device):
            progress = trainer.run(job.examples)
        return progress, best[1] if best[0] == progress.best_loss else None

    def _adapter(self) -> _Adapter:
        """A copy of the weights that are trained."""
        named = self.model.named_parameters()
        return {name: p.detach().clone() for name, p in named if p.requires_grad}

    @torch.no_grad()
    def _put(self, weights: _Adapter) -> None:
        for name, parameter in self.model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
