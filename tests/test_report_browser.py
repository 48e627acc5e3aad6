"""The page of a comparison in a real browser: what a reader sees, hears and can reach."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import running_browser
from comparisons import ARABIC, LONG_WORD, SCRIPT, SYSTEMS, comparison
from llabel.comparison import CompareRecord
from llabel.folder import write_text
from llabel.report import render_comparison

PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
LONG_NAMES = [f"class {place} {'named at length ' * (place % 4)}" for place in range(41)]
CASES: dict[str, Callable[[], CompareRecord]] = {
    "nine rungs": comparison,
    "long class names": lambda: comparison(
        classes=[*LONG_NAMES, LONG_WORD[:90]], rows=500, systems=SYSTEMS[2:5]
    ),
    "one rung": lambda: comparison(systems=SYSTEMS[2:3], curve=False, leak=False),
    "all failed": lambda: comparison(failed=[system.name for system in SYSTEMS], curve=False),
    "seeds, no texts": lambda: comparison(
        classes=[False, True], failed=["rnn"], seeds=3, texts=False, systems=SYSTEMS[2:6]
    ),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write each case's page once."""
    folder = tmp_path_factory.mktemp("pages")

    def make(case: str) -> Path:
        path = folder / f"{case}.html"
        if not path.exists():
            write_text(path, render_comparison(CASES[case]()))
        return path

    return make


@pytest.fixture
def show(browser: Any, pages: Callable[[str], Path]) -> Iterator[Callable[..., Any]]:
    """Open a case's page; whatever it asks for or complains of stands in its `events`."""
    contexts = []

    def open_page(case: str = "nine rungs", **settings: Any) -> Any:
        context = browser.new_context(**({"viewport": DESKTOP} | settings))
        contexts.append(context)
        page, path = context.new_page(), pages(case)
        page.events = []
        page.on("console", lambda message: page.events.append(message.text))
        page.on("pageerror", lambda error: page.events.append(str(error)))
        page.on("request", lambda request: page.events.append(request.url))
        page.goto(path.as_uri())
        page.events.remove(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


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
    assert len(sizes) == 2 + 1 + 4 + 9
    for shown, label, height in sizes:
        assert shown == 1
        assert label > 20
        assert height >= 8


def test_labels_of_a_plot_do_not_overlap(show: Callable[..., Any]) -> None:
    page = show()
    boxes = page.evaluate(
        """[...document.querySelectorAll('.wide svg')].map(svg =>
          [...svg.querySelectorAll('text')].map(text => {
            const box = text.getBoundingClientRect()
            return [text.textContent, box.left, box.top + 2, box.right, box.bottom - 2]
          }))"""
    )
    assert len(boxes) == 3
    for texts in boxes:
        for place, (name, left, top, right, bottom) in enumerate(texts):
            for other, x0, y0, x1, y1 in texts[place + 1 :]:
                apart = right <= x0 or x1 <= left or bottom <= y0 or y1 <= top
                assert apart, f"{name} covers {other}"


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
    contrasts = page.evaluate(
        """() => {
          const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1})
          const context = canvas.getContext('2d', {willReadFrequently: true})
          const rgb = colours => {
            colours.forEach(c => { context.fillStyle = c; context.fillRect(0, 0, 1, 1) })
            return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
          }
          const linear = v => v <= 10.31475 ? v / 3294.6 : ((v / 255 + .055) / 1.055) ** 2.4
          const light = c => c.map(linear).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0)
          const behind = element => element
            ? [...behind(element.parentElement), getComputedStyle(element).backgroundColor] : []
          const worst = {}
          for (const element of document.querySelectorAll('body *')) {
            const own = [...element.childNodes].some(n => n.nodeType == 3 && n.data.trim())
            if (!own || !element.checkVisibility()) continue
            const style = getComputedStyle(element), back = behind(element)
            const ink = element.closest('svg') ? style.fill : style.color
            const [a, b] = [light(rgb(back)), light(rgb([...back, ink]))].sort((x, y) => y - x)
            const name = `${element.tagName} ${element.getAttribute('class')} ${ink} on ${back}`
            worst[name] = (a + .05) / (b + .05)
          }
          return worst
        }"""
    )
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
