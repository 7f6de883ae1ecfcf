"""Whether two built books show the same numbers: `python benchmarks/pages_differ.py OLD NEW`, each a `_build/html`.

Every page's article is read block by block: a paragraph, a heading, a list's item, a table's cell, a figure's
alternative text. Blocks with numbers are compared in their order, by their numbers alone; so other words are no
difference, and a number that moved to another block is one. What differs is printed with its text. Exit status: 1 where
anything differs.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from difflib import SequenceMatcher
from html.parser import HTMLParser
from pathlib import Path

NUMBER = re.compile(r"(?<![\w.])[+\-−]?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")
BLOCKS = {"p", "h1", "h2", "h3", "h4", "li", "td", "th", "dt", "dd", "figcaption", "caption", "pre", "div"}
HIDDEN = {"script", "style", "svg"}


class Blocks(HTMLParser):
    """The texts of the blocks within <article>, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = [""]
        self._inside = self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside += tag == "article"
        self._hidden += tag in HIDDEN
        if tag in BLOCKS:
            self.texts.append("")
        if tag == "img" and self._inside:
            self.texts += [dict(attrs).get("alt") or "", ""]

    def handle_endtag(self, tag: str) -> None:
        self._inside -= tag == "article"
        self._hidden -= tag in HIDDEN
        if tag in BLOCKS:
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self._inside and not self._hidden:
            self.texts[-1] += data


def numbers(page: Path) -> list[tuple[tuple[str, ...], str]]:
    """The blocks of a page that hold numbers: these, and the text in one line."""
    parser = Blocks()
    parser.feed(page.read_text())
    texts = (" ".join(text.split()) for text in parser.texts)
    return [(tuple(its_numbers), text) for text in texts if (its_numbers := NUMBER.findall(text))]


def differences(old: Path, new: Path) -> Iterator[str]:
    """A line for each block of one page that the other does not show, and for each page that one book alone has."""
    pages = {path.relative_to(book) for book in (old, new) for path in book.rglob("*.html")}
    for page in sorted(page for page in pages if not page.parts[0].startswith(("_", "genindex", "search"))):
        if not ((old / page).exists() and (new / page).exists()):
            yield f"{page}: only in the {'old' if (old / page).exists() else 'new'} book"
            continue
        before, after = numbers(old / page), numbers(new / page)
        match = SequenceMatcher(None, [block for block, _ in before], [block for block, _ in after], autojunk=False)
        for kind, i, j, k, end in match.get_opcodes():
            if kind != "equal":
                yield from (f"{page}: - {text}" for _, text in before[i:j])
                yield from (f"{page}: + {text}" for _, text in after[k:end])


def main() -> int:
    """Print what differs."""
    parser = argparse.ArgumentParser(description="Compare the numbers of two built books.")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    books = parser.parse_args()
    lines = list(differences(books.old, books.new))
    print("\n".join(lines) or "every page shows the same numbers")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
