"""Pages as files: what is in them, that nothing is fetched, and that equal records look equal."""

import json
import re
import subprocess
import sys
from copy import deepcopy
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from comparisons import SCRIPT, SYSTEMS, TOPICS, comparison
from llabel import compare_view, numbers
from llabel.comparison import CompareRecord
from llabel.folder import write_text
from llabel.report import render_comparison
from llabel.report.page import folded
from llabel.report.placing import spread
from llabel.report.svg import ACCENT, drawable, drawing, inline_svg
from llabel.report.wording import examples, headline
from outlines import Outline, check_self_contained, check_structure

FORTY_TWO = [f"class {place}" for place in range(42)]


@pytest.fixture(scope="module")
def record() -> CompareRecord:
    return comparison()


@pytest.fixture(scope="module")
def html(record: CompareRecord) -> str:
    return render_comparison(record)


def test_equal_records_give_equal_pages() -> None:
    import matplotlib

    few = {"systems": SYSTEMS[3:5]}
    html = render_comparison(comparison(**few))
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other", "axes.grid": False}):
        assert render_comparison(comparison(**few)) == html


def test_the_terminal_writes_numbers_as_the_page_does(record: CompareRecord) -> None:
    few = deepcopy(record)
    rung = next(rung for rung in few["rungs"] if rung["cost"])
    assert rung["cost"]
    rung["p_value_vs_best"] = 0.0004
    rung["cost"] |= {"search_seconds": 6.12, "ms_per_text_bulk": 0.0123}
    out = StringIO()
    Console(file=out, width=200).print(compare_view.render_comparison(few, Path("out")))
    line = next(line for line in out.getvalue().splitlines() if rung["name"] in line)
    assert re.split(r"\s{2,}", line.strip())[-3:] == ["< 0.001", "6.1 s", "0.012"]


def test_what_4_bits_save_stands_among_the_costs() -> None:
    few = {"systems": [SYSTEMS[0], *SYSTEMS[-2:]], "curve": False}
    weighed = comparison(**few)
    assert "LLM weights" not in render_comparison(weighed), "as in older records"
    sizes = {"llm-zero-shot": 513.0, "llm-lora": 160.0}
    for rung in weighed["rungs"]:
        assert rung["cost"]
        rung["cost"]["weights_mb"] = sizes.get(rung["name"])
    table = render_comparison(weighed).partition("Cost of every rung")[2].partition("</table>")[0]
    at = re.findall("<th[^>]*>([^<]*)</th>", table.partition("<tbody>")[0]).index("LLM weights")
    for name, cell in (("llm-zero-shot", "513 MiB"), ("llm-lora", "160 MiB"), ("majority", "–")):
        (row,) = re.findall(rf'<tr><th scope="row">{name}</th>(.*?)</tr>', table)
        assert re.findall("<td>(.*?)</td>", row)[at - 1] == cell


def test_lists_of_rows_claim_no_more_than_was_counted(record: CompareRecord) -> None:
    told = {entry["title"]: entry["what"] for entry in examples(record)}
    assert told["llm-lora is right, no simpler rung is"].startswith("Every simpler rung is wrong")
    assert (
        told["llm-lora is wrong, most simpler rungs are right"]
        == "More than half of the simpler rungs are right."
    )
    assert not any("Only" in title for title in told), "other LLM rungs may be right, too"


def test_a_page_is_small_and_fetches_nothing(html: str) -> None:
    check_self_contained(html)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": FORTY_TWO, "rows": 400, "systems": SYSTEMS[2:4]},
        {"systems": SYSTEMS[:1], "leak": False},
        {"failed": [system.name for system in SYSTEMS], "curve": False},
        {"failed": ["rnn"], "seeds": 3, "texts": False, "systems": SYSTEMS[2:5]},
        {"classes": [False, True], "systems": SYSTEMS[2:3]},
        {"abstain": True, "systems": SYSTEMS[7:]},
    ],
    ids=["42 classes", "one rung", "all failed", "seeds, no texts", "booleans", "abstaining"],
)
def test_structure_of_others(changes: dict[str, Any]) -> None:
    check_structure(render_comparison(comparison(**changes)))


def test_what_abstaining_and_calibration_do_is_told() -> None:
    of = comparison(abstain=True, systems=SYSTEMS[7:])
    page = render_comparison(of)
    for rung in of["rungs"]:
        calibration, abstention, free = (
            rung[name]  # type: ignore[literal-required]
            for name in ("calibration", "abstention", "free_answers")
        )
        row = f'<th scope="row">{rung["name"]}</th>'
        test = calibration["test"]
        told = [calibration["temperature"], test["before"]["log_loss"], test["after"]["log_loss"]]
        cells = [f"{told[0]:.3g}", *map(numbers.score, told[1:])]
        assert row + "".join(f"<td>{cell}</td>" for cell in cells) in page
        assert f"{row}<td>{numbers.score(abstention['threshold'])}</td><td>0.95" in page
        assert f"{row}<td>{numbers.score(free['accuracy'])}</td><td>9 %</td>" in page
        halves = [p["accuracy"] for p in rung["coverage"] if p["coverage"] >= 0.5]
        assert f"{row}<td>{numbers.score(halves[0])}</td>" in page


def test_a_comparison_from_before_there_was_abstention_has_its_page() -> None:
    old = comparison(systems=SYSTEMS[2:4], curve=False)
    for rung in old["rungs"]:
        del rung["coverage"]
        for row in rung["report"]:
            row.pop("precision_ci95")
            row.pop("recall_ci95")
    page = render_comparison(old)
    assert 'id="abstaining"' not in page
    check_structure(page)


def test_structure(html: str) -> None:
    check_structure(html)


def test_data_cannot_become_markup() -> None:
    names = [SCRIPT, '"><svg onload=alert(1)>', "$x$ {{ y }}"]
    hostile = comparison(classes=names, rows=60, systems=SYSTEMS[2:4])
    hostile["title"] = hostile["command"] = hostile["data"]["source"] = SCRIPT
    hostile["verdict"]["reason"] = SCRIPT
    hostile["rungs"][0]["settings"] = {SCRIPT: SCRIPT}
    html = render_comparison(hostile)
    outline = Outline(html)
    assert not {"script", "img"} & set(outline.tags)
    assert outline.tags.count("svg") == html.count('<svg class="plot"')
    assert "<b>bold" not in html
    assert "{{ y }}" in html


def test_characters_that_xml_and_utf8_lack_do_not_break_a_page(tmp_path: Path) -> None:
    names = ["bell \x07", "half \ud83d", "two\nlines"]
    strange = comparison(classes=names, rows=60, systems=SYSTEMS[2:5])
    for rung, name in zip(strange["rungs"], names, strict=True):
        rung["name"] = name
    strange["curve"] = [point | {"rung": "bell \x07"} for point in strange["curve"][:4]]
    write_text(tmp_path / "report.html", render_comparison(strange))
    assert "half ?" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_without_texts_there_are_none() -> None:
    html = render_comparison(comparison(texts=False, systems=SYSTEMS[2:4], curve=False))
    assert html.count("Texts were left out of this page") == 1
    assert "The committee met again" not in html


def test_controls_do_not_squeeze_the_others_and_are_named_with_their_score(html: str) -> None:
    majority = comparison()["rungs"][0]
    assert majority["metrics"] is not None
    assert f">majority {majority['metrics']['test']['accuracy']:.4f}<" in html


def test_a_key_that_is_missing_is_an_error() -> None:
    broken = comparison(systems=SYSTEMS[:1], curve=False)
    del broken["data"]["notes"]
    with pytest.raises(jinja2.UndefinedError, match="notes"):
        render_comparison(broken)


@pytest.mark.parametrize(
    ("kind", "choose", "words"),
    [
        ("use", "encoder", "Use encoder"),
        ("use", None, "No rung can be recommended"),
        ("no_llm", "rnn", "Use rnn, not the LLM"),
        ("use_llm", "llm-lora", "Use llm-lora: the LLM is worth it"),
        ("majority_class", "majority", "No rung beats the majority class"),
        ("nothing_to_choose", "majority", "Nothing to choose from"),
        ("cannot_tell", "encoder", "Can’t tell yet; for now, encoder"),
        ("cannot_tell", None, "Can’t tell yet"),
    ],
)
def test_headline(record: CompareRecord, kind: str, choose: str | None, words: str) -> None:
    verdict = record["verdict"] | {"kind": kind, "choose": choose}
    assert headline(record | {"verdict": verdict}) == words  # type: ignore[arg-type]


@pytest.mark.parametrize("claim", ["is", "may be"])
def test_leakage_is_as_sure_in_the_headline_as_in_the_reason(
    record: CompareRecord, claim: str
) -> None:
    words = f"Most of this score {claim} leakage"
    verdict = record["verdict"] | {"kind": "leakage", "reason": f"{words}: over the majority …"}
    assert headline(record | {"verdict": verdict}) == words  # type: ignore[arg-type]


def test_the_order_is_called_the_ladders(html: str) -> None:
    verdict, _, rest = html.partition('id="table"')
    for part in (verdict, rest.partition("<table")[0]):
        assert "whatever the times measured here" in part
    assert "cheapest to the dearest" not in html


def test_nothing_to_choose_has_no_rule() -> None:
    record = comparison(systems=SYSTEMS[:2], curve=False)
    assert "The rule:" in render_comparison(record)
    record["verdict"]["kind"] = "nothing_to_choose"
    assert "The rule:" not in render_comparison(record)


@pytest.mark.parametrize("leak", [True, False])
def test_unseen_scores_stand_only_where_something_leaks(leak: bool) -> None:
    record = comparison(leak=leak, systems=SYSTEMS[2:5], failed=["rnn"], curve=False)
    html = render_comparison(record)
    table = html[html.index('class="rungs') :].partition("</table>")[0]
    assert (">Unseen<" in table) == leak
    head, body = (re.findall("<tr.*?</tr>", part, re.S) for part in table.split("<tbody>"))
    width = 12 if leak else 11
    assert head[1].count("<th") == width
    assert [row.count("<td") + 1 for row in body if "colspan" not in row] == [width] * 2
    assert f'colspan="{width - 1}"' in table


@pytest.mark.parametrize(("rows", "shown"), [(445, True), (60, False)])
def test_a_look_up_part_of_few_rows_is_not_shown(rows: int, shown: bool) -> None:
    record = comparison(rows=rows, systems=SYSTEMS[2:3], curve=False)
    html = render_comparison(record).partition('id="leakage"')[2].partition("</section>")[0]
    assert ("fewer than 30 test rows share a text" in html) != shown
    assert ("<td>–</td></tr>" in html) != shown


def test_rungs_without_training_are_not_in_the_plot_of_training_times() -> None:
    record = comparison(systems=SYSTEMS[6:8], curve=False)
    section = render_comparison(record).partition('id="cost"')[2].partition("<details")[0]
    drawings = re.findall(r"<svg.*?</svg>", section, re.S)
    assert ["llm-zero-shot" in svg for svg in drawings] == [True, True, False, False]
    assert "not in the plot of training times: llm-zero-shot." in section
    alone = render_comparison(comparison(systems=SYSTEMS[7:8], curve=False))
    assert "Accuracy against time to train" not in alone


def test_a_long_label_of_a_plot_is_wrapped_and_not_cut() -> None:
    record = comparison(systems=SYSTEMS[2:4], curve=False)
    record["rungs"][0]["name"] = "llm-zero-shot-calibrated"
    record["verdict"] |= {"choose": "llm-zero-shot-calibrated", "best": "llm-zero-shot-calibrated"}
    section = render_comparison(record).partition('id="cost"')[2].partition("<details")[0]
    assert section.count(">llm-zero-shot-calibrated,<") == 4
    assert section.count(">chosen, best<") == 4
    assert "…" not in section


def test_what_is_look_up_is_told() -> None:
    clean = render_comparison(comparison(leak=False, systems=SYSTEMS[:1]))
    assert "no test row shares a long text" in clean
    assert "No copy of a long test text was found" in clean
    leaking = comparison(systems=SYSTEMS[:3], curve=False)
    html = render_comparison(leaking)
    shared = leaking["data"]["rows"]["test"] - leaking["data"]["unseen_test_rows"]
    assert f"{shared} of 445 test rows share a text" in html
    part = leaking["rungs"][2]["lookup_part"]
    assert numbers.signed(part) in html[html.index('id="leakage"') :]


@pytest.mark.parametrize("draws", [False, True])
def test_what_is_of_the_first_seed_is_told(draws: bool) -> None:
    record = comparison(systems=SYSTEMS[2:4], curve=False, seeds=3)
    if draws:
        record["draws"] = [{"split_seed": 0, "seed": 0, "fingerprint": "", "folder": ""}] * 3
    of_one = record["rungs"][0]["metrics"]["test"]["ece"]  # type: ignore[index]
    record["rungs"][0]["metrics"]["test"]["ece"] = 0.1234  # type: ignore[index]
    html = render_comparison(record)
    assert ("Of each rung’s first seed alone are costs, training, calibration" in html) != draws
    assert ("Of the first draw alone are costs, training, temperatures" in html) == draws
    panels = html.partition('id="calibration"')[2].partition("</section>")[0]
    assert f"ECE {numbers.score(of_one)}<" in panels, "of the rows that are drawn, not the mean"
    assert "0.1234" not in panels
    assert "0.1234" in html
    assert "first seed alone" not in render_comparison(comparison(systems=SYSTEMS[2:4]))


def test_confusion_counts_stand_in_the_cells(record: CompareRecord, html: str) -> None:
    counts = next(rung for rung in record["rungs"] if rung["name"] == "encoder")["confusion"]
    table = html[html.index("encoder: rows by true class") :].partition("</table>")[0]
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", table)
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in rows]
    wanted = [[str(n) if n else "·" for n in row[:-1]] + [str(sum(row))] for row in counts]
    assert cells == wanted
    assert len(rows) == len(TOPICS)


def test_making_a_page_needs_json_and_no_torch() -> None:
    """Another process makes the same page from what JSON keeps."""
    record = comparison(systems=SYSTEMS[1:3])
    code = (
        "import json, sys\n"
        "from llabel.report import render_comparison\n"
        "sys.stdout.buffer.write(render_comparison(json.load(sys.stdin)).encode())\n"
        "assert not {'torch', 'transformers', 'sklearn', 'pandas'} & set(sys.modules)"
    )
    kept = json.dumps(record).encode()
    done = subprocess.run([sys.executable, "-c", code], input=kept, capture_output=True, check=True)
    assert done.stdout.decode() == render_comparison(record)


def test_a_drawing_takes_its_colours_from_the_page() -> None:
    with drawing(100, 80) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=ACCENT)
        axes.set_title(drawable("<b> &\n$x$ \x07"))
        svg = inline_svg(figure, key="plot", label='says "hello"')
    assert "var(--accent)" in svg
    assert "#0101" not in svg
    assert "<style" not in svg
    assert "font-family" not in svg
    assert "&lt;b&gt; &amp; $x$" in svg
    assert 'role="img" aria-label="says &quot;hello&quot;"' in svg


PLACES = st.lists(st.floats(0, 100), min_size=1, max_size=12)


@given(PLACES, st.floats(0.1, 20))
def test_spread_keeps_order_limits_and_gap(wanted: list[float], gap: float) -> None:
    found = spread(wanted, gap, 0, 100)
    gap = min(gap, 100 / max(1, len(wanted) - 1))
    ranked = [found[place] for place in sorted(range(len(wanted)), key=lambda at: wanted[at])]
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(ranked))
    assert min(found) >= -1e-6
    assert max(found) <= 100 + 1e-6


def test_spread_leaves_what_is_apart() -> None:
    assert spread([50, 10, 90], 20, 0, 100) == [50, 10, 90]
    assert spread([50, 50], 20, 0, 100) == [40, 60]
    assert spread([], 20, 0, 100) == []


@pytest.mark.parametrize(
    ("write_number", "value", "text"),
    [
        (numbers.score, 0.66631, "0.6663"),
        (numbers.score, None, "–"),
        (numbers.interval, [0.65, 0.6823], "0.6500–0.6823"),
        (numbers.signed, -0.012, "−0.0120"),
        (numbers.signed, -0.00004, "0.0000"),
        (numbers.signed, 0.0, "0.0000"),
        (numbers.signed, 0.00006, "+0.0001"),
        (numbers.signed_interval, [-0.031, 0.007], "−0.0310 to +0.0070"),
        (numbers.p_value, 0.0004, "< 0.001"),
        (numbers.p_value, 0.001, "0.001"),
        (numbers.p_value, 0.009, "0.009"),
        (numbers.p_value, 0.0376, "0.038"),
        (numbers.percent, 0.5, "50 %"),
        (numbers.percent, 0.9996, "99.9 %"),
        (numbers.percent, 1.0, "100 %"),
        (numbers.percent, 0.001, "< 1 %"),
        (numbers.quantity, 4_884_480, "4.9 million"),
        (numbers.quantity, 9427, "9,427"),
        (numbers.duration, 0, "0 s"),
        (numbers.duration, 0.0002, "< 0.01 s"),
        (numbers.duration, 6.12, "6.1 s"),
        (numbers.duration, 40, "40 s"),
        (numbers.duration, 720, "12 min"),
        (numbers.duration, 12_600, "3.5 h"),
        (numbers.milliseconds, 0.0004, "< 0.001"),
        (numbers.milliseconds, 0.0123, "0.012"),
        (numbers.milliseconds, 1240, "1,240"),
        (numbers.size, 0.012, "12 KiB"),
        (numbers.size, 87, "87 MiB"),
        (numbers.size, 1229, "1.2 GiB"),
        (numbers.plain, {"lr": 0.0008, "refit": True, "b": None}, "lr 0.0008, refit yes, b none"),
        (numbers.plain, ["title", "text"], "title, text"),
    ],
)
def test_numbers(write_number: Any, value: Any, text: str) -> None:
    assert write_number(value) == text


@pytest.mark.parametrize(
    ("text", "head", "more"),
    [("short", "short", False), ("word " * 100, ("word " * 60).rstrip(), True)],
)
def test_long_texts_are_folded_between_words(text: str, head: str, more: bool) -> None:
    assert folded(text) == (head, more)
