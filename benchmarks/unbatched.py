"""A copy of a model repository in which a classifier has no dynamic batching: the other side of a comparison."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

CONFIG = Path("configs") / "cpu.pbtxt"


def unbatched_repository(repository: Path, model: str, directory: Path) -> Path:
    """Make `directory` a repository with `model` alone, the same but for its batching. Versions are links."""
    config = text_format.Parse((repository / model / CONFIG).read_text(encoding="utf-8"), ModelConfig())
    config.ClearField("dynamic_batching")
    target = directory / model
    (target / CONFIG.parent).mkdir(parents=True)
    (target / "1").symlink_to((repository / model / "1").resolve(), target_is_directory=True)
    text = text_format.MessageToString(config)
    for name in (CONFIG, Path("config.pbtxt")):
        (target / name).write_text(text, encoding="utf-8")
    return directory
