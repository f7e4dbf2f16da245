"""The client's `classify` without a server: its message, its answer, and the files it finds."""

from __future__ import annotations

import json
import struct

import grpc
import numpy as np
import pytest
from grpc_calls import Refused
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from client import Client, InvalidRequest, Label, ServerError, classify
from client.__main__ import main
from client.classification import build_classification, read_labels
from client.errors import Unreachable, error_from_rpc
from client.image_files import find_images


def test_request():
    request = build_classification(b"abc", 3, timeout=0.5, model="classify_imagenet")
    assert request.model_name == "classify_imagenet"
    assert [(i.name, i.datatype, list(i.shape)) for i in request.inputs] == [
        ("image", "BYTES", [1, 1]),
        ("top_k", "INT32", [1, 1]),
    ]
    assert list(request.raw_input_contents) == [struct.pack("<I", 3) + b"abc", struct.pack("<i", 3)]
    assert request.parameters["timeout"].int64_param == 500_000
    assert len(build_classification(b"abc").inputs) == 1
    with pytest.raises(InvalidRequest, match="top_k"):
        build_classification(b"abc", 2**40)
    with pytest.raises(InvalidRequest, match="timeout"):
        build_classification(b"abc", timeout=0)


def test_answer():
    response = service_pb2.ModelInferResponse(model_name="classify")
    names = serialize_byte_tensor(np.array([["naïve", ""]], dtype=np.object_)).item()
    for name, raw in (("top_scores", np.array([0.5, 0.25], np.float32).tobytes()), ("top_labels", names)):
        response.outputs.add(name=name)
        response.raw_output_contents.append(raw)
    assert read_labels(response) == (Label("naïve", 0.5), Label("", 0.25))
    with pytest.raises(ServerError, match="'generate' answers without"):
        read_labels(service_pb2.ModelInferResponse(model_name="generate"))


def test_errors_lose_what_triton_puts_in_front():
    refused = Refused(
        grpc.StatusCode.INVALID_ARGUMENT, "in ensemble 'classify', [INVALID_ARG] image: is empty (0 bytes)"
    )
    error = error_from_rpc(refused)
    assert isinstance(error, InvalidRequest)
    assert error.message == "image: is empty (0 bytes)"


def test_files(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.JPG", "a.png", "deep/c.webp", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    assert find_images([str(tmp_path)]) == [str(tmp_path / name) for name in ("a.png", "b.JPG", "deep/c.webp")]
    assert find_images([str(tmp_path / "notes.txt"), "-"]) == [str(tmp_path / "notes.txt"), "-"]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png: no such file"):
        find_images([str(tmp_path / "nowhere.png")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image files"):
        find_images([str(tmp_path / "empty")])


@pytest.fixture
def answers(monkeypatch):
    """What `Client.classify` answers by the file's content; an error is raised."""
    known: dict[bytes, object] = {}

    def answer(self, image, **options):
        found = known[image]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(Client, "classify", answer)
    monkeypatch.setattr(Client, "models", lambda self: {"classify": "READY"})
    return known


def test_bad_files_do_not_stop_the_rest(tmp_path, capsys, answers):
    answers[b"good"] = (Label("cat", 0.75),)
    answers[b"bad"] = InvalidRequest("image: is damaged")
    for index in range(40):
        (tmp_path / f"{index:02}.png").write_bytes(b"bad" if index % 10 == 9 else b"good")
    assert main(["classify", str(tmp_path), "--json", "--concurrency", "2"]) == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["file"] for line in lines] == sorted(str(file) for file in tmp_path.iterdir())
    assert [line.get("error") for line in lines].count("image: is damaged") == 4
    assert lines[0]["labels"] == [{"label": "cat", "score": 0.75}]
    assert "36 classified, 4 failed" in captured.err
    assert main(["classify", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert f"{tmp_path / '00.png'}: cat 75.0%" in captured.out
    assert f"error: {tmp_path / '09.png'}: image: is damaged" in captured.err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (Unreachable("connection refused", "UNAVAILABLE"), 3, "make serve"),
        (ServerError("Request for unknown model: 'classify' is not found", "NOT_FOUND"), 1, "make engine-vision"),
    ],
)
def test_what_would_fail_for_all_stops(tmp_path, capsys, answers, error, code, says):
    answers[b"good"] = error
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"good")
    assert main(["classify", str(tmp_path)]) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""


def test_photos_go_to_the_model_that_knows_them(monkeypatch):
    for state, model in (("READY", "classify_imagenet"), ("UNLOADED", "classify")):
        monkeypatch.setattr(Client, "models", lambda self, state=state: {"classify_imagenet": state})
        with Client() as client:
            assert classify._model_for_photos(client) == model
