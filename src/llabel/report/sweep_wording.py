"""What the page of a sweep says in words: the verdict, its caveats, the answers to questions."""

from collections.abc import Iterator, Sequence
from typing import Any

from llabel import numbers
from llabel.report.sweep_cells import LOST, SEED, CellView, SweepView, shown
from llabel.statistics.correlation import Correlation
from llabel.sweep_record import NotWorse

MATTERS = 0.05  # a share of the variance that is worth a word
_EDGES = ("r", "lora_alpha", "lr", "epochs")


def headline(view: SweepView) -> str:
    """What to use, in a few words."""
    chosen = view.record["chosen"]
    if (left := view.record.get("unfinished")) is not None:
        return f"Not finished: {left} cell{' is' if left == 1 else 's are'} still to come"
    if chosen is None:
        return "No cell is done"
    best, recommended = view.cell(chosen["cell"]), view.cell(chosen["recommended"])
    if best.row["control"]:
        return f"No training beats {setting(view, best)}"
    if recommended.row["control"]:
        return f"No training is measurably better than {setting(view, recommended)}"
    return f"Use {setting(view, recommended)}"


def setting(view: SweepView, cell: CellView) -> str:
    """A cell's settings but the seed."""
    if cell.row["control"]:
        return f"the {view.untouched(cell.row['settings'])}"
    return view.label(cell.row["settings"], [name for name in view.varied if name != SEED])


def reason(view: SweepView) -> str:
    """The verdict in a few sentences."""
    chosen = view.record["chosen"]
    if view.record.get("unfinished") is not None:
        lowest = f" Best so far: {_lowest(view)}." if view.ranked else ""
        return (
            f"{len(view.cells)} ended.{lowest} The choice is made, and the test part read, once "
            "all have; the same command goes on."
        )
    if chosen is None:
        return "All cells failed or were pruned: their reasons stand in the table of cells."
    scores = chosen["metrics"]["validation"]
    seeds = len(chosen["cells"])
    best, recommended = view.cell(chosen["cell"]), view.cell(chosen["recommended"])
    mean = f", mean of {seeds} seeds" if seeds > 1 and not best.row["control"] else ""
    told = (
        f"Best of {len(view.compared)} settings on the {numbers.count(scores['rows'])} validation "
        f"rows: {setting(view, best)}, log loss {numbers.score(scores['log_loss'])} (95 % interval "
        f"{numbers.interval(scores['log_loss_ci95'])}), accuracy "
        f"{numbers.score(scores['accuracy'])}{mean}."
    )
    near = chosen["not_worse"]
    if not near:
        return told if len(view.compared) == 1 else f"{told} All others are measurably worse."
    others = f"{len(near)} other setting{'s are' if len(near) > 1 else ' is'} not measurably worse"
    own = _recommended(view)
    if own is None:
        return f"{told} {others}, but none of them is cheaper."
    return (
        f"{told} {others}; the cheapest is {setting(view, recommended)} (difference "
        f"{numbers.signed(own['difference'])}, 95 % interval "
        f"{numbers.signed_interval(own['ci95'])})."
    )


def _lowest(view: SweepView) -> str:
    first = view.ranked[0]
    return f"{first.label}, validation log loss {numbers.score(first.loss)}"


def _recommended(view: SweepView) -> NotWorse | None:
    """The recommended setting against the best, where it is another."""
    chosen = view.record["chosen"]
    entries = chosen["not_worse"] if chosen else []
    names = view.recommended_cells
    return next((entry for entry in entries if set(entry["cells"]) & set(names)), None)


def caveats(view: SweepView) -> Iterator[str]:
    """What keeps the verdict from being more than it is."""
    record, chosen = view.record, view.record["chosen"]
    lost = [cell for cell in view.cells if cell.row["status"] != "done"]
    if lost and chosen:
        yield f"{_counted(lost)} of {len(view.cells)} cells: nothing is known of them."
    if chosen is None:
        return
    left_out = [s.label for s in view.ranked if s not in view.compared]
    if left_out:
        yield f"Not compared, as not all of their seeds are done: {'; '.join(left_out)}."
    best = view.cell(chosen["cell"])
    own = _recommended(view)
    if own and own["ci95"][1] > 0:
        yield (
            "The rows do not rule out that the recommended setting’s log loss is up to "
            f"{numbers.score(own['ci95'][1])} higher than the best one’s."
        )
    prior = record.get("prior_log_loss")
    if prior is not None and chosen["metrics"]["validation"]["log_loss_ci95"][1] >= prior:
        yield (
            f"Answering every row with the class shares gives {numbers.score(prior)}: the best is "
            "not shown to have learned more than these."
        )
    if not best.row["control"] and (edges := list(_edges(view, best))):
        yield f"The best has {' and '.join(edges)} of those tried: beyond may be better still."
    if "epochs" in view.varied and _of_epochs(view):
        stopped = record["config"].get("patience") is not None
        yield (
            "A training counts by its best epoch, so that more epochs can hardly look worse: the "
            "effect of epochs leans that way. “More epochs” tells what the last epochs came to"
            + ("; --patience none lets all trainings get there." if stopped else ".")
        )
    if len(view.values(SEED)) < 2 and view.trained:
        yield (
            "Each setting was trained once: intervals cover the choice of rows, not how trainings "
            "differ; --seeds 3 would."
        )


def _counted(cells: list[CellView]) -> str:
    counts = {status: sum(cell.row["status"] == status for cell in cells) for status in LOST}
    return " and ".join(f"{count} {name}" for name, count in counts.items() if count)


def _edges(view: SweepView, best: CellView) -> Iterator[str]:
    for name in _EDGES:
        values = [v for v in view.values(name) if v is not None and not (name != "r" and v == 0)]
        value = best.row["settings"].get(name)
        if len(values) > 2 and value in (values[0], values[-1]) and not view.record["search"]:
            which = "largest" if value == values[-1] else "smallest"
            yield f"the {which} {shown(name)} ({numbers.plain(value)})"


def together(found: Correlation | None, cells: str, what: str) -> str:
    """A rank correlation in words, or "" where there is none.

    Args:
        found: of what marks the cells with `what`.
        cells: which ones, as "Cells with larger updates".
        what: of the others' side, as "perplexity".
    """
    if found is None:
        return ""
    low, high = (numbers.correlation(bound) for bound in found.ci95)
    figures = (
        f"rank correlation {numbers.correlation(found.rho)}, 95 % interval {low} to {high}, "
        f"{found.n} cells"
    )
    if found.ci95[0] > 0:
        return f"{cells} have a higher {what} ({figures})."
    if found.ci95[1] < 0:
        return f"{cells} have a lower {what} ({figures})."
    return f"{cells} are not shown to have a higher or a lower {what} ({figures})."


def perplexity_doubt(view: SweepView) -> str:
    """What a perplexity on texts that were learned from cannot tell, where some were; else ""."""
    losses = {view.record["config"].get("loss"), *view.record["axes"].get("loss", ())}
    if "all" not in losses:
        return ""
    return (
        " With --loss all such prompts are trained on, too: perplexity then tends to fall, and "
        "that it does not rise is no sign that nothing was damaged."
    )


def epochs_answer(view: SweepView) -> str:
    """Whether more than one epoch helped, within trainings."""
    cells = _of_epochs(view)
    if not cells:
        return ""
    first = sum(cell.row["epoch_losses"][0] <= min(cell.row["epoch_losses"]) for cell in cells)
    last = sum(cell.row["epoch_losses"][-1] <= min(cell.row["epoch_losses"]) for cell in cells)
    return (
        f"Of {len(cells)} trainings of more than one epoch, the validation log loss was lowest "
        f"after the first epoch in {first}, after the last in {last}. Means after the best epoch, "
        f"which is the one that counts, and after the last one made: {_best_and_last(cells)}."
    )


def _of_epochs(view: SweepView) -> list[CellView]:
    """Trainings that made more than one epoch."""
    return [cell for cell in view.trained if len(cell.row["epoch_losses"]) > 1]


def _best_and_last(cells: Sequence[CellView]) -> str:
    """Mean losses, by how many epochs were asked for; None is where something else decided."""
    groups: dict[Any, list[list[float]]] = {}
    for cell in cells:
        groups.setdefault(cell.row["settings"]["epochs"], []).append(cell.row["epoch_losses"])
    told = []
    for epochs, runs in sorted(groups.items(), key=lambda group: (group[0] is None, group)):
        best, last = sum(map(min, runs)) / len(runs), sum(run[-1] for run in runs) / len(runs)
        asked = "others" if epochs is None else f"epochs {epochs}"
        named = f" ({asked})" if len(groups) > 1 else ""
        told.append(f"{numbers.score(best)} and {numbers.score(last)}{named}")
    return ", ".join(told)
