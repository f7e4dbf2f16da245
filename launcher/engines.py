"""Which models of a repository can be loaded: most need an engine that a build has made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.errors import EngineMissingError

CLASSIFIERS = ("resnet50", "efficientnet_lite0")
# Models that need an engine, and whose: one of these is enough.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "target": ("target",),
    "draft": ("draft",),
    "resnet50": ("resnet50",),
    "efficientnet_lite0": ("efficientnet_lite0",),
    "resnet50_logits": ("resnet50",),
    "efficientnet_lite0_logits": ("efficientnet_lite0",),
    "classify": ("resnet50",),
    "classify_imagenet": ("efficientnet_lite0",),
    "image_decoder": CLASSIFIERS,
    "label_ranker": CLASSIFIERS,
}
REPLICA = "target_"  # what the names of further models that serve the engine of `target` begin with
ENGINE_MODELS = ("target",)  # the server does not start without their engines; the others are left out
VISION_MODELS = tuple(model for model, owners in NEEDS.items() if set(owners) <= set(CLASSIFIERS))
_COMMANDS = {"target": "make engine", "draft": "python -m build_engines pair", "resnet50": "make engine-digits"}
_VISION_COMMAND = "make engine-vision"


def loadable_models(repository: Path, env: Mapping[str, str]) -> list[str]:
    """Names of the models in `repository` that have what they need, and of those that must have it."""
    models = sorted(entry.name for entry in repository.iterdir() if entry.is_dir())
    replicas = [name.strip() for name in env.get("TANDEM_TARGET_MODELS", "").split(",")]
    unwanted = [name for name in models if name.startswith(REPLICA) and name not in replicas]
    return [
        name
        for name in models
        if name in ENGINE_MODELS or (name not in unwanted and _has_engine(repository, name, env))
    ]


def check_engines(repository: Path, models: Sequence[str], env: Mapping[str, str]) -> None:
    """Raise EngineMissingError for the first of `models` that needs an engine and has none."""
    for model in models:
        if (repository / model).is_dir() and not _has_engine(repository, model, env):
            owners = _owners(model)
            directories = " or ".join(str(engine_directory(repository, owner, env)) for owner in owners)
            command = _COMMANDS.get(owners[0], _VISION_COMMAND) if len(owners) == 1 else _VISION_COMMAND
            raise EngineMissingError(f"model {model!r} has no engine in {directories}: build it with `{command}`")


def engine_directory(repository: Path, model: str, env: Mapping[str, str]) -> Path:
    """Where a model's engine is: `TANDEM_<MODEL>_ENGINE` in `env` replaces `<repository>/<model>/1/engine`."""
    return repository / model / "1" / env.get(f"TANDEM_{model.upper()}_ENGINE", "engine")


def _has_engine(repository: Path, model: str, env: Mapping[str, str]) -> bool:
    """Whether `model` needs no engine, or one that it needs is there."""
    owners = _owners(model)
    return not owners or any((engine_directory(repository, owner, env) / "manifest.json").is_file() for owner in owners)


def _owners(model: str) -> tuple[str, ...]:
    return ("target",) if model.startswith(REPLICA) else NEEDS.get(model, ())
