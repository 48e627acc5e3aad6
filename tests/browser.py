"""A headless Chromium for the tests of pages; they skip where there is none."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llabel.folder import write_text

PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str | None:
    """Path of the browser: LLABEL_CHROMIUM, else the first one found."""
    return os.environ.get("LLABEL_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def running_browser() -> Iterator[Any]:
    """A Playwright browser; skips the test where Playwright or Chromium is missing."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install playwright"
    )
    path = chromium()
    if path is None:
        pytest.skip(
            "no Chromium here: apt-get install chromium, or set LLABEL_CHROMIUM to its path"
        )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        yield browser
        browser.close()


def written_once(folder: Path, render: Callable[[str], str]) -> Callable[[str], Path]:
    """Give the page of a case, which is made when it is first asked for."""

    def path_of(case: str) -> Path:
        path = folder / f"{case}.html"
        if not path.exists():
            write_text(path, render(case))
        return path

    return path_of


@contextmanager
def opener(
    browser: Any, path_of: Callable[[str], Path], usual: str
) -> Iterator[Callable[..., Any]]:
    """Open a case's page; whatever it asks for or complains of stands in its `events`."""
    contexts = []

    def show(case: str = usual, **settings: Any) -> Any:
        context = browser.new_context(**({"viewport": DESKTOP} | settings))
        contexts.append(context)
        page, path = context.new_page(), path_of(case)
        page.events = []
        page.on("console", lambda message: page.events.append(message.text))
        page.on("pageerror", lambda error: page.events.append(str(error)))
        page.on("request", lambda request: page.events.append(request.url))
        page.goto(path.as_uri())
        page.events.remove(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()


def contrasts_of(page: Any) -> dict[str, float]:
    """The worst contrast of text and background, by element, class and colours."""
    return page.evaluate(
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


def check_labels_apart(page: Any, drawings: str = ".wide svg") -> None:
    """No text of a drawing covers another."""
    boxes = page.evaluate(
        """drawings => [...document.querySelectorAll(drawings)].map(svg =>
          [...svg.querySelectorAll('text')].map(text => {
            const box = text.getBoundingClientRect()
            return [text.textContent, box.left, box.top + 2, box.right, box.bottom - 2]
          }))""",
        drawings,
    )
    for texts in boxes:
        for place, (name, left, top, right, bottom) in enumerate(texts):
            for other, x0, y0, x1, y1 in texts[place + 1 :]:
                apart = right <= x0 or x1 <= left or bottom <= y0 or y1 <= top
                assert apart, f"{name} covers {other}"
