"""The vision models' configurations, read as Triton reads them: by its model_config.proto."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup, ModelQueuePolicy

from build_engines.vision.tensorrt_plan import BATCHES
from build_engines.vision.tensorrt_plan import FILE as PLAN
from launcher.engines import CLASSIFIERS, VISION_MODELS
from launcher.server import REPOSITORY
from tandem.vision.manifest import INPUT, LABELS_FILE, OUTPUT

ENSEMBLES = ("classify", "classify_imagenet", "resnet50_logits", "efficientnet_lite0_logits")


def read(path: Path | str) -> ModelConfig:
    return text_format.Parse((REPOSITORY / path).read_text(encoding="utf-8"), ModelConfig())


def cpu(model: str) -> ModelConfig:
    """The configuration that --model-config-name=cpu gives."""
    own = REPOSITORY / model / "configs" / "cpu.pbtxt"
    return read(own if own.exists() else f"{model}/config.pbtxt")


def tensors(fields) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {field.name: (field.data_type, tuple(field.dims)) for field in fields}


def batching_faults(config: ModelConfig) -> list[str]:
    """What is wrong with the batching of a classifier."""
    batching = config.dynamic_batching
    warm = {warmup.batch_size for warmup in config.model_warmup}
    policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
    checks = {
        "no dynamic batching": config.HasField("dynamic_batching"),
        "a preferred size above the maximum": all(
            size <= config.max_batch_size for size in batching.preferred_batch_size
        ),
        "the largest batch is not preferred": config.max_batch_size in batching.preferred_batch_size,
        "no queue delay, or one that a person notices": 0 < batching.max_queue_delay_microseconds <= 10_000,
        "no priorities": 1 <= batching.default_priority_level <= batching.priority_levels >= 2,
        "a policy for a priority that is not there": set(batching.priority_queue_policy)
        <= set(range(1, batching.priority_levels + 1)),
        "a queue without an end": all(policy.max_queue_size > 0 for policy in policies),
        "waiting without an end": all(
            policy.default_timeout_microseconds > 0
            and policy.allow_timeout_override
            and policy.timeout_action == ModelQueuePolicy.REJECT
            for policy in policies
        ),
        # The Python backend's models warm themselves up.
        "a size that is not warmed up": config.backend == "python" or warm >= {1, *batching.preferred_batch_size},
        "warm-up of another tensor": all(
            {name: (field.data_type, tuple(field.dims)) for name, field in warmup.inputs.items()}
            == tensors(config.input)
            for warmup in config.model_warmup
        ),
    }
    return [fault for fault, fine in checks.items() if not fine]


def ensemble_faults(config: ModelConfig) -> list[str]:
    """What is wrong with an ensemble: wrong tensors, and what Triton 2.51 cannot do."""
    faults = []
    steps = config.ensemble_scheduling.step
    made = tensors(config.input)
    read_by_steps = {name for step in steps for name in step.input_map.values()}
    for step in steps:
        model = cpu(step.model_name)
        inputs, outputs = tensors(model.input), tensors(model.output)
        optional = {field.name for field in model.input if field.optional}
        if model.max_batch_size < config.max_batch_size:
            faults.append(f"{step.model_name} takes smaller batches")
        if not inputs.keys() - optional <= step.input_map.keys() <= inputs.keys():
            faults.append(f"{step.model_name} has no such inputs: {set(step.input_map)}")
        for key, name in step.input_map.items():
            if name not in made or made[name][0] != inputs.get(key, (None,))[0]:
                faults.append(f"{name} is not what {step.model_name} takes")
        made |= {name: outputs[key] for key, name in step.output_map.items() if key in outputs}
    for field in config.output:
        if field.name not in made or made[field.name][0] != field.data_type:
            faults.append(f"no step makes {field.name}")
        if field.name in read_by_steps:
            faults.append(f"{field.name} is the input of a step too: requests without it would deadlock")
    if config.response_cache.enable and len(config.output) > 1:
        faults.append("cached with several outputs: the cache does not tell requests for some of them apart")
    return faults


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_gpu_configuration(model):
    config = read(f"{model}/config.pbtxt")
    assert config.backend == "tensorrt"
    assert config.default_model_filename == f"engine/{PLAN}"
    assert config.max_batch_size == max(BATCHES)  # that the plan is built for
    assert tensors(config.input) == {INPUT: (DataType.TYPE_UINT8, (224, 224, 3))}
    (output,) = config.output
    assert (output.name, output.data_type) == (OUTPUT, DataType.TYPE_FP32)
    assert output.label_filename == f"1/engine/{LABELS_FILE}"
    assert [(group.kind, group.count) for group in config.instance_group] == [(ModelInstanceGroup.KIND_GPU, 2)]
    assert {graph.batch_size for graph in config.optimization.cuda.graph_spec} >= {
        *config.dynamic_batching.preferred_batch_size
    }
    assert batching_faults(config) == []


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_cpu_configuration_has_the_same_tensors(model):
    config, gpu = cpu(model), read(f"{model}/config.pbtxt")
    assert config.backend == "python"
    assert tensors(config.input).keys() == tensors(gpu.input).keys()
    for name, (kind, dims) in tensors(gpu.input).items():
        own_kind, own_dims = tensors(config.input)[name]
        assert own_kind == kind
        assert all(own in (-1, size) for own, size in zip(own_dims, dims, strict=True))
    assert [(o.name, o.data_type, o.label_filename) for o in config.output] == [
        (o.name, o.data_type, o.label_filename) for o in gpu.output
    ]
    # With queue policies a single instance is missed by Triton's batcher, up to half a second long: see the README.
    assert [(group.kind, group.count) for group in config.instance_group] == [(ModelInstanceGroup.KIND_CPU, 2)]
    assert batching_faults(config) == []


@pytest.mark.parametrize("model", ENSEMBLES)
def test_ensemble(model):
    config = read(f"{model}/config.pbtxt")
    assert ensemble_faults(config) == []
    for field in config.output:
        if field.label_filename:
            path = (REPOSITORY / model / field.label_filename).resolve()
            assert path.name == LABELS_FILE
            assert path.relative_to(REPOSITORY).parts[0] in CLASSIFIERS


def test_all_vision_models_are_there_and_only_ensembles_are_cached():
    for model in VISION_MODELS:
        config = read(f"{model}/config.pbtxt")
        assert config.response_cache.enable == model.endswith("_logits"), model  # its errors would be cached elsewhere
    assert set(ENSEMBLES) < set(VISION_MODELS)


def test_the_checks_notice_mistakes():
    with pytest.raises(text_format.ParseError, match="max_queue_delay"):
        text_format.Parse("dynamic_batching { max_queue_delay_ms: 5 }", ModelConfig())
    config = read("resnet50/config.pbtxt")
    config.dynamic_batching.preferred_batch_size.append(64)
    config.dynamic_batching.default_priority_level = 3
    config.dynamic_batching.default_queue_policy.max_queue_size = 0
    assert len(batching_faults(config)) == 4  # the size is not warmed up either
    ensemble = read("classify/config.pbtxt")
    ensemble.ensemble_scheduling.step[1].input_map["efficientnet"] = "image"
    ensemble.output.add(name="logits", data_type=DataType.TYPE_FP32)
    ensemble.response_cache.enable = True
    faults = ensemble_faults(ensemble)
    assert any("deadlock" in fault for fault in faults)
    assert any("cached" in fault for fault in faults)
    assert any("no such inputs" in fault for fault in faults)
