"""Is it r, alpha, or the learning rate in disguise: the numbers asked, and the answer in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

from llabel import numbers
from llabel.report.sweep_cells import SweepView, shown
from llabel.report.sweep_wording import MATTERS
from llabel.statistics.scaling import STEP, STEP_OF_ALL
from llabel.sweep_record import Cell

_SAYS_LITTLE = 0.3  # of the variance; a model that predicts less is no explanation


@dataclass(frozen=True, slots=True)
class Step:
    """One number that may stand for r, alpha and lr.

    Attributes:
        key: `STEP` or `STEP_OF_ALL`, as in the record.
        name: as the page calls it.
        of: its value in a cell; None without LoRA.
    """

    key: str
    name: str
    of: Callable[[Cell], float | None]


def steps_of(view: SweepView) -> tuple[Step, ...]:
    """Scaling × lr, and where r differs the step of all its columns together.

    None where fewer than two of r, alpha and lr differ: there is nothing to disentangle.
    """
    if len({"r", "lora_alpha", "lr"} & set(view.varied)) < 2:
        return ()
    steps = [Step(STEP, "scaling × lr", lambda cell: cell["scaling_lr"])]
    if "r" in view.varied:
        plain = all(_divides(cell.row) for cell in view.trained)
        name = "alpha × lr" if plain else "scaling × r × lr"
        steps.append(Step(STEP_OF_ALL, name, _of_all))
    return tuple(steps)


def _divides(cell: Cell) -> bool:
    """Whether scaling is alpha / r, not rsLoRA's."""
    settings, scaling = cell["settings"], cell["scaling"]
    return scaling is None or isclose(scaling * settings["r"], settings["lora_alpha"])


def _of_all(cell: Cell) -> float | None:
    step = cell["scaling_lr"]
    return None if step is None else step * float(cell["settings"]["r"])


def scaling_answer(found: Mapping[str, Any], steps: Sequence[Step]) -> str:
    """Whether r and alpha are the learning rate in disguise, by a stated rule.

    Args:
        found: `effects.scaling` of the record.
        steps: the numbers asked about.
    """
    models, others = found["models"], tuple(found["others"])
    told = {tuple(model["predictors"]): model["r2_cv"] for model in models}
    factors = models[-1]["r2_cv"]
    names = [shown(name) for name in models[-1]["predictors"] if name not in others]
    scores = {step: score for step in steps if (score := told.get((*others, step.key))) is not None}
    if not scores:
        return "The cells are too few to predict one from the others: this can't be told."
    ranked = sorted(scores, key=lambda step: -scores[step])
    best, others_told = ranked[0], [f"{s.name} {_r2(scores[s])}" for s in ranked[1:]]
    if factors is not None:
        others_told.append(f"{_listed(names)} as separate factors {_r2(factors)}")
    said = (
        f"Where each setting is predicted from the others, {best.name} alone explains "
        f"{_r2(scores[best])} of the variance{''.join(f'; {other}' for other in others_told)}. "
    )
    if max(scores[best], factors or 0.0) < _SAYS_LITTLE:
        return f"{said}None says much: the settings differ too little, or in other ways."
    if adding := [shown(e["axis"]) for e in _of(found, best) if e["ci95"][0] > MATTERS]:
        return (
            f"{said}So that is not all: {_listed(adding)} "
            f"{'adds' if len(adding) == 1 else 'add'} more than {_matters()} of the variance to "
            f"{best.name} (95 % intervals)."
        )
    through = [s for s in ranked if _is_all(found, s, scores[s], max(scores[best], factors or 0.0))]
    if not through:
        return f"{said}{_untold(names, [e['axis'] for e in _bounded(found, best)], best)}"
    ways = " or ".join(step.name for step in through)
    return (
        f"{said}None of {_listed(names)} adds {_matters()} of the variance to {ways}: here they "
        f"matter through {'it' if len(through) == 1 else 'one of these'}."
        f"{_disguised(models[-1]['predictors'], [step.key for step in through])}"
    )


def _of(found: Mapping[str, Any], step: Step) -> list[Mapping[str, Any]]:
    """What is added to a curve, where that has an interval."""
    return [e for e in found["beyond"] if e["curve"] == step.key and e["ci95"]]


def _is_all(found: Mapping[str, Any], step: Step, score: float, best: float) -> bool:
    """Whether a curve predicts as well as anything, and nothing adds to it."""
    entries = [e for e in found["beyond"] if e["curve"] == step.key]
    # An axis with no degree of freedom left is a part of the curve, and can add nothing.
    free = [e for e in entries if e["df"] > 0]
    return score >= best - MATTERS and len(_bounded(found, step)) == len(free)


def _bounded(found: Mapping[str, Any], step: Step) -> list[Mapping[str, Any]]:
    """Of what is added to a curve, that which surely is little."""
    return [e for e in _of(found, step) if e["ci95"][1] <= MATTERS]


def _untold(names: Sequence[str], bounded: Sequence[str], step: Step) -> str:
    """What can't be told, and what can."""
    little = [name for name in names if name in map(shown, bounded)]
    rest = [name for name in names if name not in little]
    if not little or not rest:
        return f"Whether {_listed(names)} matter beyond {step.name} can't be told from these cells."
    return (
        f"{_listed(little)} {'adds' if len(little) == 1 else 'add'} less than {_matters()} of the "
        f"variance to {step.name}; whether {_listed(rest)} {'does' if len(rest) == 1 else 'do'}, "
        "these cells don't tell."
    )


def _disguised(axes: Sequence[str], through: Sequence[str]) -> str:
    """What that means for alpha and r: of the learning rate nothing, where there is only one."""
    if "lr" not in axes:
        return _of_one_rate(axes, through)
    alpha = "Alpha is the learning rate in disguise" if "lora_alpha" in axes else ""
    if "r" not in axes:
        return f" {alpha}."
    if len(through) > 1:
        r = "whether r divides it, these cells don't tell"
    elif through[0] == STEP:
        r = "a larger r divides it" if alpha else "a larger r divides the learning rate"
    else:
        r = (
            "r does next to nothing by itself: each of its columns takes a step that is so much "
            "smaller, and they add up"
        )
    return f" {alpha}; {r}." if alpha else f" {r[0].upper()}{r[1:]}."


def _of_one_rate(axes: Sequence[str], through: Sequence[str]) -> str:
    """The same of cells with one learning rate, which cannot tell alpha from it."""
    if not {"r", "lora_alpha"} <= set(axes):
        return ""
    if len(through) > 1:
        said = "Alpha decides; whether r divides it, these cells don't tell"
    else:
        said = "Alpha / r decides" if through[0] == STEP else "Alpha decides, not alpha / r"
    return f" {said}. Whether that is a learning rate in disguise, one rate cannot show."


def _matters() -> str:
    return f"{100 * MATTERS:.0f} %"


def _r2(value: float) -> str:
    return "none" if value <= 0 else numbers.percent(value)


def _listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
