"""Classifiers behind the real server: right labels by every way, each request for itself, and Triton's own extras."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hostile_images import encode, originals
from hostile_images import photo as sample
from PIL import Image
from serving import wait_until
from tritonclient import grpc, http
from tritonclient.utils import InferenceServerException, serialize_byte_tensor, shared_memory
from vision import OUTPUTS, complaint_of, image_input, infer, top_k_input, triton_metric, unique

from build_engines.vision import digits, photos
from client import Client, InvalidRequest
from launcher.engines import CLASSIFIERS
from launcher.server import REPOSITORY
from tandem.vision.classifier import Classifier, load_classifier
from tandem.vision.image_file import ImageLimits, decode
from tandem.vision.ranking import softmax
from tandem.vision.repository import built_engines, engine_directory

PHOTOS = {name: photos.photo(name).read_bytes() for name in photos.NAMED}
BUILT = built_engines(REPOSITORY, CLASSIFIERS)
# Of the ensembles those whose classifiers have been built; `resnet50` takes minutes of training.
MODELS = {
    name: classifier
    for name, classifier in {"classify_imagenet": "efficientnet_lite0", "classify": "resnet50"}.items()
    if classifier in BUILT
}
BOTH = pytest.mark.parametrize("kind", [grpc, http], ids=["grpc", "http"])
# Of the same engine with the same batch nothing differs; with other batches sums are taken in another order.
BATCHES = 2e-3


@pytest.fixture(scope="module")
def engines() -> dict[str, Classifier]:
    """The engines of the served models, called directly."""
    return {name: load_classifier(directory) for name, directory in BUILT.items()}


def direct(engine: Classifier, images: list[bytes]) -> np.ndarray:
    """Probabilities [N, classes] without a server."""
    rule = engine.manifest.image
    return softmax(engine.infer(np.stack([decode(image, rule, ImageLimits()) for image in images])))


@BOTH
@pytest.mark.parametrize("name", photos.NAMED)
def test_photos_are_named_rightly(vision_server, engines, kind, name):
    answer = infer(vision_server, kind, "classify_imagenet", [image_input(kind, [unique(PHOTOS[name])])])
    assert photos.NAMED[name] in " ".join(label.decode() for label in answer["top_labels"][0])
    assert answer["scores"] == pytest.approx(direct(engines["efficientnet_lite0"], [PHOTOS[name]]), abs=1e-6)
    assert answer["top_scores"][0].tolist() == sorted(answer["scores"][0].tolist(), reverse=True)[:5]


@pytest.mark.skipif("resnet50" not in BUILT, reason="resnet50 is not built: make engine-digits")
@BOTH
def test_digits_are_read_rightly(vision_server, engines, kind):
    pictures, numbers = digits.held_out(16)
    images = [encode(Image.fromarray(picture), "PNG") for picture in pictures]
    answer = infer(vision_server, kind, "classify", [image_input(kind, images), top_k_input(kind, [1] * 16)])
    assert answer["scores"] == pytest.approx(direct(engines["resnet50"], images), abs=1e-6)
    read = [label.decode() for (label,) in answer["top_labels"]]
    right = sum(label == str(number) for label, number in zip(read, numbers, strict=True))
    assert right >= 14, f"{read} for {numbers.tolist()}"


@BOTH
@pytest.mark.parametrize("model", MODELS)
def test_a_batch_answers_as_its_images_alone(vision_server, engines, kind, model):
    images = [*PHOTOS.values(), *originals().values()]
    batch = infer(vision_server, kind, model, [image_input(kind, images)])
    singles = [infer(vision_server, kind, model, [image_input(kind, [unique(image)])]) for image in images[:4]]
    assert batch["scores"] == pytest.approx(direct(engines[MODELS[model]], images), abs=BATCHES)
    for index, single in enumerate(singles):
        assert single["scores"][0] == pytest.approx(batch["scores"][index], abs=BATCHES)
        assert single["top_labels"][0][0] == batch["top_labels"][index][0]


def test_requests_that_come_together_share_inferences(vision_server, engines):
    """Each gets its own answer out of the batch; without batching there are as many inferences as requests."""
    images = [unique(image) for image in originals().values() for _ in range(8)]
    before = triton_metric(vision_server, "nv_inference_exec_count", "efficientnet_lite0")
    with Client(vision_server.grpc_url) as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda image: client.classify(image, model="classify_imagenet", top_k=1), images))
    inferences = triton_metric(vision_server, "nv_inference_exec_count", "efficientnet_lite0") - before
    wanted = direct(engines["efficientnet_lite0"], images)
    assert [found.score for (found,) in answers] == pytest.approx(wanted.max(axis=1).tolist(), abs=BATCHES)
    assert inferences < len(images) / 2


def test_settings_say_how_many_instances_and_how_large_batches_are(start_server, engines):
    wanted = {"INSTANCES": "2", "MAX_BATCH": "4", "DYNAMIC_BATCHING": "0"}
    env = {f"TANDEM_EFFICIENTNET_LITE0_{name}": value for name, value in wanted.items()}
    pipeline = ("efficientnet_lite0_logits", "classify_imagenet", "image_decoder", "label_ranker")
    server = start_server(models=("efficientnet_lite0", *pipeline), env=env)
    repository = server.log.with_suffix(".repository")
    pixels = np.stack([decode(PHOTOS["china.jpg"], engines["efficientnet_lite0"].manifest.image, ImageLimits())] * 5)

    def answered(count: int) -> np.ndarray:
        tensor = grpc.InferInput("image", pixels[:count].shape, "UINT8")
        tensor.set_data_from_numpy(pixels[:count])
        return infer(server, grpc, "efficientnet_lite0", [tensor], ("logits",))["logits"]

    assert len(server.stub_pids("efficientnet_lite0")) == 2
    assert answered(4) == pytest.approx(engines["efficientnet_lite0"].infer(pixels[:4]), abs=BATCHES)
    with pytest.raises(InferenceServerException, match="batch-size must be <= 4"):
        answered(5)
    assert repository.is_dir()
    server.stop()
    assert not repository.exists()


@BOTH
@pytest.mark.parametrize("model", MODELS)
def test_classification_extension(vision_server, kind, model):
    """`score:index:label`, with the labels of the build."""
    inputs = [image_input(kind, [PHOTOS["china.jpg"], PHOTOS["coffee.png"]]), top_k_input(kind, [3, 3])]
    answer = infer(vision_server, kind, model, inputs)
    classes = infer(vision_server, kind, model, inputs, ("scores",), class_count=3)["scores"]
    labels = load_labels(MODELS[model])
    for row, (top, scores) in enumerate(zip(answer["top_labels"], answer["top_scores"], strict=True)):
        for found, label, score in zip(classes[row], top, scores, strict=True):
            value, index, name = found.decode().split(":")
            assert name == label.decode() == labels[int(index)]
            assert float(value) == pytest.approx(float(score), abs=1e-5)


def load_labels(classifier: str) -> list[str]:
    return (engine_directory(REPOSITORY, classifier) / "labels.txt").read_text(encoding="utf-8").splitlines()


def test_classifiers_alone_have_labels_too(vision_server, engines):
    pixels = decode(PHOTOS["china.jpg"], engines["efficientnet_lite0"].manifest.image, ImageLimits())[None]
    tensor = grpc.InferInput("image", pixels.shape, "UINT8")
    tensor.set_data_from_numpy(pixels)
    found = infer(vision_server, grpc, "efficientnet_lite0", [tensor], ("logits",), class_count=1)["logits"]
    assert found[0][0].decode().endswith(":palace")


@pytest.mark.parametrize("outputs", [("scores",), ("top_labels",), ("top_scores", "top_labels"), OUTPUTS])
def test_any_of_the_outputs_may_be_asked_for(vision_server, outputs):
    """Triton 2.51 fails with a deadlock where an ensemble's output is read by a step too, and caches for all alike."""
    for image in (PHOTOS["rocket.jpg"], unique(PHOTOS["rocket.jpg"])):
        answer = infer(vision_server, grpc, "classify_imagenet", [image_input(grpc, [image])], outputs)
        assert answer.keys() == set(outputs)
        assert all(array is not None for array in answer.values())


@BOTH
def test_top_k(vision_server, kind):
    image = [PHOTOS["chelsea.png"]]

    def count(*values: int) -> tuple[int, ...]:
        inputs = [image_input(kind, image), *([top_k_input(kind, values)] if values else [])]
        return infer(vision_server, kind, "classify_imagenet", inputs)["top_labels"].shape

    assert [count(), count(1), count(7), count(5000)] == [(1, 5), (1, 1), (1, 7), (1, 1000)]
    wrong = [image_input(kind, image), top_k_input(kind, [0])]
    assert "[INVALID_ARG] top_k: is 0" in complaint_of(kind, vision_server, "classify_imagenet", wrong)
    mixed = [image_input(kind, image * 2), top_k_input(kind, [1, 2])]
    assert "[INVALID_ARG] top_k: differs" in complaint_of(kind, vision_server, "classify_imagenet", mixed)


@BOTH
def test_a_bad_image_names_its_place_and_fails_only_its_request(vision_server, kind):
    good, bad = PHOTOS["china.jpg"], b"no image"
    said = complaint_of(kind, vision_server, "classify_imagenet", [image_input(kind, [good, good, bad])])
    assert "[INVALID_ARG] image[2]: is no readable JPEG, PNG, WebP or GIF file; it begins with b'no image'" in said

    def outcome(image: bytes) -> str:
        try:
            return infer(vision_server, kind, "classify_imagenet", [image_input(kind, [image])])["top_labels"][0][0]
        except (grpc.InferenceServerException, http.InferenceServerException) as error:
            return error.message()

    mixture = [bad if index % 4 == 3 else unique(good) for index in range(32)]
    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(outcome, mixture))
    assert all(outcomes[index] == b"palace" for index in range(32) if index % 4 != 3)
    assert all("[INVALID_ARG] image: is no" in outcomes[index] for index in range(3, 32, 4))


def test_repeated_images_come_from_the_response_cache_and_errors_do_not(vision_server):
    """A cached error of a step would be an empty answer the second time: Triton 2.51 does that."""
    image, bad = unique(PHOTOS["coffee.png"]), unique(b"nothing")

    def hits() -> float:
        return triton_metric(vision_server, "nv_cache_num_hits_per_model", "efficientnet_lite0_logits")

    before, inferences = hits(), triton_metric(vision_server, "nv_inference_exec_count", "efficientnet_lite0")
    with Client(vision_server.grpc_url) as client:
        first = client.classify(image, model="classify_imagenet")
        assert hits() == before
        assert client.classify(image, model="classify_imagenet") == first
        assert client.classify(image, model="classify_imagenet", top_k=2) == first[:2]
        assert hits() == before + 2
        messages = []
        for _ in range(3):
            with pytest.raises(InvalidRequest, match="image: is no readable") as caught:
                client.classify(bad, model="classify_imagenet")
            messages.append(caught.value.message)
        assert len(set(messages)) == 1
    assert hits() == before + 2
    assert triton_metric(vision_server, "nv_inference_exec_count", "efficientnet_lite0") == inferences + 1


def unregistered(client, name: str) -> bool:
    """Triton 2.51 holds a region for a moment after the answer, and refuses."""
    try:
        client.unregister_system_shared_memory(name)
        return True
    except grpc.InferenceServerException as error:
        if "currently in use" not in error.message():
            raise
        return False


def test_large_images_through_system_shared_memory(vision_server):
    """8 MB of PNG that never go through gRPC; the region is Triton's own extension."""
    noise = np.random.default_rng(1).integers(0, 256, (1_600, 1_700, 3), dtype=np.uint8)
    image = encode(sample().resize((1_700, 1_600)), "PNG") + noise.tobytes()
    array = np.array([[image]], dtype=np.object_)
    size = len(image) + 4
    region = shared_memory.create_shared_memory_region("images", "/tandem_test_images", size)
    try:
        shared_memory.set_shared_memory_region(region, [serialize_byte_tensor(array)])
        with grpc.InferenceServerClient(vision_server.grpc_url) as client:
            client.register_system_shared_memory("images", "/tandem_test_images", size)
            tensor = grpc.InferInput("image", [1, 1], "BYTES")
            tensor.set_shared_memory("images", size)
            shared = infer(vision_server, grpc, "classify_imagenet", [tensor])
            wait_until(lambda: unregistered(client, "images"), "the end of the server's use of the region")
    finally:
        shared_memory.destroy_shared_memory_region(region)
    inline = infer(vision_server, grpc, "classify_imagenet", [image_input(grpc, [unique(image)])])
    assert shared["scores"] == pytest.approx(inline["scores"], abs=1e-6)


def test_decoder_gives_each_classifier_its_pixels(vision_server, engines):
    image = PHOTOS["chelsea.png"]
    answer = infer(vision_server, grpc, "image_decoder", [image_input(grpc, [image])], tuple(BUILT))
    for name, pixels in answer.items():
        assert (pixels[0] == decode(image, engines[name].manifest.image, ImageLimits())).all()


def test_a_request_in_a_hurry_and_one_that_waits_too_long(vision_server):
    with grpc.InferenceServerClient(vision_server.grpc_url) as client:
        images = [unique(PHOTOS["china.jpg"]) for _ in range(24)]
        futures = [
            client.infer("classify_imagenet", [image_input(grpc, [image])], priority=1 + index % 2)
            for index, image in enumerate(images[:4])
        ]
        assert all(answer.as_numpy("top_labels")[0][0] == b"palace" for answer in futures)
        with ThreadPoolExecutor(16) as pool:

            def impatient(image: bytes) -> str:
                try:
                    client.infer("classify_imagenet", [image_input(grpc, [image])], timeout=1)
                except grpc.InferenceServerException as error:
                    return error.status() + error.message()
                return ""

            outcomes = list(pool.map(impatient, images))
    assert any("UNAVAILABLE" in text and "timeout" in text.lower() for text in outcomes), outcomes


def test_command_line(vision_server, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, data in PHOTOS.items():
        (folder / name).write_bytes(data)
    (folder / "broken.jpg").write_bytes(PHOTOS["china.jpg"][:2_000])
    (folder / "notes.txt").write_text("no image")
    command = [sys.executable, "-m", "client", "classify", "--url", vision_server.grpc_url]
    run = subprocess.run([*command, str(folder), "--json", "--top-k", "2"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert "4 classified, 1 failed" in run.stderr
    lines = {json.loads(line)["file"]: json.loads(line) for line in run.stdout.splitlines()}
    assert list(lines) == sorted(str(file) for file in folder.iterdir() if file.suffix != ".txt")
    assert "damaged or cut off" in lines[str(folder / "broken.jpg")]["error"]
    for name, word in photos.NAMED.items():
        labels = lines[str(folder / name)]["labels"]
        assert len(labels) == 2
        assert word in " ".join(label["label"] for label in labels)
    one = subprocess.run([*command, str(folder / "china.jpg")], capture_output=True, text=True, timeout=120)
    assert one.returncode == 0
    assert "palace" in one.stdout.splitlines()[0]
    assert one.stderr == ""
