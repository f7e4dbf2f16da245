"""Classifiers are built by every recipe, checked against torch, kept when up to date, and refused when wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_classifier

from build_engines import tool_process
from build_engines.errors import BuildError
from build_engines.vision import build as building
from build_engines.vision import litert_engine, models, onnx_graph
from build_engines.vision.checkpoint import Origin
from build_engines.vision.huggingface import normalization, rule_of
from build_engines.vision.recipes import RECIPES, recipe_named
from tandem.manifest import ManifestError
from tandem.vision.classifier import load_classifier
from tandem.vision.manifest import VisionManifest


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    return tiny_classifier.origin(tiny_classifier.write(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module", autouse=True)
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported graphs go to a directory of their own, and each is exported once."""
    directory = tmp_path_factory.mktemp("graphs")
    patch = pytest.MonkeyPatch()
    patch.setattr(building, "graph_of", lambda origin, checkpoint: onnx_graph.graph_of(origin, checkpoint, directory))
    yield directory  # type: ignore[misc]
    patch.undo()


@pytest.fixture(autouse=True)
def converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteRT's converter is no part of the environment: what it makes of the tiny classifier is kept with the tests."""
    kept = Path(__file__).parent / "data" / "tiny_classifier.tflite"
    monkeypatch.setattr(litert_engine, "tools", Path)
    monkeypatch.setattr(litert_engine, "_convert", lambda program, target, tools: shutil.copyfile(kept, target))


@pytest.fixture(scope="module")
def reference(origin: Origin, graphs: Path) -> np.ndarray:
    """What torch says to the pictures."""
    import torch

    checkpoint = origin.load()
    with torch.no_grad():
        images = torch.from_numpy(tiny_classifier.pictures(checkpoint.image))
        return onnx_graph.with_preprocessing(checkpoint)(images).numpy()


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if not recipe.gpu])
def test_every_recipe_answers_like_torch(name: str, origin: Origin, reference: np.ndarray, tmp_path: Path) -> None:
    recipe = recipe_named(name)
    manifest = building.build(origin, recipe, tmp_path / "engine")
    classifier = load_classifier(tmp_path / "engine", threads=1)
    images = tiny_classifier.pictures(manifest.image)
    found = classifier.infer(images)
    assert (found.dtype, found.shape) == (np.float32, (len(images), 4))
    assert classifier.labels == ("ant", "bee", "cat", "dog")
    error = np.sqrt(np.mean((found - reference) ** 2)) / reference.std()
    assert error < (0.15 if recipe.quantized else 0.02 if recipe.precision == "bf16" else 1e-4)
    assert manifest.quality["images"] > 0
    images.flags.writeable = False  # as pictures come from Pillow
    np.testing.assert_array_equal(classifier.infer(images), found)
    with pytest.raises(ValueError, match=r"uint8 \[N, 32, 32, 3\]"):
        classifier.infer(images.astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="N >= 1"):
        classifier.infer(images[:0])


def test_int8_weights_are_int8(origin: Origin, tmp_path: Path) -> None:
    """Negative control: of the fp32 engine the same count is none."""
    import onnx

    kinds = {}
    for name in ("onnxruntime-fp32", "onnxruntime-int8"):
        building.build(origin, recipe_named(name), tmp_path / name)
        graph = onnx.load(tmp_path / name / "model.onnx").graph
        constants = {item.name: item.data_type for item in graph.initializer}
        sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        weights = [node.input[1] for node in graph.node if node.op_type == "Conv"]
        kinds[name] = {constants[sources.get(weight, weight)] for weight in weights}
    assert kinds == {"onnxruntime-fp32": {onnx.TensorProto.FLOAT}, "onnxruntime-int8": {onnx.TensorProto.INT8}}


@pytest.mark.parametrize("spared", [0, 1])
def test_a_mixed_recipe_spares_what_was_measured(
    spared: int, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    monkeypatch.setattr(building, "_sensitive", {})
    monkeypatch.setattr(building, "sensitive_layers", lambda graph, _: convolutions(graph)[:spared])

    def convolutions(path: Path) -> list[str]:
        return [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]

    building.build(origin, recipe_named("onnxruntime-int8"), tmp_path / "engine")
    graph = onnx.load(tmp_path / "engine" / "model.onnx").graph
    constants = {item.name for item in graph.initializer}
    full = [node.name for node in graph.node if node.op_type == "Conv" and node.input[1] in constants]
    assert full == convolutions(tmp_path / "engine" / "model.onnx")[:spared]


def test_a_tool_that_fails_says_why() -> None:
    with pytest.raises(BuildError, match="the tool failed with status 3: because of this"):
        tool_process.run([sys.executable, "-c", "import sys; print('because of this'); sys.exit(3)"], "the tool")


def test_kept_when_up_to_date_and_built_again_when_damaged(
    origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, recipe = tmp_path / "engine", recipe_named("onnxruntime-fp32")
    first = building.build(origin, recipe, output)
    lazy = dataclasses.replace(origin, load=lambda: pytest.fail("an engine that is up to date loads nothing"))
    assert building.build(lazy, recipe, output) == first
    (output / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(ManifestError, match=r"damaged: model.onnx: expected sha256 .*, found "):
        load_classifier(output)
    assert building.build(origin, recipe, output) == first
    other = dataclasses.replace(origin, sha256="0" * 64)
    assert building.build_key(other, recipe) != first.build_key


def test_a_failed_build_leaves_the_old_engine(origin: Origin, tmp_path: Path) -> None:
    output = tmp_path / "engine"
    first = building.build(origin, recipe_named("onnxruntime-fp32"), output)

    def broken() -> None:
        raise BuildError("no weights")

    with pytest.raises(BuildError, match="no weights"):
        building.build(dataclasses.replace(origin, load=broken), recipe_named("onnxruntime-fp32"), output, force=True)  # type: ignore[arg-type]
    assert VisionManifest.load(output) == first
    assert [item.name for item in tmp_path.iterdir()] == ["engine"]


def test_an_engine_that_chooses_otherwise_is_refused(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, recipe = tmp_path / "engine", recipe_named("onnxruntime-fp32")
    good = building.build(origin, recipe, output)
    poor = {"images": 16, "agreement": 0.74, "logit_error": 1.0}
    monkeypatch.setattr(building, "_quality", lambda *_: poor)
    with pytest.raises(BuildError, match=r"on only 74% of 16 pictures: .*--least-agreement 0"):
        building.build(origin, recipe, output, force=True)
    assert VisionManifest.load(output) == good
    assert building.build(origin, recipe, output, force=True, least_agreement=0.7).quality == poor
    with pytest.raises(BuildError, match="on only 74%"):  # one that is there is no better
        building.build(origin, recipe, output)


def test_a_graph_that_answers_otherwise_is_refused(origin: Origin, graphs: Path, tmp_path: Path) -> None:
    """Negative control of the parity check: one changed weight."""
    import onnx
    from onnx import numpy_helper

    checkpoint = origin.load()
    path = onnx_graph.graph_of(origin, checkpoint, graphs)
    assert onnx_graph.require_parity(checkpoint, path) < 1e-4
    model = onnx.load(path)
    head = next(item for item in model.graph.initializer if "classifier" in item.name and len(item.dims) == 2)
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float32(1.01), head.name))
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(BuildError, match="answers otherwise than torch"):
        onnx_graph.require_parity(checkpoint, tmp_path / "changed.onnx")


def test_the_graph_has_nothing_left_to_fold(origin: Origin, graphs: Path) -> None:
    import onnx

    graph = onnx.load(onnx_graph.graph_of(origin, origin.load(), graphs)).graph
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"BatchNormalization", "Identity", "Shape", "Range"}
    assert [(item.name, item.type.tensor_type.elem_type) for item in graph.input] == [("image", onnx.TensorProto.UINT8)]


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(BuildError, match=r"there is no recipe int9.*openvino-int8"):
        recipe_named("int9")
    with pytest.raises(BuildError, match="resnet51 is neither resnet50 nor efficientnet_lite0, nor a directory here"):
        models.origin_of("resnet51")
    with pytest.raises(BuildError, match=r"holds no config\.json"):
        models.origin_of(str(Path(__file__).parent))


def test_a_network_for_pictures_of_another_size(tmp_path: Path) -> None:
    directory = tiny_classifier.write(tmp_path / "tiny")
    plain, larger = models.origin_of(str(directory)), models.origin_of(f"{directory}@64")
    assert larger.name == f"{plain.name}-64"
    assert building.build_key(plain, RECIPES["openvino-fp32"]) != building.build_key(larger, RECIPES["openvino-fp32"])
    manifest = building.build(larger, RECIPES["openvino-fp32"], tmp_path / "engine")
    before = plain.load().image
    assert (manifest.image.size, manifest.image.shorter_side) == (64, round(before.shorter_side * 64 / before.size))
    images = np.zeros((2, 64, 64, 3), np.uint8)
    assert load_classifier(tmp_path / "engine", threads=1).infer(images).shape == (2, 4)
    with pytest.raises(BuildError, match="at least 32 pixels"):
        models.origin_of("efficientnet_lite0@31")


def test_a_manifest_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="holds no classifier"):
        VisionManifest.read(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 1, "kind": "language"}))
    with pytest.raises(ManifestError, match="expected vision 1, found language 1"):
        VisionManifest.read(tmp_path)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224, "resample": 3},
            (224, 256, "bicubic"),
        ),
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3},
            (224, 256, "bicubic"),
        ),  # microsoft/resnet-50
        ({"size": 224}, (224, 224, "bilinear")),
        ({"size": {"height": 384, "width": 384}, "resample": 2}, (384, 384, "bilinear")),
    ],
)
def test_rules_of_hugging_face(processor: dict[str, object], expected: tuple[int, int, str]) -> None:
    rule = rule_of(processor)
    assert (rule.size, rule.shorter_side, rule.resample) == expected


def test_normalization_of_hugging_face() -> None:
    mean, std = normalization({"image_mean": [0.5, 0.25, 0], "image_std": [0.5, 1, 2], "rescale_factor": 1 / 255})
    assert (mean, std) == ((127.5, 63.75, 0.0), (127.5, 255.0, 510.0))
    with pytest.raises(BuildError, match="image_std"):
        normalization({"image_mean": [0.5] * 3, "image_std": [0.5, 0, 1]})


@pytest.mark.parametrize("size", [{"shortest_edge": "x"}, {"height": 2, "width": 3}, None])
def test_rules_that_cannot_be_followed(size: object) -> None:
    with pytest.raises(BuildError, match="size"):
        rule_of({"size": size})
