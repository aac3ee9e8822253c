"""Checks a built site: python scripts/docs/links.py site

Every link leads to a file of the site, and to a place in it where one is named; nothing is loaded from elsewhere; no
Markdown is left that was not understood. Exit status 1 and one line for each fault.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LEFT = re.compile(r"^\s*\|[ :|-]+\|\s*$|^```|\]\([^)\s]+\)|\]\[[^\]]*\]$|^rwkv7 [a-z ]+ --\w.*$", re.MULTILINE)
"""A ruler of a table, a fence, a link, a command line: signs of Markdown that is shown as it was written."""
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
"""What a browser loads by itself; all other addresses wait for a click."""


class Page(HTMLParser):
    """The places, the links and the text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, str]] = []
        """(tag, address)."""
        self.text: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes ids and addresses."""
        if tag in ("code", "pre", "script", "style"):
            self._inside.append(tag)
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            elif name in ("href", "src") and value is not None:
                self.links.append((f"{tag} {name}", value))

    def handle_endtag(self, tag: str) -> None:
        """Leaves code."""
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        """Keeps text that is not code."""
        if not self._inside:
            self.text.append(data)


def faults(site: Path) -> list[str]:
    """Returns what is wrong with the site in a folder, one line each."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site)
        found += [f"{where}: {fault}" for link in page.links if (fault := _fault(path, link, pages, site))]
        found += [f"{where}: Markdown is left: {one.group().strip()!r}" for one in LEFT.finditer("\n".join(page.text))]
    return found if pages else [f"{site}: there is no page"]


def _fault(path: Path, link: tuple[str, str], pages: dict[Path, Page], site: Path) -> str | None:
    """What is wrong with a link; None: nothing."""
    kind, address = link
    parts = urlsplit(address)
    if parts.scheme in ("data", "mailto", "javascript"):
        return None
    if parts.scheme or parts.netloc:
        return f"loads {address}" if tuple(kind.split()) in LOADED else None
    if parts.path.startswith("/"):
        target = site / unquote(parts.path).lstrip("/")
    else:
        target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return f"{address} is not there" if path.name != "404.html" else None
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
        return None if parts.fragment == "__skip" else f"{address}: no such place in that page"
    return None


def main() -> int:
    """Prints the faults; returns the exit status."""
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "site").resolve()
    wrong = faults(site)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    print(f"{len(list(site.rglob('*.html')))} pages, {len(wrong)} faults")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
