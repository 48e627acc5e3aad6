"""What the page of a sweep shows, worked out from `sweep.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llabel.report import sweep_figures as figures
from llabel.report import sweep_wording as wording
from llabel.report.page import render
from llabel.report.sweep_cells import CellView, Heat, Setting, SweepView, number, shown
from llabel.report.sweep_colours import groups_of, ramp_of
from llabel.report.sweep_plots import Estimate, power
from llabel.report.sweep_scaling import scaling_answer, steps_of
from llabel.statistics.correlation import Correlation, rank_correlation
from llabel.sweep_record import SweepRecord

SHOWN_SETTINGS = 10


@dataclass(frozen=True, slots=True)
class HeatCell:
    """A place of a heat map.

    Attributes:
        setting: None where none was asked for.
        shade: 0 (the reference, or worse) to 1 (the best).
        words: what stands below its loss.
        strong: whether it is framed.
    """

    setting: Setting | None
    shade: float
    words: str
    strong: bool


def render_sweep(record: SweepRecord) -> str:
    """Write a sweep as one self-contained HTML page.

    Args:
        record: the content of `sweep.json`.

    Returns:
        The page; identical records give identical pages.
    """
    view = SweepView(record)
    effects = record["effects"] or {}
    scaling_ramp = ramp_of(view.cells, lambda cell: cell.row["scaling"])
    step_ramp = ramp_of(view.cells, lambda cell: cell.row["scaling_lr"])
    groups = groups_of(view)
    scaling = effects.get("scaling")
    steps = steps_of(view)
    called = {step.key: step.name for step in steps}
    shares = _shares(effects)
    interaction = figures.interaction_of(view)
    return render(
        "sweep.html.j2",
        {
            "record": record,
            "view": view,
            "varied": ", ".join(map(shown, view.varied)),
            "headline": wording.headline(view),
            "reason": wording.reason(view),
            "caveats": list(wording.caveats(view)),
            "picked": _picked(view),
            "ranked": view.ranked,
            "shown_settings": SHOWN_SETTINGS,
            "heats": [(heat, _heat_rows(view, heat)) for heat in view.heats],
            "scaling_figures": figures.scaling_figures(view, groups, steps),
            "scaling_steps": steps,
            "called": called,
            "axis_figures": figures.axis_figures(view, groups) if record["search"] else [],
            "group_axis": shown(groups.axis),
            "group_keys": groups.keys(),
            "scaling_answer": scaling_answer(scaling, steps) if scaling else "",
            "models": [
                (" + ".join(called.get(name, shown(name)) for name in model["predictors"]), model)
                for model in (scaling["models"] if scaling else ())
            ],
            "others": ", ".join(map(shown, scaling["others"])) if scaling else "",
            "curve_figures": figures.curve_figures(view, scaling_ramp),
            "epoch_figures": figures.epoch_figures(view, scaling_ramp),
            "epochs_answer": wording.epochs_answer(view),
            "scaling_keys": scaling_ramp.keys(),
            "step_keys": step_ramp.keys(),
            "effects": effects,
            "shares": shares,
            "share_figure": figures.share_figure(shares) if shares else None,
            "level_figures": figures.level_figures(effects.get("levels") or []),
            "interaction": interaction,
            "interaction_figure": figures.interaction_figure(interaction) if interaction else None,
            "weight_figures": figures.weight_figures(view, groups),
            "layer_figure": figures.layer_figure(view, step_ramp),
            "moved": _moved(view),
            "perplexity_doubt": wording.perplexity_doubt(view),
            "ratio": figures.perplexity_ratio,
            "shown": shown,
            "power": power,
            "span": figures.span,
            "differences": _differences(view),
            "seeds": len(view.values("seed")),
        },
    )


def _picked(view: SweepView) -> list[tuple[CellView, str]]:
    """The best cell and the recommended one, with what they are."""
    chosen = view.record["chosen"]
    if chosen is None:
        return []
    names = dict.fromkeys((chosen["recommended"], chosen["cell"]))
    return [(view.cell(name), wording.setting(view, view.cell(name))) for name in names]


def _differences(view: SweepView) -> dict[str, Any]:
    """Against the best, by the name of any cell of a setting that is not measurably worse."""
    chosen = view.record["chosen"]
    found = chosen["not_worse"] if chosen else []
    return {name: entry for entry in found for name in entry["cells"]}


def _shares(effects: Mapping[str, Any]) -> list[Estimate]:
    """Terms of the analysis in words, and the noise."""
    found = []
    for effect in effects.get("effects", ()):
        name = " × ".join(map(shown, effect["axes"])) or "higher interactions"
        found.append(Estimate(name, effect["share"], *(effect["ci95"] or (None, None))))
    noise = effects.get("noise")
    if noise and noise["share"] is not None:
        name = "noise between trainings" if noise["replicated"] else "interaction and noise"
        found.append(Estimate(name, min(1.0, noise["share"]), *noise["ci95"]))
    return found


def _heat_rows(view: SweepView, heat: Heat) -> list[tuple[Any, list[HeatCell]]]:
    """Shades run from the best loss to the worst of the usual ones, the same in all maps."""
    losses = sorted(setting.loss for setting in view.ranked if setting.loss is not None)
    best, worst = (losses[0], losses[int(0.9 * (len(losses) - 1))]) if losses else (0.0, 0.0)

    def cell(setting: Setting | None) -> HeatCell:
        if setting is None:
            return HeatCell(None, 0.0, "", strong=False)
        shade = 0.0
        if setting.loss is not None and worst > best:
            shade = min(1.0, max(0.0, (worst - setting.loss) / (worst - best)))
        short = {"recommended": "use"}
        words = [short.get(tag, tag) for tag in setting.tags if tag != "control"]
        strong = bool({"best", "recommended"} & set(setting.tags))
        return HeatCell(setting, shade, ", ".join(words), strong)

    return [(value, [cell(setting) for setting in row]) for value, row in heat.rows]


def _moved(view: SweepView) -> list[str]:
    """Whether larger updates, perplexity and losses go together."""
    update: list[float] = []
    ratio: list[float] = []
    loss: list[float] = []
    for cell in view.trained:
        norm = number(cell.row, "weights", "relative_update_norm")
        times = figures.perplexity_ratio(cell)
        if norm is not None and times is not None and cell.loss is not None:
            update.append(norm)
            ratio.append(times)
            loss.append(cell.loss)
    pairs: tuple[tuple[Correlation | None, str, str], ...] = (
        (rank_correlation(update, ratio), "Cells with larger updates", "perplexity"),
        (rank_correlation(ratio, loss), "Cells with higher perplexity", "validation log loss"),
        (rank_correlation(update, loss), "Cells with larger updates", "validation log loss"),
    )
    return [told for pair in pairs if (told := wording.together(*pair))]
