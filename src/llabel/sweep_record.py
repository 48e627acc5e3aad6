"""`sweep.json`: the one record of a sweep. The table and the page read this, nothing else.

Keys are added, never renamed; `schema` counts changes that readers must know of. Probabilities,
accuracies and shares are 0..1; losses are nats; intervals are [lower, upper] at 95 %.
"""

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

from llabel.comparison import ComparedScores
from llabel.metrics import Scores
from llabel.record import Data

SCHEMA = 1
PERPLEXITY_ROWS = 256  # validation rows whose prompts are read as plain text

Status: TypeAlias = Literal["done", "pruned", "failed"]
AXES = ("r", "lora_alpha", "lr", "epochs", "seed")
"""What every cell's `settings` hold, in this order; None where it decides nothing there."""


class Range(TypedDict):
    """What a search may choose from: low to high, both included.

    Attributes:
        low, high: its limits.
        log: whether it is searched on a logarithmic scale.
        whole: whether only whole numbers are tried.
    """

    low: float
    high: float
    log: bool
    whole: bool


class Search(TypedDict):
    """How cells were found, where no full grid was asked for.

    Attributes:
        sampler: `tpe` or `random`.
        trials: how many were asked for; fewer cells where one was proposed again.
        ranges: by axis; axes whose values were listed are in `axes`.
        pruner: what stopped cells early, in words, or None.
    """

    sampler: str
    trials: int
    ranges: dict[str, Range]
    pruner: str | None


class LayerUpdate(TypedDict):
    """What tuning did to one decoder layer.

    Attributes:
        layer: its number from 0; -1 for what stands outside of the numbered layers.
        norm: √ Σ ‖ΔW‖²_F over its adapted linear layers, with ΔW = scaling · B A.
        relative: norm / √ Σ ‖W‖²_F over the same layers' frozen weights.
    """

    layer: int
    norm: float
    relative: float


class WeightUpdate(TypedDict):
    """How far tuning moved the weights.

    Attributes:
        update_norm: √ Σ ‖ΔW‖²_F over all adapted linear layers.
        relative_update_norm: update_norm / √ Σ ‖W‖²_F over the same layers.
        layers: in their order, adapted ones only.
    """

    update_norm: float
    relative_update_norm: float
    layers: list[LayerUpdate]


class Perplexity(TypedDict):
    """exp of the mean next-token loss (nats) on unlabelled prompts: template and texts, no answer.

    Attributes:
        before: of the untouched model.
        after: of the tuned one.
        tokens: that were predicted; all of the prompts of up to `PERPLEXITY_ROWS` validation rows
            but the first of each. The same rows for all cells.
    """

    before: float
    after: float
    tokens: int


class CellCost(TypedDict):
    """What a cell took on this machine; 0 or None for a control, which is not trained.

    Attributes:
        train_seconds: optimiser steps only, interruptions and validation not counted.
        train_rows_per_second: over these; None where nothing is trained by steps.
        steps: optimiser steps.
        epochs: passes over the rows that were made; `patience` may end a training early.
        rows, tokens: that training read, all epochs together, padding not counted; 0 tokens where a
            system has none. Missing in older records.
        trainable_parameters: numbers that training may change.
        parameters: numbers that the system computes with.
        peak_rss_mb: largest resident memory so far of the process that ran the cell, and maybe
            others before it, MiB; None for a control.
    """

    train_seconds: float
    train_rows_per_second: float | None
    steps: int
    epochs: float
    rows: NotRequired[int]
    tokens: NotRequired[int]
    trainable_parameters: int
    parameters: int
    peak_rss_mb: float | None


class CellMetrics(TypedDict):
    """Scores on the validation rows; None where the cell is not done.

    With `--refit`, of the training before it.
    """

    validation: Scores | None


class Cell(TypedDict):
    """One combination of settings.

    Attributes:
        name: of its folder.
        folder: relative to DIR. A cell whose `rung/` is kept there can answer: `llabel predict
            DIR/FOLDER/rung …`.
        settings: `AXES` and every other axis, by name. Those that decide nothing in this cell (r of
            a bag of words, epochs beside `max_steps`) are None.
        rung: the system.
        scaling: lora_alpha / r, or lora_alpha / √r with rsLoRA; None without LoRA.
        scaling_lr: scaling · lr; None without LoRA.
        status: `done`, `pruned` (the search gave it up) or `failed`.
        control: whether it is the untouched model (lora_alpha 0): read once for all such cells.
        reason: why it failed or was pruned, else "".
        metrics: see there.
        epoch_losses: validation log loss after each epoch; of a control none.
        curve: training loss as [step, epoch, loss], smoothed, at most some 200 points.
        weights, perplexity: None without LoRA, or where the cell is not done.
        cost: None where the cell failed.
        command: how to train it alone, or "" for a control.
    """

    name: str
    folder: str
    settings: dict[str, Any]
    rung: str
    scaling: float | None
    scaling_lr: float | None
    status: Status
    control: bool
    reason: str
    metrics: CellMetrics
    epoch_losses: list[float]
    curve: list[tuple[int, float, float]]
    weights: WeightUpdate | None
    perplexity: Perplexity | None
    cost: CellCost | None
    command: str


class NotWorse(TypedDict):
    """A setting that is not measurably worse than the best on the validation rows.

    Attributes:
        cell: of its seeds the one with the lowest validation log loss.
        cells: all its seeds.
        difference: its validation log loss less the best one's, nats, means over seeds.
        ci95: the difference's interval: over rows, or groups, and seeds.
        p_value: two-sided, Holm-corrected over all settings that are compared with the best.
    """

    cell: str
    cells: list[str]
    difference: float
    ci95: list[float]
    p_value: float


class Chosen(TypedDict):
    """The choice, made on the validation rows.

    Attributes:
        cell: the one with the lowest validation log loss; with several seeds, of the setting whose
            mean over them is the lowest.
        cells: all seeds of that setting.
        metrics: `validation`: the setting's scores, means over its seeds, with intervals.
        recommended: the cheapest of the best and those not measurably worse; a cell of it.
        not_worse: the others that are not measurably worse, by difference.
        rule: how all this was decided, in words.
    """

    cell: str
    cells: list[str]
    metrics: "ChosenMetrics"
    recommended: str
    not_worse: list[NotWorse]
    rule: str


class ChosenMetrics(TypedDict):
    """See `Chosen`."""

    validation: ComparedScores


class TestMetrics(TypedDict):
    """On the test rows; `test_unseen`: those that share no long text with train or validation."""

    test: Scores
    test_unseen: Scores | None


class Test(TypedDict):
    """The test part, read once, for the chosen cell.

    Attributes:
        cell: which one.
        metrics: see there.
        earlier: cells that were chosen, and tested, before the sweep was extended.
    """

    cell: str
    metrics: TestMetrics
    earlier: list[str]


class SweepRecord(TypedDict):
    """The whole of `sweep.json`.

    Attributes:
        schema: `SCHEMA`.
        title: of the page.
        command, environment: as in run.json; `device` and `precision` are those of all cells that
            are done, with commas where they differ.
        config: settings that all cells share which read them, one level as in run.json; `lr` is
            `learning_rate` there.
        data: as in run.json; `truncated` is the chosen cell's, empty where that is not known.
        axes: settings with several listed values, by the names that `Cell.settings` uses.
        search: None for a full grid.
        cells: in the order of the axes; of a search in the order of its trials.
        chosen: None where no cell is done, or some are still to come.
        effects: `llabel.statistics.effects.Effects` as a dict (`dataclasses.asdict`), of the
            validation log loss: `analyse([cell settings], [log loss, or None where not done],
            scaling_lr=[cell scaling_lr], control=[cell control])`.
        test: None where nothing is chosen.
        unfinished: how many cells are still to come; left out of a sweep that has ended. `cells`
            are then those that have.
        prior_log_loss: validation log loss of answering every row with the training rows' class
            shares: what is reached without reading the text.
    """

    schema: int
    title: str
    command: str
    environment: dict[str, Any]
    config: dict[str, Any]
    data: Data
    axes: dict[str, list[Any]]
    search: Search | None
    cells: list[Cell]
    chosen: Chosen | None
    effects: Any
    test: Test | None
    unfinished: NotRequired[int]
    prior_log_loss: NotRequired[float]
