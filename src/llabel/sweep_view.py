"""A sweep as a Rich table and a few sentences for the terminal."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llabel.config import option
from llabel.data.cells import printable
from llabel.numbers import duration
from llabel.rung_settings import UNTOUCHED
from llabel.sweep_record import Cell, Chosen, SweepRecord, Test

SHOWN = 30  # rows of the table; the page has all


def render_sweep(record: SweepRecord, out: Path) -> RenderableType:
    """The cells, the choice, and where the page is."""
    lines = [Text()]
    for cell in record["cells"]:
        if cell["status"] == "failed":
            reason = printable(cell["reason"])
            lines.append(Text(f"{cell['name']} failed: {reason}", style="red"))
    if (chosen := record["chosen"]) is not None:
        lines += _choice(chosen, record, out)
    page = (out / "report.html").resolve()
    lines.append(Text(f"The page: {page}", style="bold", overflow="fold"))
    return Group(_table(record), *lines)


def _table(record: SweepRecord) -> Table:
    rows = record["data"]["rows"]
    # Of a sweep over the rows, the record tells those of its first cells only.
    learned = (
        f"learned from {rows['train']:,} rows; " if "train_rows" not in _varied(record) else ""
    )
    table = Table(
        title=Text(
            f"{printable(record['title'])}: {learned}"
            f"scores on {rows['validation']:,} validation rows"
        ),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    names = _varied(record)
    for name in names:
        table.add_column(name.replace("lora_", ""), justify="right", overflow="fold")
    for name in ("scaling·lr", "log loss", "accuracy", "moved", "perplexity", "training"):
        table.add_column(name, justify="right", no_wrap=True)
    ranked = sorted(record["cells"], key=_loss)
    for cell in ranked[:SHOWN]:
        _add(table, cell, names, record["chosen"])
    if len(ranked) > SHOWN:
        table.add_row(f"… {len(ranked) - SHOWN} more")
    return table


def _varied(record: SweepRecord) -> list[str]:
    ranges = record["search"]["ranges"] if record["search"] else {}
    return [*record["axes"], *ranges]


def _loss(cell: Cell) -> tuple[bool, float]:
    scores = cell["metrics"]["validation"]
    return scores is None, scores["log_loss"] if scores else 0.0


def _add(table: Table, cell: Cell, names: list[str], chosen: Chosen | None) -> None:
    best = chosen is not None and cell["name"] in chosen["cells"]
    shown = [_shown(cell["settings"].get(name)) for name in names]
    shown[0] = ("→ " if best else "") + shown[0]
    settings = [Text(printable(value)) for value in shown]  # a column's name may look like markup
    scores, cost = cell["metrics"]["validation"], cell["cost"]
    weights, known = cell["weights"], cell["perplexity"]
    scaled = cell["scaling_lr"]
    if scores is None:
        table.add_row(*settings, _number(scaled), cell["status"], style="red" if
                      cell["status"] == "failed" else "dim")  # fmt: skip
        return
    table.add_row(
        *settings,
        _number(scaled),
        f"{scores['log_loss']:.4f}",
        f"{scores['accuracy']:.4f}",
        f"{weights['relative_update_norm']:.2%}" if weights else "–",
        f"{known['after']:.3g}" if known else "–",
        duration(cost["train_seconds"]) if cost and cost["train_seconds"] else "–",
        style="bold" if best else "dim" if cell["control"] else "",
    )


def _choice(chosen: Chosen, record: SweepRecord, out: Path) -> list[Text]:
    scores = chosen["metrics"]["validation"]
    low, high = scores["log_loss_ci95"]
    lines = [
        Text.assemble(
            ("Chosen: ", "bold"),
            f"{chosen['cell']}, validation log loss {scores['log_loss']:.4f} "
            f"({low:.4f}–{high:.4f}), accuracy {scores['accuracy']:.4f}.",
        )
    ]
    others = len(chosen["not_worse"])
    if chosen["recommended"] not in chosen["cells"]:
        cheaper = f"{chosen['recommended']} is cheaper and not measurably worse"
        lines.append(Text.assemble(("Recommended: ", "bold"), f"{cheaper} ({others} are not)."))
    elif others:
        lines.append(Text(f"{others} other settings are not measurably worse; none is cheaper."))
    if (test := record["test"]) is not None:
        lines.append(_tested(test))
    cell = next(cell for cell in record["cells"] if cell["name"] == chosen["recommended"])
    if cell["control"]:
        lines.append(Text(_untouched(cell, record), overflow="fold"))
    else:
        place = out / cell["folder"] / "rung"
        lines.append(Text(f"Use it: llabel predict {place} DATA -o FILE", overflow="fold"))
    return lines


def _untouched(cell: Cell, record: SweepRecord) -> str:
    """How to use a model that no training made better; where there were several, which."""
    own = {name: cell["settings"].get(name) for name in _varied(record) if name in UNTOUCHED}
    told = "".join(f" {option(n)} {printable(_shown(v))}" for n, v in own.items() if v is not None)
    return (
        "That is the untouched model: no training is measurably better "
        f"(llabel fit DATA --rung llm-zero-shot{told} … --out FOLDER)."
    )


def _tested(test: Test) -> Text:
    scores = test["metrics"]["test"]
    low, high = scores["accuracy_ci95"]
    return Text.assemble(
        ("Test: ", "bold"),
        f"{test['cell']} has accuracy {scores['accuracy']:.4f} ({low:.4f}–{high:.4f}), "
        f"log loss {scores['log_loss']:.4f} on {scores['rows']:,} rows.",
    )


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
