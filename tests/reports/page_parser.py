"""A reader of pages for tests: elements, text, and whether every tag is closed in order."""

from html.parser import HTMLParser

VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """Parses a page at once.

    Attributes:
      elements: (tag, attributes) of each element.
      text: all text outside of style sheets and scripts.
    """

    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not {"style", "script"} & set(self._open):
            self.text += data

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}

    def find(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]

    def references(self) -> set[str]:
        """The ids that other elements point to."""
        found = set()
        for _, attributes in self.elements:
            for key, value in attributes.items():
                if key in ("href", "xlink:href") and value.startswith("#"):
                    found.add(value[1:])
                if key == "clip-path":
                    found.add(value.removeprefix("url(#").removesuffix(")"))
        return found
