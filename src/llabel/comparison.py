"""`compare.json`: the one record of a comparison. The table and the page read this, nothing else.

Keys are added, never renamed; `schema` counts changes that readers must know of. Probabilities,
accuracies and shares are 0..1; losses are nats; intervals are [lower, upper] at 95 %.
"""

from typing import Any, NotRequired, TypedDict

from llabel.confidence import Abstention, Calibration, CoveragePoint
from llabel.record import Baseline, Data, FreeAnswers

SCHEMA = 1


class ComparedScores(TypedDict):
    """Scores on one set of rows; with several seeds their mean.

    Attributes:
        rows: how many.
        accuracy, macro_f1, log_loss, ece: see `llabel.metrics.Scores`.
        accuracy_ci95: Wilson's for one seed and rows without groups, else the bootstrap's over
            rows or groups, and seeds.
        macro_f1_ci95, log_loss_ci95, ece_ci95: the bootstrap's.
    """

    rows: int
    accuracy: float
    accuracy_ci95: list[float]
    macro_f1: float
    macro_f1_ci95: list[float]
    log_loss: float
    log_loss_ci95: list[float]
    ece: float
    ece_ci95: list[float]


class ComparedMetrics(TypedDict):
    """By part, as in run.json; `test_unseen` is None where no test row is unseen."""

    validation: ComparedScores
    test: ComparedScores
    test_unseen: ComparedScores | None


class ComparedCost(TypedDict):
    """What a rung takes on this machine; of the first seed.

    Attributes:
        train_seconds: of the kept training; with refit of the choosing one, too.
        search_seconds: of all trials (and the refit) together.
        ms_per_text_single: median time to answer one text alone, milliseconds.
        ms_per_text_bulk: mean time a text when all test rows are answered, milliseconds.
        trainable_parameters, parameters: numbers training changed; numbers the rung computes with.
        disk_mb: size of the files that are needed to predict, a base model included, MiB.
        peak_rss_mb: largest resident memory of the rung's process, MiB.
        peak_gpu_mb: largest GPU memory, MiB; None on the CPU.
        weights_mb: memory of a language model's weights, as in run.json: what 4 bits save; None for
            other rungs. Comparisons recorded before it was kept lack it.
    """

    train_seconds: float
    search_seconds: float
    ms_per_text_single: float | None
    ms_per_text_bulk: float
    trainable_parameters: int
    parameters: int
    disk_mb: float | None
    peak_rss_mb: float
    peak_gpu_mb: float | None
    weights_mb: NotRequired[float | None]


class TrialRecord(TypedDict):
    """One training of the search.

    Attributes:
        settings: what was tried, by name.
        validation_loss: of its best epoch.
        epoch_losses: validation log loss after each epoch.
        epochs: of the best.
        seconds: of training.
        stopped: `epochs`, `patience`, `budget`, `diverged` or `converged`.
        chosen: whether this one was kept.
    """

    settings: dict[str, Any]
    validation_loss: float | None
    epoch_losses: list[float]
    epochs: float
    seconds: float
    stopped: str
    chosen: bool


class LossCurve(TypedDict):
    """Training loss of the kept training over its steps, thinned; `epoch` counts with fractions."""

    epoch: list[float]
    loss: list[float]


class ReliabilityBin(TypedDict):
    """Test rows whose top probability lies in (low, high]; `rows` is 0 where there are none."""

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


class ComparedRung(TypedDict):
    """One rung's row.

    Attributes:
        name: of the rung.
        status: `done` or `failed`; all below but `reason` is empty or None when it failed.
        reason: why it failed, else "".
        control: whether it can be no answer to a real task (look-up).
        folder: its run folder, relative to DIR; `llabel predict DIR/FOLDER …` uses it.
        seeds: of its runs, one a training: of several seeds, or of several draws of the rows.
        settings: everything that decides it (as in run.json's `training.settings`).
        metrics, cost: see there.
        seed_accuracies: test accuracy of each training, on the rows that it was asked.
        p_value_vs_best: paired test against the best rung, Holm-corrected over the rungs that are
            compared with it; None for the best.
        difference_vs_best, difference_vs_best_ci95: accuracy less the best one's, test rows.
        trials: of the first seed.
        losses: None for rungs without steps.
        report: rows of the classification report (`llabel.metrics.ReportRow`), first seed, all
            draws.
        confusion: (n_classes + 1 columns: `unknown` last) test rows by true class (row) and
            answer (column), first seed, all draws.
        reliability: bins of the top probability on the test rows, first seed, all draws.
        coverage: accuracy of the surest answers on the test rows, from few rows to all (see
            `llabel.confidence.coverage_curve`), first seed, all draws; comparisons recorded before
            there were any lack this and the next three.
        calibration, abstention, free_answers: as in run.json, first seed or draw.
        lookup_part: how much of its gain over the majority class is there only on rows that
            share a text with training: gain on all rows less gain on unseen rows, in accuracy.
        note: what a reader must know, or "".
        command: how to run this rung alone.
    """

    name: str
    status: str
    reason: str
    control: bool
    folder: str
    seeds: list[int]
    settings: dict[str, Any]
    metrics: ComparedMetrics | None
    cost: ComparedCost | None
    seed_accuracies: list[float]
    p_value_vs_best: float | None
    difference_vs_best: float | None
    difference_vs_best_ci95: list[float] | None
    trials: list[TrialRecord]
    losses: LossCurve | None
    report: list[Any]
    confusion: list[list[int]]
    reliability: list[ReliabilityBin]
    coverage: NotRequired[list[CoveragePoint]]
    calibration: NotRequired[Calibration | None]
    abstention: NotRequired[Abstention | None]
    free_answers: NotRequired[FreeAnswers | None]
    lookup_part: float | None
    note: str
    command: str


class PairRecord(TypedDict):
    """Two rungs on the same test rows.

    Attributes:
        a, b: rungs.
        difference: accuracy of a less b; `ci95` its interval.
        p_value: two-sided; `p_value_holm` corrected for all pairs of the table.
        test: `mcnemar` (exact) or `bootstrap`.
    """

    a: str
    b: str
    difference: float
    ci95: list[float]
    p_value: float
    p_value_holm: float
    test: str


class CurvePoint(TypedDict):
    """One rung at one training size; accuracy is on the validation rows: test is read once."""

    rung: str
    train_rows: int
    accuracy: float
    accuracy_ci95: list[float]
    log_loss: float


class RowAnswer(TypedDict):
    """What a rung answered on a row, and the probability it gave that answer."""

    rung: str
    answer: Any
    probability: float


class ErrorRow(TypedDict):
    """A test row worth looking at; `text` is None with `--no-texts`, and cut where it is long.

    Attributes:
        id: where it stands in the data.
        label: in the data.
        text: by field.
        answers: of the rungs, the best first.
    """

    id: str
    label: Any
    text: dict[str, str] | None
    answers: list[RowAnswer]


class ErrorAnalysis(TypedDict):
    """Rows to read, each list at most 20 long; `*_count` says how many there are.

    Attributes:
        all_wrong: no (trained or prompted) rung gets them right, the surest first: probably
            mislabelled.
        only_llm: the best LLM rung is right and every simpler rung wrong.
        only_simpler: the LLM is wrong and most simpler rungs are right.
        most_confident: errors of the best rung, the surest first.
    """

    all_wrong: list[ErrorRow]
    all_wrong_count: int
    only_llm: list[ErrorRow]
    only_llm_count: int
    only_simpler: list[ErrorRow]
    only_simpler_count: int
    most_confident: list[ErrorRow]
    most_confident_count: int
    llm: str | None
    best: str


class VerdictRecord(TypedDict):
    """What to use, and why.

    Attributes:
        kind: see `llabel.verdict`.
        choose: name of the rung, or None where none can be recommended.
        reason: one or two sentences.
        best: the best rung by validation.
        margin: what counts as no worse, in accuracy.
        rows_used: `test` or `test_unseen`: the rows the decision rests on.
        rows_needed: about how many test rows would settle it, where it is open.
    """

    kind: str
    choose: str | None
    reason: str
    best: str | None
    margin: float
    rows_used: str
    rows_needed: int | None


class Draw(TypedDict):
    """One of several random draws of the rows, with its own comparison.

    Attributes:
        split_seed: that decided it.
        seed: of what was trained on it.
        fingerprint: of its rows.
        folder: of its comparison, relative to DIR.
    """

    split_seed: int
    seed: int
    fingerprint: str
    folder: str


class ComparedData(Data):
    """Data facts, with what the page tells of them.

    With several draws, the test rows are those of all together, one after the other; training and
    validation rows, notes and fingerprint are those of the first.

    Attributes:
        name: short name of the data.
        class_counts: rows of each class (in class order) by part.
        unseen_test_rows: test rows none of whose long texts occurs in train or validation.
        test_groups: groups in the test part, or None; with several draws and no groups, how many
            different rows were tested.
    """

    name: str
    class_counts: dict[str, list[int]]
    unseen_test_rows: int
    test_groups: int | None


class CompareRecord(TypedDict):
    """The whole of `compare.json`.

    Attributes:
        schema: `SCHEMA`.
        title: of the page.
        data, verdict, errors: see there.
        draws: of the rows, where there are several; else empty. Scores are then means over them.
        rungs: in order of cost.
        pairs: every pair of rungs that are done, for the first p values with Holm's correction.
        curve: learning curve, empty without `--curve`.
        baselines: majority and look-up as in run.json.
        settings: of the comparison (trials, budget, seeds, margin, refit, no_texts …).
        environment, command: as in run.json.
    """

    schema: int
    title: str
    data: ComparedData
    verdict: VerdictRecord
    draws: list[Draw]
    rungs: list[ComparedRung]
    pairs: list[PairRecord]
    curve: list[CurvePoint]
    errors: ErrorAnalysis | None
    baselines: dict[str, Baseline]
    settings: dict[str, Any]
    environment: dict[str, Any]
    command: str
