"""A repository in which classifiers are batched as settings say, and nothing else is changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from launcher.errors import ServerError
from launcher.overlay import changed_config, changes, overlay
from launcher.server import REPOSITORY


def read(path: Path) -> ModelConfig:
    return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())


def test_settings_are_read_by_model():
    env = {"TANDEM_RESNET50_INSTANCES": "2", "TANDEM_EFFICIENTNET_LITE0_QUEUE_DELAY_US": "0", "TANDEM_MAX_RUNNING": "8"}
    assert changes(env) == {"resnet50": {"instances": 2}, "efficientnet_lite0": {"queue_delay_us": 0}}
    assert changes({"TANDEM_RESNET50_INSTANCES": ""}) == {}


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_wrong_value_is_refused_by_name(value):
    with pytest.raises(ServerError, match=f"TANDEM_RESNET50_MAX_BATCH={value}: expected a whole number of at least 1"):
        changes({"TANDEM_RESNET50_MAX_BATCH": value})


@pytest.mark.parametrize("config_name", ["cpu", ""])
def test_only_what_is_asked_for_changes(tmp_path, config_name):
    asked = {"instances": 3, "max_batch": 8, "queue_delay_us": 7000}
    made = overlay(REPOSITORY, {"resnet50": asked}, config_name, tmp_path / "made")
    assert sorted(entry.name for entry in made.iterdir()) == sorted(
        entry.name for entry in REPOSITORY.iterdir() if entry.is_dir()
    )
    source = "configs/cpu.pbtxt" if config_name else "config.pbtxt"
    expected, found = read(REPOSITORY / "resnet50" / source), read(made / "resnet50" / "config.pbtxt")
    assert list(found.dynamic_batching.preferred_batch_size) == [8]
    assert {item.batch_size for item in found.model_warmup} <= set(range(1, 9))
    expected.instance_group[0].count = 3
    expected.max_batch_size = 8
    expected.dynamic_batching.max_queue_delay_microseconds = 7000
    for config in (expected, found):
        config.dynamic_batching.ClearField("preferred_batch_size")
        config.ClearField("model_warmup")
    assert found == expected
    assert (made / "resnet50" / "1" / "model.py").read_bytes() == (REPOSITORY / "resnet50/1/model.py").read_bytes()
    assert (made / "target").resolve() == (REPOSITORY / "target").resolve()


def test_ensembles_allow_no_larger_batches_than_their_models(tmp_path):
    """Also those of which an ensemble is a step; for larger batches nothing else changes."""
    made = overlay(REPOSITORY, {"resnet50": {"max_batch": 4}}, "cpu", tmp_path / "smaller")
    for name in ("resnet50_logits", "classify"):
        expected = read(REPOSITORY / name / "config.pbtxt")
        expected.max_batch_size = 4
        assert read(made / name / "config.pbtxt") == expected
    others = [entry for entry in made.iterdir() if not entry.is_symlink()]
    assert sorted(entry.name for entry in others) == ["classify", "resnet50", "resnet50_logits"]
    made = overlay(REPOSITORY, {"resnet50": {"max_batch": 32}}, "cpu", tmp_path / "larger")
    assert [entry.name for entry in made.iterdir() if not entry.is_symlink()] == ["resnet50"]


def test_dynamic_batching_can_be_turned_off():
    text = (REPOSITORY / "resnet50" / "configs" / "cpu.pbtxt").read_text(encoding="utf-8")
    off = text_format.Parse(changed_config(text, {"dynamic_batching": 0, "queue_delay_us": 5}), ModelConfig())
    assert not off.HasField("dynamic_batching")
    on = text_format.Parse(changed_config(text, {"dynamic_batching": 1}), ModelConfig())
    assert on == text_format.Parse(text, ModelConfig())
