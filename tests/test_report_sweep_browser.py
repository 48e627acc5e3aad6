"""The page of a sweep in a real browser: what a reader sees and can reach."""

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
from comparisons import LONG_WORD, SCRIPT
from llabel.report import render_sweep
from llabel.sweep_record import SweepRecord
from sweeps import PUBLISHED, sweep

FACTORIAL = PUBLISHED | {"lr": [1e-4, 1e-3], "seed": [0, 1]}
CASES: dict[str, Callable[[], SweepRecord]] = {
    "factorial": lambda: sweep(FACTORIAL, failed=[75]),
    "epochs": lambda: sweep(
        {"r": [8, 64], "lora_alpha": [0, 16, 128], "lr": [1e-4, 1e-3], "epochs": [1, 2, 3]}
    ),
    "search": lambda: sweep(
        {"r": [4, 8, 16, 32, 64, 128, 256], "lora_alpha": [8, 32, 128]}, search=40, pruned=[3, 9]
    ),
    "models": lambda: sweep(
        {
            "model": [f"meta-llama/Llama-3.2-{size}B" for size in (1, 3, 8, 70)],
            "template": [f"templates/reviews-{number}.txt" for number in range(9)],
        }
    ),
    "two cells": lambda: sweep({"lr": [1e-4, 1e-3]}),
    "all failed": lambda: sweep({"r": [1, 16]}, failed=[0, 1]),
    "strange": lambda: sweep({"r": [1, 16], "template": [SCRIPT, LONG_WORD]}, failed=[1]),
}


@pytest.fixture(scope="module")
def path_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("pages")
    return written_once(folder, lambda case: render_sweep(CASES[case]()))


@pytest.fixture
def show(browser: Any, path_of: Callable[[str], Path]) -> Iterator[Callable[..., Any]]:
    with opener(browser, path_of, "factorial") as found:
        yield found


@pytest.mark.parametrize("case", CASES)
def test_opens_without_errors_or_requests(case: str, show: Callable[..., Any]) -> None:
    page = show(case)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.wait_for_timeout(50)
    assert [event for event in page.events if not event.startswith("data:")] == []
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("case", CASES)
def test_a_phone_need_not_scroll_sideways(case: str, show: Callable[..., Any]) -> None:
    page = show(case, viewport=PHONE)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_a_heat_map_fits_a_phone(show: Callable[..., Any]) -> None:
    page = show(viewport=PHONE)
    widths = page.evaluate(
        "[...document.querySelectorAll('table.heat')].map(t => [t.offsetWidth, "
        "t.parentElement.clientWidth])"
    )
    assert len(widths) == 2
    assert all(table <= room for table, room in widths)


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("case", ["factorial", "epochs", "search"])
def test_each_plot_is_drawn_once_and_legible(
    case: str, viewport: dict[str, int], show: Callable[..., Any]
) -> None:
    sizes = show(case, viewport=viewport).evaluate(
        """[...document.querySelectorAll('figure')].map(figure => {
          const shown = [...figure.querySelectorAll('svg')].filter(svg => svg.checkVisibility())
          return [shown.length, shown[0].getAttribute('aria-label').length,
                  shown[0].querySelector('text').getBoundingClientRect().height]
        })"""
    )
    assert len(sizes) > 8
    for shown, label, height in sizes:
        assert shown == 1
        assert label > 40
        assert height >= 8


@pytest.mark.parametrize("case", ["factorial", "epochs", "search", "two cells"])
def test_labels_of_a_plot_do_not_overlap(case: str, show: Callable[..., Any]) -> None:
    check_labels_apart(show(case))


def test_names_of_values_do_not_overlap(show: Callable[..., Any]) -> None:
    page = show("models")
    effects = "section[aria-labelledby=effects]"
    check_labels_apart(page, f"{effects} .panels svg")
    check_labels_apart(page, f"{effects} .wide svg")
    check_labels_apart(show("models", viewport=PHONE), f"{effects} .narrow svg")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(scheme: str, show: Callable[..., Any]) -> None:
    contrasts = contrasts_of(show(color_scheme=scheme))
    assert len(contrasts) > 20
    # Signs of keys stand beside words, and need what lines and dots need.
    least = {name: 3.0 if name.startswith("SPAN sign") else 4.5 for name in contrasts}
    assert [name for name, contrast in contrasts.items() if contrast < least[name]] == []


def test_dark_light_and_paper(show: Callable[..., Any]) -> None:
    line = "getComputedStyle(document.querySelector('.panels svg path[style*=ramp]'))"
    light, dark = show(color_scheme="light"), show(color_scheme="dark")
    assert light.evaluate(f"{line}.stroke") != dark.evaluate(f"{line}.stroke")
    dark.emulate_media(media="print")
    assert dark.evaluate(f"{line}.stroke") == light.evaluate(f"{line}.stroke")


def test_best_recommended_and_control_are_marked_in_words(show: Callable[..., Any]) -> None:
    page = show()
    heats = page.locator("table.heat")
    assert page.locator("table.heat td.strong").count() == 2
    assert "best" in " ".join(heats.all_inner_texts())
    assert "use" in " ".join(heats.all_inner_texts())
    assert "recommended" in page.locator("tr.chosen").first.inner_text()
    assert heats.first.locator("thead").inner_text().count("control") == 1
    assert heats.first.locator("td.control").count() == 4
