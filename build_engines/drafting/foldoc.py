"""Terms and short definitions of the Free On-line Dictionary of Computing, from the Debian package dict-foldoc.

GFDL 1.1 or later; the package is downloaded and unpacked into the cache, not installed. Its text appears in prompts
only, which are made on the spot and are not part of what is shipped.
"""

from __future__ import annotations

import gzip
import re
import tempfile
from pathlib import Path

from build_engines.debian import unpack
from build_engines.drafting.packages import CACHE
from build_engines.progress import stage

PACKAGE = "dict-foldoc"


def entries(cache: Path = CACHE) -> list[tuple[str, str]]:
    """Headword and definition, in the order of the dictionary; definitions of 200 to 900 characters only.

    Raises:
        BuildError: the package cannot be downloaded.
    """
    target = cache / "foldoc.txt"
    if not target.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with stage(f"downloading {PACKAGE}"), tempfile.TemporaryDirectory(dir=cache, prefix=".foldoc.") as temporary:
            packed = _unpack(Path(temporary))
            partial = Path(temporary) / "text"
            partial.write_bytes(gzip.decompress(packed.read_bytes()))
            partial.replace(target)
    return parse(target.read_text(encoding="utf-8", errors="replace"))


def parse(text: str) -> list[tuple[str, str]]:
    """See `entries`; `text` has headwords at the margin and indented definitions."""
    found = []
    for piece in re.split(r"\n\n(?=\S)", text):
        head, _, body = piece.partition("\n")
        body = re.sub(r"^\s*<[^>]*>\s*", "", body.replace("\n\n", " ").strip())
        body = " ".join(re.sub(r"[{}]|\(\d{4}-\d\d-\d\d\)", "", body).split())
        if re.fullmatch(r"[A-Za-z][\w +/.-]{2,40}", head) and 200 <= len(body) <= 900 and "http" not in body:
            found.append((head, body))
    return found


def _unpack(directory: Path) -> Path:
    unpack(PACKAGE, directory)
    return directory / "usr/share/dictd/foldoc.dict.dz"
