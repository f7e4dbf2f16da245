"""A model repository like another one, but with the batching and instances of its classifiers as settings say.

Triton takes these from a model's config.pbtxt alone, so a changed one is written beside links to all the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.engines import CLASSIFIERS
from launcher.errors import ServerError

# Setting of a classifier, TANDEM_<MODEL>_<NAME>, to the least value that makes sense.
SETTINGS: Mapping[str, int] = {"instances": 1, "max_batch": 1, "queue_delay_us": 0, "dynamic_batching": 0}


def changes(env: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """What `env` changes, by model and by setting.

    Raises:
        ServerError: a value is no number, or too small.
    """
    found: dict[str, dict[str, int]] = {}
    for model in CLASSIFIERS:
        for setting, least in SETTINGS.items():
            name = f"TANDEM_{model}_{setting}".upper()
            text = env.get(name, "").strip()
            if not text:
                continue
            if not text.isdecimal() or int(text) < least:
                raise ServerError(f"{name}={text}: expected a whole number of at least {least}")
            found.setdefault(model, {})[setting] = int(text)
    return found


def overlay(repository: Path, changed: Mapping[str, Mapping[str, int]], config_name: str, directory: Path) -> Path:
    """Make `directory` a repository with these changes.

    Args:
        repository: the one to follow.
        changed: as `changes` gives it; models that `repository` does not have are passed over.
        config_name: of the configuration in `configs/` that Triton will read, "" for config.pbtxt.
        directory: is made, and may not be there.
    """
    directory.mkdir(parents=True)
    models = sorted(entry for entry in repository.iterdir() if entry.is_dir())
    changed = {**changed, **_smaller_ensembles(models, changed)}
    for model in models:
        target = directory / model.name
        if model.name not in changed:
            target.symlink_to(model.resolve(), target_is_directory=True)
            continue
        target.mkdir()
        for entry in model.iterdir():
            if entry.name not in ("config.pbtxt", "configs"):
                (target / entry.name).symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
        file = Path("configs") / f"{config_name}.pbtxt"
        source = model / file if config_name and (model / file).is_file() else model / "config.pbtxt"
        (target / "config.pbtxt").write_text(changed_config(source.read_text("utf-8"), changed[model.name]), "utf-8")
    return directory


def _smaller_ensembles(models: Sequence[Path], changed: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Ensembles that allow larger batches than one of their models then does: Triton does not load those."""
    limits = {model: settings["max_batch"] for model, settings in changed.items() if "max_batch" in settings}
    files = {model.name: model / "config.pbtxt" for model in models if (model / "config.pbtxt").is_file()}
    configs = {name: _parsed(file.read_text("utf-8")) for name, file in files.items()} if limits else {}
    found: dict[str, dict[str, int]] = {}
    growing = True
    while growing:  # an ensemble may be a step of another one
        growing = False
        for name, config in configs.items():
            steps = [limits[step.model_name] for step in config.ensemble_scheduling.step if step.model_name in limits]
            if steps and min(steps) < limits.get(name, config.max_batch_size):
                limits[name] = min(steps)
                found[name] = {"max_batch": limits[name]}
                growing = True
    return found


def _parsed(text: str) -> Any:
    from google.protobuf import text_format  # of the client libraries, which a server without changes does without
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    return text_format.Parse(text, ModelConfig())


def changed_config(text: str, changed: Mapping[str, int]) -> str:
    """A config.pbtxt with these settings; preferred batch sizes beyond the largest batch go."""
    from google.protobuf import text_format

    config = _parsed(text)
    if "instances" in changed:
        for group in config.instance_group:
            group.count = changed["instances"]
    if "max_batch" in changed:
        config.max_batch_size = changed["max_batch"]
        if config.HasField("dynamic_batching"):
            kept = [size for size in config.dynamic_batching.preferred_batch_size if size <= changed["max_batch"]]
            config.dynamic_batching.preferred_batch_size[:] = kept
        warm = [item for item in config.model_warmup if item.batch_size <= changed["max_batch"]]
        del config.model_warmup[:]
        config.model_warmup.extend(warm)
    if "queue_delay_us" in changed:
        config.dynamic_batching.max_queue_delay_microseconds = changed["queue_delay_us"]
    if changed.get("dynamic_batching") == 0:
        config.ClearField("dynamic_batching")
    return str(text_format.MessageToString(config))
