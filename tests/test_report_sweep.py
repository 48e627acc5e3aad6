"""The page of a sweep as a file: what it says, and that any sweep has one."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import pytest

from comparisons import SCRIPT
from llabel.report import render_sweep
from llabel.report.naming import TICK, apart, fit_side_by_side
from llabel.report.svg import drawable
from llabel.report.sweep_cells import SweepView
from llabel.report.sweep_plots import Curve, curves, power
from llabel.report.sweep_scaling import scaling_answer, steps_of
from llabel.report.sweep_wording import (
    caveats,
    epochs_answer,
    headline,
    perplexity_doubt,
    reason,
    together,
)
from llabel.statistics.correlation import Correlation, rank_correlation
from llabel.statistics.scaling import STEP, STEP_OF_ALL
from llabel.sweep_record import SweepRecord
from outlines import Outline, check_self_contained, check_structure
from sweeps import PRIOR, PUBLISHED, UNTOUCHED, sweep

SMALL = {"r": [1, 16], "lora_alpha": [0, 16, 128]}
CASES: dict[str, Callable[[], SweepRecord]] = {
    "published": lambda: sweep(failed=[7]),
    "four axes": lambda: sweep(SMALL | {"lr": [1e-4, 1e-3], "epochs": [1, 3], "seed": [0, 1]}),
    "search": lambda: sweep(
        {"r": [4, 8, 16, 32, 64, 128, 256], "lora_alpha": [8, 32, 128]},
        search=30,
        pruned=[3, 9, 12],
    ),
    "two cells": lambda: sweep({"lr": [1e-4, 1e-3]}),
    "one cell": lambda: sweep({}),
    "only the control": lambda: sweep({"r": [1, 16], "lora_alpha": [0]}),
    "all failed": lambda: sweep(SMALL, failed=range(6)),
    "no control": lambda: sweep({"r": [1, 16, 64], "lora_alpha": [16, 32]}, rslora=True),
    "other axes": lambda: sweep({"target_modules": [["q"], ["q", "v"]], "bias": [True, None]}),
}


def of_rungs() -> SweepRecord:
    """Not every system has an r, an update or steps."""
    found = sweep({"rung": ["llm-lora", "encoder", "majority"], "train_rows": [300, 1000]})
    for cell in found["cells"]:
        cell["rung"] = cell["settings"]["rung"]
        if cell["rung"] != "llm-lora":
            cell["settings"] |= dict.fromkeys(("r", "lora_alpha"))
            cell |= {"scaling": None, "scaling_lr": None, "weights": None, "perplexity": None}
        if cell["rung"] == "majority":
            cell["settings"] |= dict.fromkeys(("lr", "epochs"))
            cell |= {"curve": [], "epoch_losses": []}
            assert cell["cost"] is not None
            cell["cost"]["train_rows_per_second"] = None
    return found


@pytest.fixture(scope="module")
def record() -> SweepRecord:
    return sweep(SMALL | {"lr": [1e-4, 1e-3], "seed": [0, 1]}, failed=[23])


@pytest.fixture(scope="module")
def html(record: SweepRecord) -> str:
    return render_sweep(record)


CASES["rungs"] = of_rungs


@pytest.mark.parametrize("case", CASES)
def test_any_sweep_has_a_page(case: str) -> None:
    html = render_sweep(CASES[case]())
    check_structure(html)
    check_self_contained(html)
    assert "nan" not in re.sub("the loss was nan", "", html)


def test_a_page_of_the_largest_sweep_is_small() -> None:
    axes = PUBLISHED | {"lr": [1e-4, 1e-3], "seed": [0, 1]}
    check_self_contained(render_sweep(sweep(axes)))


def test_equal_records_give_equal_pages_in_a_process_without_torch() -> None:
    record = sweep({"lr": [1e-4, 1e-3]})
    code = (
        "import json, sys\n"
        "from llabel.report import render_sweep\n"
        "sys.stdout.buffer.write(render_sweep(json.load(sys.stdin)).encode())\n"
        "assert not {'torch', 'transformers', 'sklearn', 'pandas'} & set(sys.modules)"
    )
    kept = json.dumps(record).encode()
    done = subprocess.run([sys.executable, "-c", code], input=kept, capture_output=True, check=True)
    assert done.stdout.decode() == render_sweep(record)


def test_settings_cannot_become_markup() -> None:
    hostile = sweep({"r": [1, 16], "template": [SCRIPT, "{{ 7 * 7 }}"]}, failed=[1])
    hostile["title"] = hostile["command"] = hostile["data"]["source"] = SCRIPT
    hostile["config"] = {SCRIPT: SCRIPT}
    for cell in hostile["cells"]:
        cell["reason"] = cell["folder"] = cell["command"] = SCRIPT
    assert hostile["chosen"] is not None
    hostile["chosen"]["rule"] = SCRIPT
    html = render_sweep(hostile)
    outline = Outline(html)
    assert not {"script", "img"} & set(outline.tags)
    assert outline.tags.count("svg") == html.count('<svg class="plot"')
    assert "<b>bold" not in html
    assert "{{ 7 * 7 }}" in html


def test_a_key_that_is_missing_is_an_error() -> None:
    broken = sweep({"lr": [1e-4, 1e-3]})
    del broken["data"]["notes"]  # type: ignore[misc]
    with pytest.raises(jinja2.UndefinedError, match="notes"):
        render_sweep(broken)


def test_a_heat_map_holds_the_means_over_seeds(record: SweepRecord, html: str) -> None:
    table = html[html.index("<caption>lr 0.001</caption>") :].partition("</table>")[0]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table)
    assert [label for label, _ in rows] == ["1", "16"]
    for label, cells in rows:
        found = re.findall(r"<td[^>]*>(\d\.\d{4})", cells)
        for alpha, text in zip((0, 16, 128), found, strict=True):
            losses = [
                scores["log_loss"]
                for cell in record["cells"]
                if (scores := cell["metrics"]["validation"])
                and (cell["settings"]["r"], cell["settings"]["lora_alpha"]) == (int(label), alpha)
                and cell["settings"]["lr"] == 1e-3
            ]
            assert text == f"{sum(losses) / len(losses):.4f}"
        assert cells.count('class="control"') == 1
    assert table.count("<small>control</small>") == 1
    assert cells.count("1 of 2 failed</small>") == table.count("failed") == 1


def test_of_a_setting_it_is_told_how_many_seeds_failed() -> None:
    view = SweepView(sweep({"r": [1, 16], "lr": [1e-4, 1e-3], "seed": [0, 1]}, failed=[2, 3, 5]))
    tags = [setting.tags for setting in view.settings]
    assert ["failed" in some for some in tags] == [False, True, False, False]
    assert ["1 of 2 failed" in some for some in tags] == [False, False, True, False]
    html = render_sweep(view.record)
    assert '<span class="tag 1 of 2 failed">1 of 2 failed</span>' in html


def test_what_failed_stands_there_with_its_reason(record: SweepRecord, html: str) -> None:
    table = html[html.index("Failed or pruned: 1 of 24") :].partition("</table>")[0]
    assert "r 16, alpha 128, lr 0.001, seed 1" in table
    assert record["cells"][23]["reason"] in table
    assert "1 failed of 24 cells" in html


def test_texts_cut_to_fit_are_told_where_they_were_counted() -> None:
    found = sweep({"lr": [1e-4, 1e-3]})
    told = "<dt>texts cut to fit, best cell</dt><dd>120 in training, 31 in validation</dd>"
    assert told in render_sweep(found)
    found["data"]["truncated"] = {}
    assert "cut to fit" not in render_sweep(found)


def test_each_untouched_model_is_a_setting_of_its_own() -> None:
    axes = {"r": [1, 16], "lora_alpha": [0, 16], "template": ["qa", "plain"], "seed": [0, 1]}
    found = sweep(axes)
    for cell in found["cells"]:
        if cell["control"] and cell["settings"]["template"] == "plain":
            cell["metrics"]["validation"]["log_loss"] += 0.2  # type: ignore[index]
    view = SweepView(found)
    controls = {setting.label: (len(setting.cells), setting.loss) for setting in view.controls}
    assert controls == {
        "untouched model, template qa": (4, pytest.approx(UNTOUCHED)),
        "untouched model, template plain": (4, pytest.approx(UNTOUCHED + 0.2)),
    }
    lines = dict(view.references)
    assert lines.pop("class shares") == PRIOR
    assert lines == {label: loss for label, (_, loss) in controls.items()}
    plain = next(at for at, c in enumerate(found["cells"]) if c["settings"]["template"] == "plain")
    words = "No training beats the untouched model, template plain"
    assert headline(_chosen(found, plain, plain)) == words
    html = render_sweep(found)
    assert "untouched model, template qa 0.8600" in html
    check_structure(html)
    many = sweep(axes | {"template": list("abcd")})
    assert [name for name, _ in SweepView(many).references] == ["class shares"]
    assert len(SweepView(many).controls) == 4


def test_all_drawings_tell_what_they_show(html: str) -> None:
    labels = re.findall(r'<svg class="plot"[^>]*aria-label="([^"]+)"', html)
    assert len(labels) == html.count("<svg") > 10
    assert all(len(label) > 40 for label in labels)
    for step in ("scaling × lr", "alpha × lr"):
        assert any(f"Validation log loss of 15 cells against {step}" in text for text in labels)


@pytest.mark.parametrize("case", ["two cells", "one cell", "other axes", "all failed"])
def test_a_question_that_the_axes_do_not_ask_is_not_shown(case: str) -> None:
    assert 'id="scaling"' not in render_sweep(CASES[case]())


def test_a_setting_that_a_system_lacks_does_not_differ() -> None:
    view = SweepView(of_rungs())
    assert view.varied == ("rung", "train_rows")
    assert view.settings[0].label == "rung llm-lora, train_rows 300"
    patience = SweepView(sweep({"patience": [1, None]}))
    assert patience.varied == ("patience",)


def test_a_search_has_drawings_of_its_axes_and_no_heat_map() -> None:
    html = render_sweep(CASES["search"]())
    for axis in ("r", "alpha", "lr"):
        assert f"<figcaption>Validation log loss against {axis}</figcaption>" in html
    assert 'class="heat"' not in html
    assert "3 pruned of 30 cells" in html


def test_an_axis_of_a_search_may_hold_zero() -> None:
    html = render_sweep(sweep({"r": [4, 16], "lora_dropout": [0, 0.05, 0.1]}, search=12))
    assert "against lora_dropout, from 0 to 0.1." in html


def _chosen(record: SweepRecord, best: int, recommended: int) -> SweepView:
    assert record["chosen"] is not None
    names = [cell["name"] for cell in record["cells"]]
    record["chosen"] |= {  # type: ignore[typeddict-item]
        "cell": names[best],
        "cells": [names[best]],
        "recommended": names[recommended],
        "not_worse": [
            {
                "cell": names[recommended],
                "cells": [names[recommended]],
                "difference": 0.004,
                "ci95": [-0.01, 0.018],
                "p_value": 0.5,
            }
        ]
        if best != recommended
        else [],
    }
    return SweepView(record)


def test_the_verdict_names_the_recommended_setting() -> None:
    view = _chosen(sweep(SMALL), best=2, recommended=4)
    assert headline(view) == "Use r 16, alpha 16"
    assert "r 1, alpha 128, log loss" in reason(view)
    assert "1 other setting is not measurably worse; the cheapest is r 16, alpha 16" in reason(view)
    assert "(difference +0.0040, 95 % interval −0.0100 to +0.0180)" in reason(view)


def test_the_verdict_when_training_does_not_help() -> None:
    assert headline(_chosen(sweep(SMALL), 0, 0)) == "No training beats the untouched model"
    words = "No training is measurably better than the untouched model"
    assert headline(_chosen(sweep(SMALL), 2, 0)) == words
    assert headline(SweepView(sweep(SMALL, failed=range(6)))) == "No cell is done"


def test_caveats() -> None:
    record = sweep({"r": [1, 16, 64], "lora_alpha": [0, 16, 32, 64]}, failed=[3])
    loose = " ".join(caveats(_chosen(record, 10, 9)))
    assert "recommended setting’s log loss is up to 0.0180 higher" in loose
    found = " ".join(caveats(_chosen(record, 10, 10)))
    assert "recommended setting" not in found
    assert "1 failed of 12 cells" in found
    assert "the largest r (64)" in found
    assert "alpha (32)" not in found  # in the middle of those tried
    assert "Each setting was trained once" in found
    assert ("not shown to have learned more" in found) == (
        record["chosen"]["metrics"]["validation"]["log_loss_ci95"][1] >= PRIOR  # type: ignore[index]
    )
    assert "trained once" not in " ".join(caveats(SweepView(sweep({"seed": [0, 1]}))))


def test_the_last_epoch_stands_beside_the_best() -> None:
    record = sweep({"r": [1, 16], "epochs": [1, 2, 3]})
    for cell in record["cells"]:
        epochs = cell["settings"]["epochs"]
        cell["epoch_losses"] = [0.6, 0.5, 0.7][:epochs]
    view = SweepView(record)
    answer = epochs_answer(view)
    assert "after the last in 2." in answer
    assert "0.5000 and 0.5000 (epochs 2), 0.5000 and 0.7000 (epochs 3)." in answer
    told = [caveat for caveat in caveats(view) if "best epoch" in caveat]
    assert len(told) == 1
    assert "more epochs can hardly look worse" in told[0]
    assert "patience" not in told[0]
    record["config"]["patience"] = 1
    assert "--patience none" in " ".join(caveats(view))
    assert "best epoch" not in " ".join(caveats(SweepView(sweep({"r": [1, 16]}))))
    for cell in record["cells"][-3:]:  # as beside max_steps, and of rungs that read no epochs
        cell["settings"]["epochs"] = None
    assert "0.5000 and 0.7000 (epochs 3), " in epochs_answer(SweepView(record))
    assert "(others)" in epochs_answer(SweepView(record))
    one = sweep({"r": [1, 16]} | {"epochs": [3]})
    assert "(epochs" not in epochs_answer(SweepView(one))


def test_perplexity_on_trained_prompts_shows_no_damage() -> None:
    record = sweep(SMALL)
    assert "is no sign that nothing was damaged" not in render_sweep(record)
    record["config"]["loss"] = "all"
    assert "is no sign that nothing was damaged" in render_sweep(record)
    assert perplexity_doubt(SweepView(sweep({"r": [1, 2], "loss": ["answer", "all"]})))


def test_a_setting_that_lost_a_seed_is_not_compared_and_the_page_says_so() -> None:
    record = sweep({"r": [1, 16, 128], "seed": [0, 1]}, failed=[5], noise=0.0)
    assert record["chosen"]
    record["chosen"]["not_worse"] = []
    record["chosen"]["cells"] = [c["name"] for c in record["cells"] if c["settings"]["r"] == 1]
    record["chosen"]["cell"] = record["chosen"]["recommended"] = record["chosen"]["cells"][0]
    view = SweepView(record)
    assert reason(view).startswith("Best of 2 settings")
    assert "Not compared, as not all of their seeds are done: r 128." in list(caveats(view))


def _scaling(
    curves: tuple[float | None, float | None],
    factors: float,
    beyond: tuple[list[float], list[float]],
    axes: Sequence[str] = ("r", "lora_alpha", "lr"),
) -> dict[str, Any]:
    return {
        "others": ["epochs"],
        "models": [
            {"predictors": ["epochs", STEP], "r2_cv": curves[0]},
            {"predictors": ["epochs", STEP_OF_ALL], "r2_cv": curves[1]},
            {"predictors": ["epochs", *axes], "r2_cv": factors},
        ],
        "beyond": [
            {"curve": curve, "axis": axis, "df": 1, "ci95": interval}
            for curve, interval in zip((STEP, STEP_OF_ALL), beyond, strict=True)
            for axis in axes
        ],
    }


ONE_RATE = ("r", "lora_alpha")
NOTHING, SOME, MUCH = [0.0, 0.01], [0.0, 0.2], [0.1, 0.2]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (_scaling((0.9, 0.5), 0.8, (NOTHING, MUCH)), "in disguise; a larger r divides it"),
        (_scaling((0.5, 0.9), 0.8, (MUCH, NOTHING)), "in disguise; r does next to nothing"),
        (_scaling((0.9, 0.88), 0.8, (NOTHING, NOTHING)), "in disguise; whether r divides it"),
        (_scaling((0.9, 0.5), 0.95, (MUCH, NOTHING)), "r, alpha and lr add more than 5 % of"),
        (_scaling((0.9, 0.5), 0.8, (NOTHING, MUCH), ONE_RATE), ". Alpha / r decides. Whether"),
        (_scaling((0.5, 0.9), 0.8, (MUCH, NOTHING), ONE_RATE), "Alpha decides, not alpha / r."),
        (_scaling((0.9, 0.88), 0.8, (NOTHING, NOTHING), ONE_RATE), "one rate cannot show."),
        (_scaling((0.9, 0.8), 0.95, (SOME, NOTHING)), "beyond scaling × lr can't be told from"),
        (_scaling((0.9, 0.8), 0.97, (NOTHING, NOTHING)), "beyond scaling × lr can't be told from"),
        (_scaling((0.1, 0.0), -0.2, (SOME, SOME)), "None says much"),
        (_scaling((None, None), 0.9, (SOME, SOME)), "The cells are too few"),
        (_scaling((None, 0.9), 0.8, (SOME, NOTHING)), "alpha × lr alone explains 90 %"),
    ],
)
def test_the_disguise_is_told_by_its_rule(found: dict[str, Any], words: str) -> None:
    steps = steps_of(SweepView(sweep({"r": [1, 16], "lora_alpha": [1, 16]})))
    assert [step.name for step in steps] == ["scaling × lr", "alpha × lr"]
    told = scaling_answer(found, steps)
    assert words in told
    assert "disguise;" not in told or "lr" in found["models"][-1]["predictors"]


def test_an_axis_that_the_curve_contains_leaves_nothing_open() -> None:
    steps = steps_of(SweepView(sweep({"r": [1, 16], "lora_alpha": [1, 16]})))
    found = _scaling((0.5, 0.9), 0.8, (MUCH, NOTHING), ONE_RATE)
    found["beyond"][3] |= {"df": 0, "ci95": None}
    assert "Alpha decides, not alpha / r." in scaling_answer(found, steps)


def test_what_surely_adds_little_is_told_where_the_rest_is_not() -> None:
    steps = steps_of(SweepView(sweep({"r": [1, 16], "lora_alpha": [1, 16]})))
    found = _scaling((0.5, 0.9), 0.8, (MUCH, SOME))
    found["beyond"][3]["ci95"] = NOTHING
    told = scaling_answer(found, steps)
    assert "r adds less than 5 % of the variance to alpha × lr; whether alpha and lr do" in told


def test_the_step_of_all_columns_is_that_of_the_scaling() -> None:
    """With rsLoRA alpha × lr is not what counts; where r does not differ there is one step."""
    axes = {"r": [4, 16], "lora_alpha": [1, 16]}
    for rslora, name in ((False, "alpha × lr"), (True, "scaling × r × lr")):
        view = SweepView(sweep(axes, rslora=rslora))
        step = steps_of(view)[1]
        assert step.name == name
        for cell in view.trained:
            r, alpha, lr = (cell.row["settings"][key] for key in ("r", "lora_alpha", "lr"))
            assert step.of(cell.row) == pytest.approx(alpha * lr * (r**0.5 if rslora else 1))
    assert len(steps_of(SweepView(sweep({"lr": [1e-4, 1e-3], "lora_alpha": [1, 16]})))) == 1
    assert steps_of(SweepView(sweep({"r": [1, 16]}))) == ()


def test_lines_to_judge_by_are_named(html: str) -> None:
    assert f"untouched model {UNTOUCHED:.4f}" in html
    assert f"class shares {PRIOR:.4f}" in html


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.05, "0.05"), (20, "20"), (1e-5, "10⁻⁵"), (2e-5, "2·10⁻⁵"), (1e-3, "0.001")),
        *((1e5, "10⁵"), (0, "0"), (-0.05, "−0.05"), (-2e-5, "−2·10⁻⁵")),
    ],
)
def test_powers(value: float, text: str) -> None:
    assert power(value) == text
    assert drawable(text) == text


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["q_proj, v_proj, o_proj", "all"], ["q_proj, v_p…", "all"]),
        (
            ["meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B"],
            ["met…a-3.2-1B", "met…a-3.2-3B"],
        ),
        (["same beginning, a same end"] * 2, ["same beginn…"] * 2),
    ],
)
def test_names_are_cut_where_they_stay_different(names: list[str], labels: list[str]) -> None:
    assert apart(names, TICK) == labels


@pytest.mark.parametrize(
    "middles", ["ab", "".join(map(chr, range(ord("a"), ord("z"))))], ids=["two", "many"]
)
def test_however_alike_names_are_their_labels_differ(middles: str) -> None:
    for fill in ("-" * 9, "-" * 30):
        names = [f"{fill}{middle}{fill}" for middle in middles] + [f"{fill}a{fill}{fill}b"]
        labels = apart(names, TICK)
        assert len(set(labels)) == len(names)
        assert max(map(len, labels)) <= TICK


def test_models_stay_different_in_the_drawings_and_stand_whole_in_the_numbers() -> None:
    models = ["meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B"]
    html = render_sweep(sweep({"model": models, "template": ["qa", "chat"]}))
    effects = html[html.index('id="effects"') : html.index('id="training"')]
    drawn = re.findall(r"<text[^>]*>([^<]+)</text>", effects)
    for size in ("1B", "3B"):
        assert any(text.endswith(size) for text in drawn)
        assert f'<th scope="row">model meta-llama/Llama-3.2-{size}</th>' in effects
    assert effects.count("<summary>The numbers</summary>") == 3
    assert not fit_side_by_side(apart(models, TICK) * 4, 225)


def test_a_narrow_logarithmic_axis_has_ticks() -> None:
    lines = [Curve([0, 1, 2], [0.021, 0.03, 0.048], 0)]
    svg = curves(lines, titles=("layer", "norm"), limits=None, key="k", label="of a test", log=True)
    ticks = [float(text) for text in re.findall(r"<text[^>]*>(0\.\d+)</text>", svg)]
    assert len(ticks) >= 2
    assert all(0.02 < tick < 0.05 for tick in ticks)
    assert power(2.25e-5, places=2) == "2.25·10⁻⁵"


def test_rank_correlations_in_words() -> None:
    assert rank_correlation([1, 2, 3], [1, 2, 3]) is None
    assert rank_correlation([1] * 8, list(range(8))) is None
    exact = rank_correlation(list(range(8)), [2**at for at in range(8)])
    assert exact == Correlation(1.0, (1.0, 1.0), 8)
    assert together(exact, "Large ones", "loss").startswith("Large ones have a higher loss (rank")
    unsure = Correlation(-0.1, (-0.4, 0.2), 40)
    assert "not shown to have a higher or a lower loss" in together(unsure, "Large ones", "loss")
    assert "−0.40 to +0.20, 40 cells" in together(unsure, "Large ones", "loss")
    assert together(None, "Large ones", "loss") == ""


def test_a_rank_correlations_interval_is_bonett_and_wrights() -> None:
    """By hand: rho = 1 - 6 · 36 / 990 = 43/55; z = 1.0500, its standard error 0.4319."""
    found = rank_correlation(list(range(10)), [2, 0, 4, 1, 3, 9, 5, 6, 8, 7])
    assert found is not None
    assert found.rho == pytest.approx(43 / 55)
    assert found.ci95 == pytest.approx((0.2008, 0.9559), abs=2e-4)
