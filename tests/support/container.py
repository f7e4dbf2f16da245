"""The folders of a container without a container: code in `home`, what is made in `data`; see docker/entrypoint.sh."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Container:
    """Runs the entrypoint on folders of its own. `home/model_repository` is for the test to fill."""

    def __init__(self, directory: Path) -> None:
        self.home, self.data = directory / "home", directory / "data"
        self.models, self.state = self.data / "model_repository", self.data / "state"
        for path in (self.home / "model_repository", self.models, self.data / ".cache"):
            path.mkdir(parents=True)
        for name in (".venv", "scripts", "docker", "drafters"):
            (self.home / name).symlink_to(ROOT / name)
        self.env = {
            **os.environ,
            "TANDEM_HOME": str(self.home),
            "TANDEM_DATA": str(self.data),
            "TANDEM_HOST": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @property
    def entrypoint(self) -> str:
        return str(self.home / "docker" / "entrypoint.sh")

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the entrypoint to its end."""
        command = [self.entrypoint, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**self.env, **env}, check=False)

    def update(self) -> None:
        """Bring the model repository up to date without building anything."""
        done = self.run("build", "--help")
        assert done.returncode == 0, done.stderr
        assert "python -m build_engines" in done.stdout

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Every file of the model repository: when it was written, and what it holds."""
        return {
            str(path.relative_to(self.models)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted(self.models.rglob("*"))
            if path.is_file()
        }
