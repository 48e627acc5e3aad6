"""Pages from templates: one HTML file that needs nothing beside it."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from llabel import numbers

if TYPE_CHECKING:
    from jinja2 import Environment

SHOWN_TEXT = 300  # characters of a text; the rest is folded away
_FILTERS = (
    "score interval signed signed_interval p_value percent share count quantity duration "
    "milliseconds size two_digits plain"
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing; `narrow` is for phones, where it differs."""

    name: str
    wide: Markup
    narrow: Markup | None = None


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fill a template of this package.

    Every value is escaped, and what the template asks for must be there. Characters that UTF-8
    cannot hold (half of a surrogate pair) become question marks.
    """
    html = _environment().get_template(template).render(context)
    return html.encode("utf-8", "replace").decode("utf-8")


@functools.cache  # templates are compiled once
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("llabel.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(numbers, name) for name in _FILTERS.split()}
    environment.filters["folded"] = folded
    return environment


def folded(text: str, most: int = SHOWN_TEXT) -> tuple[str, bool]:
    """The beginning of a text, cut between words where it can be, and whether more follows."""
    if len(text) <= most * 1.2:
        return text, False
    head = text[:most]
    at = head.rfind(" ")
    return (head[:at] if at > most * 0.6 else head).rstrip(), True
