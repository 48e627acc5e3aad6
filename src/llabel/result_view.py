"""Scores, reports and assets as Rich tables for the terminal."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llabel.assets import AssetStatus
from llabel.card import (
    answered_told,
    baseline_name,
    intervals_told,
    knowledge,
    over_groups,
    scored_parts,
    told,
)
from llabel.confidence import Answered
from llabel.config import option
from llabel.data.cells import printable
from llabel.metrics import ReportRow, Scores
from llabel.numbers import duration
from llabel.record import (
    Baseline,
    Cost,
    FreeAnswers,
    JointRecord,
    RunRecord,
    Training,
    TrainingSummary,
    target_records,
)

_SCORES = ("rows", "accuracy", "95 % interval", "macro-F1", "log loss", "ECE")


def render_run(record: RunRecord | JointRecord, out: Path) -> RenderableType:
    """A finished run: scores of every part, what it is to be compared with, cost, folder."""
    title = f"{record['rung']} on {record['data']['source']}"
    targets = target_records(record) or {"": cast(RunRecord, record)}
    parts = [
        part
        for name, own in targets.items()
        for part in _scored(own, f"{title}: {name}" if name else title)
    ]
    lines = [_cost(record), *summary(record["training"].get("summary"))]
    if record["model_note"]:
        lines.append(f"About the base model: {record['model_note']}.")
    lines.append(f"Everything about this run is in {out}; README.md tells it in words.")
    return Group(*parts, *map(Text, lines))


def _scored(record: RunRecord, title: str) -> list[RenderableType]:
    """The scores of one target, its report, and what there is to say of them."""
    test = record["metrics"]["test"]
    table = _scores_table(title)
    for name, scores in scored_parts(record):
        _add(table, name, scores, style="bold" if scores is test else "")
    table.add_section()
    if test:
        for name, baseline in record["baselines"].items():
            _add_baseline(table, baseline_name(name, baseline), baseline, test["rows"])
    report: list[RenderableType] = []
    if record["report"]:
        report = [_report(record["report"]), Text()]
    intervals = [intervals_told(record)] if over_groups(record) else []
    return [table, Text(), *report, *map(Text, [*intervals, *told(record)])]


def render_evaluation(
    name: str,
    scores: Scores,
    report: Iterable[ReportRow],
    free: FreeAnswers | None = None,
    answered: Answered | None = None,
) -> RenderableType:
    """Scores on other rows, the classification report, and what answers were withheld or free."""
    table = _scores_table(name)
    _add(table, "all rows, free answers" if free else "all rows", scores)
    lines = []
    if free:
        _add(table, "all rows, most probable label", free["constrained"])
        lines.append(knowledge(free))
    if answered:
        lines.append(answered_told(answered, "labelled"))
    spaced = [Text(), *map(Text, lines)] if lines else []
    return Group(table, Text(), _report(report), *spaced)


def render_assets(found: Sequence[AssetStatus], cache: Path) -> RenderableType:
    """Built-in models and data sets, and which of them are here."""
    table = Table(title="Built-in assets", title_justify="left", title_style="bold")
    for name in ("name", "kind", "what", "licence"):
        table.add_column(name)
    table.add_column("download", justify="right")
    table.add_column("cached")
    lines = []
    for status in found:
        asset = status.asset
        here = f"yes, {_size(status.disk_bytes)}" if status.cached else "no"
        cells = (asset.name, asset.kind, asset.description, asset.licence)
        table.add_row(*map(Text, cells), _size(asset.download_bytes), here)
        note = f" ({asset.note})" if asset.note else ""
        lines.append(Text(f"{asset.name}: {asset.source}{note}", overflow="fold"))
    lines.append(Text(f"The cache is {cache}; LLABEL_CACHE names another folder."))
    return Group(table, *lines)


def _scores_table(title: str) -> Table:
    """All numbers fit whole into 80 columns; long names of parts are folded instead."""
    table = Table(
        title=Text(printable(title)),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("part", overflow="fold")
    for name in _SCORES:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _add(table: Table, name: str, scores: Scores, style: str = "") -> None:
    low, high = scores["accuracy_ci95"]
    rest = (f"{scores[key]:.4f}" for key in ("macro_f1", "log_loss", "ece"))
    table.add_row(
        Text(printable(name)),
        f"{scores['rows']:,}",
        f"{scores['accuracy']:.4f}",
        f"{low:.4f}–{high:.4f}",
        *rest,
        style=style,
    )


def _add_baseline(table: Table, name: str, baseline: Baseline, rows: int) -> None:
    low, high = baseline["accuracy_ci95"]
    cells = (f"{rows:,}", f"{baseline['accuracy']:.4f}", f"{low:.4f}–{high:.4f}")
    table.add_row(Text(printable(name)), *cells, style="dim")


def _cost(record: RunRecord | JointRecord) -> str:
    cost, training = record["cost"], record["training"]
    said = []
    if cost["trainable_parameters"]:
        said.append(
            f"Trained {cost['trainable_parameters']:,} weights{_epochs(training)}"
            f"{' and trained anew on train + validation' if training['refit'] else ''} in "
            f"{duration(cost['train_seconds'])}{_speed(cost)}"
        )
    trials = training.get("trials", [])
    chosen = next((trial for trial in trials if trial["chosen"]), {})
    if chosen.get("stopped") == "diverged":
        said.append("it diverged later, and its best epoch is kept")
    if training.get("refit_diverged"):
        said.append("training anew on train + validation diverged, and is not kept")
    if len(trials) > 1:
        value = ", ".join(f"{option(k)[2:]} {v:.3g}" for k, v in chosen["settings"].items())
        said.append(f"best of {len(trials)} trials: {value}")
    said.append(f"predicts {cost['predict_rows_per_second']:,.1f} rows/s")
    said.append(f"peak memory {cost['peak_rss_mb'] / 1024:.1f} GiB")
    text = "; ".join(said) + "."
    return text[0].upper() + text[1:]


def summary(found: TrainingSummary | None) -> Iterator[str]:
    """The line that Hugging Face's Trainer ends with, of a training by steps."""
    if found is None:
        return
    loss, flops = found["training_loss"], found["total_flos"]
    said = [
        f"{found['global_steps']:,} steps",
        *([] if loss is None else [f"mean loss {loss:.4f}"]),
        f"{found['runtime']:.1f} s",
        f"{found['samples_per_second']:.2f} rows/s",
        f"{found['steps_per_second']:.3f} steps/s",
        *([] if flops is None else [f"{flops:.3g} FLOPs"]),
        f"{found['epoch']:.2f} epochs",
    ]
    yield f"Training: {', '.join(said)}."


def _epochs(training: Training) -> str:
    epochs = training["epochs"]
    if any("C" in trial["settings"] for trial in training.get("trials", [])):
        return ""  # a solver's iterations are nobody's epochs
    return f" for {epochs:g} epoch{'s' if epochs > 1 else ''}" if epochs else ""


def _speed(cost: Cost) -> str:
    rows, tokens = cost["train_rows_per_second"], cost["train_tokens_per_second"]
    return f" ({rows:,.1f} rows/s, {tokens:,.0f} tokens/s)" if rows and tokens else ""


def _report(report: Iterable[ReportRow]) -> Table:
    """Intervals are of two digits, so that all fits into 80 columns."""
    table = Table(
        title="By class",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("class", overflow="fold")
    for name in ("precision", "95 % int.", "recall", "95 % int.", "F1", "rows", "answered"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _with_gap(report, table):
        table.add_row(
            Text(printable(row["name"]), style="" if row["kind"] == "class" else "italic"),
            *_measure(row["precision"], row.get("precision_ci95")),
            *_measure(row["recall"], row.get("recall_ci95")),
            f"{row['f1']:.4f}",
            f"{row['support']:,}",
            f"{row['predicted']:,}",
        )
    return table


def _measure(value: float | None, interval: Sequence[float] | None) -> tuple[str, str]:
    return (
        "" if value is None else f"{value:.4f}",
        "" if interval is None else f"{interval[0]:.2f}–{interval[1]:.2f}",
    )


def _with_gap(report: Iterable[ReportRow], table: Table) -> Iterator[ReportRow]:
    """The rows, with a rule between the classes and the means over them."""
    for row in report:
        if row["kind"] == "accuracy":
            table.add_section()
        yield row


def _size(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
