"""The replica of the target is the target: its configurations differ from that in engine path and device alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from launcher.server import REPOSITORY


def read(path: str) -> ModelConfig:
    return text_format.Parse((REPOSITORY / path).read_text(encoding="utf-8"), ModelConfig())


@pytest.mark.parametrize(
    ("name", "kind", "gpus"),
    [
        ("config.pbtxt", ModelInstanceGroup.KIND_GPU, [1]),
        ("configs/cpu.pbtxt", ModelInstanceGroup.KIND_CPU, []),
    ],
)
def test_a_replica_differs_in_its_device_and_in_where_its_engine_is(name: str, kind: int, gpus: list[int]) -> None:
    target, replica = read("target/config.pbtxt"), read(f"target_2/{name}")
    engine = replica.parameters.pop("target_engine").string_value
    path = os.path.normpath(REPOSITORY / "target_2" / "1" / engine)
    assert Path(path) == REPOSITORY / "target" / "1" / target.parameters.pop("target_engine").string_value
    (group,) = replica.instance_group
    assert (group.count, group.kind, list(group.gpus)) == (1, kind, gpus)
    del replica.instance_group[:], target.instance_group[:]
    assert replica == target
