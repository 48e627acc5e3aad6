"""`check`'s report as Rich tables for the terminal."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text as RichText

from llabel.check.estimate import RunEstimate
from llabel.check.report import CheckReport, Conflict, FieldOverlap, Repeats, TokenLengths
from llabel.data.cells import printable
from llabel.numbers import duration

MAX_CLASSES = 50  # rows of the class table; more would push the warnings off the screen


def render(report: CheckReport) -> RenderableType:
    """Lay the report out for a terminal: tables first, warnings last, where they are read."""
    parts: list[RenderableType] = [_classes(report)]
    if report.tokens:
        parts.append(_tokens(report.tokens, report.max_length))
    parts += [
        _repeats(report.repeats),
        _note("earlier: of a row in a part before (test: training or validation)"),
    ]
    if report.overlap:
        parts.append(_overlap(report.overlap))
    if report.conflicts:
        parts.append(_conflicts(report.conflicts, report.conflicting_rows))
    if report.estimate:
        parts += [_estimate(report.estimate), _note(report.estimate.basis)]
    parts.append(_warnings(report.warnings))
    return Group(*parts)


def _table(title: str, first: str, *numbers: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _plain(text: str) -> str:
    """Text from the data: neither Rich's markup nor what a terminal obeys has an effect."""
    return escape(printable(text))


def _note(text: str) -> RichText:
    return RichText(text, style="dim")


def _classes(report: CheckReport) -> Table:
    title = f"{_plain(report.name)}: {len(report.classes)} classes"
    table = _table(title, "class", "train", "validation", "test")
    for row in report.classes[:MAX_CLASSES]:
        table.add_row(_plain(row.label), f"{row.train:,}", f"{row.validation:,}", f"{row.test:,}")
    if len(report.classes) > MAX_CLASSES:
        table.add_row(f"and {len(report.classes) - MAX_CLASSES} more", "", "", "")
    columns = ("train", "validation", "test")
    totals = [sum(getattr(row, part) for row in report.classes) for part in columns]
    table.add_section()
    table.add_row("all", *(f"{total:,}" for total in totals))
    return table


def _tokens(tokens: Iterable[TokenLengths], max_length: int) -> Table:
    table = _table("Prompt tokens", "part", "p50", "p95", "max", f"over {max_length:,} (cut)")
    for row in tokens:
        table.add_row(
            row.part, f"{row.p50:,}", f"{row.p95:,}", f"{row.max:,}", f"{row.truncated:,}"
        )
    return table


def _repeats(repeats: Iterable[Repeats]) -> Table:
    table = _table(
        "Duplicate rows", "part", "exact within", "near within", "exact earlier", "near earlier"
    )
    for row in repeats:
        counts = (row.exact_within, row.near_within, row.exact_earlier, row.near_earlier)
        table.add_row(row.part, *(f"{count:,}" for count in counts))
    return table


def _overlap(overlap: Iterable[FieldOverlap]) -> Table:
    table = _table(
        "Same field value in an earlier part",
        "field",
        "part",
        "rows",
        "share",
        "look-up scores",
        "95 % interval",
        "on shared rows",
        "majority class",
    )
    for row in overlap:
        low, high = row.lookup_ci95
        table.add_row(
            _plain(row.field),
            row.part,
            f"{row.rows:,}",
            f"{row.share:.1%}",
            f"{row.lookup_accuracy:.4f}",
            f"{low:.4f}–{high:.4f}",
            "–" if row.shared_accuracy is None else f"{row.shared_accuracy:.4f}",
            f"{row.majority_accuracy:.4f}",
        )
    return table


def _conflicts(conflicts: Iterable[Conflict], rows: int) -> Table:
    table = _table(f"Same text, different labels: {rows:,} rows, such as", "rows and their labels")
    for conflict in conflicts:
        pairs = zip(conflict.ids, conflict.labels, strict=True)
        table.add_row(", ".join(_plain(f"{row} = {label}") for row, label in pairs))
    return table


def _estimate(estimate: RunEstimate) -> Table:
    table = _table("Estimate of a run here", "training", "predicting", "memory")
    table.add_row(
        duration(estimate.train_seconds),
        duration(estimate.predict_seconds),
        f"{estimate.peak_memory_mb / 1024:.1f} GiB",
    )
    return table


def _warnings(warnings: Iterable[str]) -> RenderableType:
    lines = [RichText(f"! {printable(warning)}", style="yellow") for warning in warnings]
    return Group(*lines) if lines else RichText("Nothing to warn about.", style="green")
