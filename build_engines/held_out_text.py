"""Real text to measure with: the Debian Administrator's Handbook, from the Debian package debian-handbook.

GPL-2+ or CC-BY-SA-3.0; the package is downloaded and unpacked into the cache, not installed, and nothing of it is
part of an engine: no weight is calibrated on it.
"""

from __future__ import annotations

import tempfile
from html.parser import HTMLParser
from pathlib import Path

from build_engines.debian import unpack
from build_engines.errors import BuildError
from build_engines.progress import stage

PACKAGE = "debian-handbook"
CACHE = Path(".cache/data")
_BLOCKS = {"p", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "li", "dt", "dd", "td", "th", "div"}
_IGNORED = {"head", "script", "style"}
_NAVIGATION = {"banner", "title", "docnav", "docnav top"}  # as id or class


def handbook(cache: Path = CACHE) -> str:
    """The English text of the handbook, its sections in the order of their file names, one paragraph per line.

    Raises `BuildError` if the package cannot be downloaded.
    """
    target = cache / f"{PACKAGE}.txt"
    if not target.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".handbook.") as temporary:
            with stage(f"downloading the text of {PACKAGE} (35 MB)"):
                pages = _unpack(Path(temporary))
            text = "\n\n".join(html_to_text(page.read_text(encoding="utf-8")) for page in pages)
            partial = Path(temporary) / "text"
            partial.write_text(text, encoding="utf-8")
            partial.replace(target)
    return target.read_text(encoding="utf-8")


def _unpack(directory: Path) -> list[Path]:
    unpack(PACKAGE, directory)
    pages = sorted((directory / "usr/share/doc" / PACKAGE / "html/en-US").glob("sect.*.html"))
    if not pages:
        raise BuildError(f"the package {PACKAGE} holds no English sections where they used to be")
    return pages


def html_to_text(page: str) -> str:
    """Headings, paragraphs and listings of an HTML page, one per line, in reading order."""
    reader = _Reader()
    reader.feed(page)
    reader.flush()
    return "\n".join(reader.lines)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._words: list[str] = []
        self._ignored: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = dict(attributes)
        if self._ignored:
            if tag == self._ignored[0]:
                self._ignored.append(tag)
        elif tag in _IGNORED or names.get("id") in _NAVIGATION or names.get("class") in _NAVIGATION - {"title"}:
            self._ignored.append(tag)
        elif tag in _BLOCKS:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        if self._ignored:
            if tag == self._ignored[0]:
                self._ignored.pop()
        elif tag in _BLOCKS:
            self.flush()

    def handle_data(self, data: str) -> None:
        if not self._ignored:
            self._words.append(data)

    def flush(self) -> None:
        """End the current line."""
        if line := " ".join("".join(self._words).split()):
            self.lines.append(line)
        self._words = []
