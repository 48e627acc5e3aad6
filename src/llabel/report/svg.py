"""Matplotlib figures as inline SVG whose colours and fonts come from the page's style sheet.

A figure is drawn with stand-in colours; in the SVG each becomes a CSS variable, so that one drawing
serves light, dark and paper. Nothing in it depends on the user's matplotlibrc, the time or chance.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, RULE, PAPER, ACCENT = (f"#01010{place}" for place in range(1, 6))
SERIES = tuple(f"#01020{place}" for place in range(1, 7))
RAMP = tuple(f"#01030{place}" for place in range(1, 8))  # from little to much
_VARIABLES = dict(
    zip((INK, MUTED, RULE, PAPER, ACCENT), ("ink", "muted", "rule", "paper", "accent"), strict=True)
)
_VARIABLES |= {colour: f"series-{place}" for place, colour in enumerate(SERIES, 1)}
_VARIABLES |= {colour: f"ramp-{place}" for place, colour in enumerate(RAMP, 1)}

FONT_SIZE = 11  # units of the drawing; one unit is about a pixel
_UNITS_PER_INCH = 72
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "llabel",
    "text.parse_math": False,  # a dollar sign in a class name is no formula
    "font.size": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE - 1,
    "ytick.labelsize": FONT_SIZE - 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
    "text.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
}
_XML_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_FONT = re.compile(r"\s*font-family:[^;]*;?|\s*font:[^;]*;?")


@contextmanager
def drawing(width: float, height: float) -> Iterator["Figure"]:
    """Make a figure of `width` × `height` units in the page's style; convert it inside the block.

    Matplotlib reads its settings when things are drawn, so `inline_svg` belongs inside as well.
    """
    import warnings

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        # The browser has fonts with these glyphs; here they are only measured.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        size = (width / _UNITS_PER_INCH, height / _UNITS_PER_INCH)
        figure = Figure(figsize=size, dpi=_UNITS_PER_INCH)
        FigureCanvasAgg(figure)  # measures texts; the default canvas cannot
        yield figure


def inline_svg(figure: "Figure", *, key: str, label: str) -> Markup:
    """Turn a figure into an `<svg>` element for HTML.

    Args:
        figure: made by `drawing`.
        key: unique on the page; starts every id in the drawing.
        label: what the drawing shows, read out instead of it.

    Returns:
        The element; its width and height are left to the style sheet.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    fix_layout(figure)
    out = StringIO()
    # Not savefig: it draws all twice, once for the layout, which has been fixed.
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    root = _without_namespaces(ET.fromstring(out.getvalue()))
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update(
        {"class": "plot", "viewBox": box, "role": "img", "aria-label": drawable(label)}
    )
    _drop(root)
    _rename_ids(root, key)
    for element in root.iter():
        element.text = (element.text or "").strip() or None
        element.tail = None
        for name, value in element.attrib.items():
            element.set(name, _tidy(name, value))
    return Markup(ET.tostring(root, encoding="unicode"))


def fix_layout(figure: "Figure") -> None:
    """Let the axes make room for what there is now, once; what comes later moves them no more."""
    lay_out(figure)
    figure.set_layout_engine("none")


def lay_out(figure: "Figure") -> None:
    """Let the axes make room for what there is now, so that places can be measured."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)


def drawable(text: str) -> str:
    """A text that Matplotlib and XML take: one line, no control characters."""
    return " ".join(_XML_ILLEGAL.sub("\ufffd", text).split())


def _without_namespaces(root: ET.Element) -> ET.Element:
    """HTML needs none, and takes `href` where older SVG says `xlink:href`."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in [name for name in element.attrib if "}" in name]:
            element.set(name.rpartition("}")[2], element.attrib.pop(name))
    return root


def _drop(parent: ET.Element) -> None:
    """Remove metadata, and style rules that would reach beyond the drawing."""
    for child in list(parent):
        if child.tag in {"metadata", "style"}:
            parent.remove(child)
        else:
            _drop(child)
            if child.tag == "defs" and not len(child):
                parent.remove(child)


def _rename_ids(root: ET.Element, key: str) -> None:
    """Keep only the ids something refers to, and make them unique on the page."""
    text = ET.tostring(root, encoding="unicode")
    wanted = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    names = {name: f"{key}-{place}" for place, name in enumerate(sorted(wanted))}
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in names:
            element.set("id", names[name])
        for attribute, value in element.attrib.items():
            for old in re.findall(r"(?:^#|url\(#)([^)]+)", value):
                element.set(attribute, value.replace(f"#{old}", f"#{names[old]}"))


def _tidy(name: str, value: str) -> str:
    if name == "style":
        value = _FONT.sub("", value).strip()
        for colour, variable in _VARIABLES.items():
            value = value.replace(colour, f"var(--{variable})")
    if name in {"style", "d", "x", "y", "transform", "width", "height"}:
        value = _NUMBER.sub(lambda found: f"{float(found[0]):.2f}", value)
    return " ".join(value.split())
