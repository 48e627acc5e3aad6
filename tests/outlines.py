"""What any page must keep: its outline, and that nothing is fetched."""

import re
from html.parser import HTMLParser
from itertools import pairwise


class Outline(HTMLParser):
    """Ids, headings, tables and addresses of a page, in their order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.regions: list[dict[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"href", "src", "xlink:href", "action", "srcset"}:
                self.addresses.append(value or "")


def check_self_contained(html: str) -> None:
    """Small, and nothing is fetched."""
    assert len(html.encode()) < 1_500_000
    outline = Outline(html)
    assert {"script", "img", "link"} & set(outline.tags) == {"link"}
    assert {address[0] for address in outline.addresses} == {"#", "d"}
    assert [address for address in outline.addresses if address[0] == "d"] == ["data:,"]
    assert not re.search(r"url\((?!#)|@import|@font-face", html)
    assert "default-src 'none'" in html


def check_structure(html: str) -> None:
    """Headings in order, ids unique, links that lead somewhere, tables with captions."""
    outline = Outline(html)
    assert len(outline.ids) == len(set(outline.ids))
    links = {address[1:] for address in outline.addresses if address.startswith("#")}
    assert links <= set(outline.ids)
    assert outline.tags.count("table") == outline.tags.count("caption")
    assert {"header", "nav", "main", "footer"} <= set(outline.tags)
    levels = [int(tag[1]) for tag in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
