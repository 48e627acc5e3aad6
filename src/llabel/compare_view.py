"""A comparison as a Rich table and a sentence for the terminal."""

from pathlib import Path
from statistics import stdev

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llabel.comparison import ComparedRung, CompareRecord
from llabel.data.cells import printable
from llabel.numbers import duration, milliseconds, p_value


def render_comparison(record: CompareRecord, out: Path) -> RenderableType:
    """Every rung's row, the verdict, and where the page is."""
    verdict = record["verdict"]
    lines = [Text()]
    for rung in record["rungs"]:
        if rung["status"] == "failed":
            lines.append(Text(f"{rung['name']} failed: {rung['reason']}", style="red"))
    lines.append(Text.assemble(("Verdict: ", "bold"), verdict["reason"]))
    page = (out / "report.html").resolve()
    lines.append(Text(f"The page: {page}", style="bold", overflow="fold"))
    return Group(_table(record), *lines)


def _table(record: CompareRecord) -> Table:
    data = record["data"]
    table = Table(
        title=Text(printable(_title(record))),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    unseen = data["unseen_test_rows"]
    leaks = 0 < unseen < data["rows"]["test"]
    table.add_column("rung", overflow="fold")
    names = [f"all {data['rows']['test']:,}", "95 % interval"]
    names += ["sd"] if _several(record) else []
    names += [f"{unseen:,} unseen"] if leaks else []
    names += ["macro-F1", "log loss", "p, best", "training", "ms/text"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for rung in record["rungs"]:
        _add(table, rung, record, leaks=leaks)
    return table


def _title(record: CompareRecord) -> str:
    rows = record["data"]["rows"]
    learned = f"{rows['train']:,} training rows"
    if record["settings"]["refit"]:
        learned = f"{rows['train'] + rows['validation']:,} rows of train + validation"
    draws = record["draws"]
    means = f", means over {len(draws)} random draws" if draws else ""
    target = f", {named}" if (named := record["settings"].get("target")) else ""
    return f"{record['data']['name']}{target}: learned from {learned}; accuracy on test rows{means}"


def _add(table: Table, rung: ComparedRung, record: CompareRecord, *, leaks: bool) -> None:
    metrics, cost, verdict = rung["metrics"], rung["cost"], record["verdict"]
    if metrics is None or cost is None:
        table.add_row(Text(rung["name"]), "failed", style="red")
        return
    test, unseen = metrics["test"], metrics["test_unseen"]
    low, high = test["accuracy_ci95"]
    cells = [f"{test['accuracy']:.4f}", f"{low:.4f}–{high:.4f}"]
    if _several(record):
        each = rung["seed_accuracies"]
        cells.append(f"{stdev(each):.4f}" if len(each) > 1 else "")
    if leaks:
        cells.append(f"{unseen['accuracy']:.4f}" if unseen else "")
    p = rung["p_value_vs_best"]
    cells += [
        f"{test['macro_f1']:.4f}",
        f"{test['log_loss']:.4f}",
        "best" if rung["name"] == verdict["best"] else "" if p is None else p_value(p),
        duration(cost["search_seconds"]) if cost["search_seconds"] else "–",
        milliseconds(cost["ms_per_text_bulk"]),
    ]
    chosen = rung["name"] == verdict["choose"]
    mark = "→ " if chosen else ""
    style = "bold" if chosen else "dim" if rung["control"] else ""
    table.add_row(Text(mark + rung["name"]), *cells, style=style)


def _several(record: CompareRecord) -> bool:
    """Whether any rung was trained more than once, so that its accuracy has a spread."""
    return any(len(rung["seed_accuracies"]) > 1 for rung in record["rungs"])
