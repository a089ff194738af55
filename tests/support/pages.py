"""Pages that commands write: are they whole, and do they need anything from elsewhere?"""

from __future__ import annotations

from html.parser import HTMLParser

_VOID = frozenset({"meta", "img", "line", "circle", "polyline", "br", "rect"})


class PageText(HTMLParser):
    """The text of a page; its tags must close in their order.

    Attributes:
        links: addresses that it takes something from.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self._open: list[str] = []
        self._words: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in _VOID or self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self._words.append(data)
