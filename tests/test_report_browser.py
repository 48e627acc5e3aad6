"""The page of a comparison in a real browser: what a reader sees, hears and can reach."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import (
    DESKTOP,
    PHONE,
    check_labels_apart,
    contrasts_of,
    opener,
    written_once,
)
from comparisons import ARABIC, LONG_WORD, SCRIPT, SYSTEMS, comparison
from llabel.comparison import CompareRecord
from llabel.report import render_comparison

LONG_NAMES = [f"class {place} {'named at length ' * (place % 4)}" for place in range(41)]
CASES: dict[str, Callable[[], CompareRecord]] = {
    "nine rungs": comparison,
    "long class names": lambda: comparison(
        classes=[*LONG_NAMES, LONG_WORD[:90]], rows=500, systems=SYSTEMS[2:5]
    ),
    "abstaining": lambda: comparison(abstain=True),
    "one rung": lambda: comparison(systems=SYSTEMS[2:3], curve=False, leak=False),
    "all failed": lambda: comparison(failed=[system.name for system in SYSTEMS], curve=False),
    "seeds, no texts": lambda: comparison(
        classes=[False, True], failed=["rnn"], seeds=3, texts=False, systems=SYSTEMS[2:6]
    ),
}


@pytest.fixture(scope="module")
def path_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("pages")
    return written_once(folder, lambda case: render_comparison(CASES[case]()))


@pytest.fixture
def show(browser: Any, path_of: Callable[[str], Path]) -> Iterator[Callable[..., Any]]:
    with opener(browser, path_of, "nine rungs") as found:
        yield found


@pytest.mark.parametrize("case", CASES)
def test_opens_without_errors_or_requests(case: str, show: Callable[..., Any]) -> None:
    page = show(case)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.wait_for_timeout(50)
    assert [event for event in page.events if not event.startswith("data:")] == []
    assert page.locator("h1").inner_text() == "bbc"


@pytest.mark.parametrize("case", ["nine rungs", "seeds, no texts"])
def test_each_rung_has_its_numbers_in_its_row(case: str, show: Callable[..., Any]) -> None:
    page, record = show(case), CASES[case]()
    rows = page.locator("table.rungs tbody tr")
    assert rows.count() == len(record["rungs"])
    for place, rung in enumerate(record["rungs"]):
        text = rows.nth(place).inner_text()
        assert text.startswith(rung["name"])
        assert ("failed" in text) == (rung["status"] == "failed")
        if rung["metrics"] is None:
            assert rung["reason"] in text
            continue
        test, unseen = rung["metrics"]["test"], rung["metrics"]["test_unseen"]
        assert unseen is not None
        for value in (test["accuracy"], test["macro_f1"], test["log_loss"], unseen["accuracy"]):
            assert f"{value:.4f}" in text


def test_best_and_chosen_are_marked_in_words(show: Callable[..., Any]) -> None:
    page = show()
    assert "chosen" in page.locator("table.rungs tr", has_text="bag-of-words").inner_text()
    assert "best" in page.locator("table.rungs tr", has_text="encoder").inner_text()
    assert (
        page.locator("h2")
        .first.inner_text()
        .split("\n")[-1]
        .endswith("Use bag-of-words, not the LLM")
    )


def test_texts_stay_texts(show: Callable[..., Any]) -> None:
    page = show()
    assert page.evaluate("window.hacked") is None
    assert page.locator("script, img, iframe, object").count() == 0
    assert page.get_by_text(SCRIPT, exact=True).first.is_visible()
    assert page.get_by_text("{{ 7 * 7 }} {% raw %} $x^2$").count()
    right = page.get_by_text(ARABIC).first
    assert right.evaluate("element => getComputedStyle(element).direction") == "rtl"


@pytest.mark.parametrize("case", CASES)
def test_a_phone_need_not_scroll_sideways(case: str, show: Callable[..., Any]) -> None:
    page = show(case, viewport=PHONE)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_each_plot_is_drawn_once_and_legible(
    viewport: dict[str, int], show: Callable[..., Any]
) -> None:
    page = show(viewport=viewport)
    sizes = page.evaluate(
        """[...document.querySelectorAll('figure')].map(figure => {
          const shown = [...figure.querySelectorAll('svg')].filter(svg => svg.checkVisibility())
          const text = shown[0].querySelector('text')
          return [shown.length, shown[0].getAttribute('aria-label').length,
                  text.getBoundingClientRect().height]
        })"""
    )
    assert len(sizes) == 2 + 1 + 1 + 4 + 9
    for shown, label, height in sizes:
        assert shown == 1
        assert label > 20
        assert height >= 8


def test_labels_of_a_plot_do_not_overlap(show: Callable[..., Any]) -> None:
    page = show()
    drawings = page.locator(".wide svg")
    assert drawings.count() == 4
    check_labels_apart(page)


def test_dark_light_and_paper(show: Callable[..., Any]) -> None:
    background = "getComputedStyle(document.documentElement).backgroundColor"
    ink = "getComputedStyle(document.querySelector('svg text')).fill"
    light, dark = show(color_scheme="light"), show(color_scheme="dark")
    assert light.evaluate(background) != dark.evaluate(background)
    assert light.evaluate(ink) != dark.evaluate(ink)
    dark.emulate_media(media="print")
    assert dark.evaluate(background) == light.evaluate(background)
    assert dark.evaluate(ink) == light.evaluate(ink)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(scheme: str, show: Callable[..., Any]) -> None:
    page = show(color_scheme=scheme)
    contrasts = contrasts_of(page)
    assert len(contrasts) > 20
    assert [name for name, contrast in contrasts.items() if contrast < 4.5] == []


def test_the_keyboard_reaches_the_content(show: Callable[..., Any]) -> None:
    page = show(viewport=PHONE)
    page.keyboard.press("Tab")
    skip = page.locator("a:focus")
    assert skip.inner_text() == "Skip to the content"
    assert skip.bounding_box()["width"] > 100
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.evaluate("document.querySelector('table.rungs').parentElement.focus()")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(400)  # scrolling is smooth
    assert page.evaluate("document.activeElement.scrollLeft") > 0
    assert page.locator(":focus").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
