"""A request of the `classify` models as a protobuf message, and what its answer says."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc import service_pb2

from client.errors import InvalidRequest, ServerError

MODEL = "classify"
PHOTO_MODEL = "classify_imagenet"
_LABELS, _SCORES = "top_labels", "top_scores"


@dataclass(frozen=True, slots=True)
class Label:
    """A class of a picture, and how probable the model finds it, 0 to 1."""

    name: str
    score: float


def build_classification(
    image: bytes, top_k: int | None = None, *, timeout: float | None = None, model: str = MODEL
) -> service_pb2.ModelInferRequest:
    """Build the message for one image.

    Args:
        image: the bytes of a JPEG, PNG, WebP or GIF file.
        top_k: how many classes to name; None: as many as the server does by itself.
        timeout: seconds after which the server drops the request.
        model: name of the model.

    Raises:
        InvalidRequest: a value that does not fit its field. What is in the image is checked by the server.
    """
    if timeout is not None and not timeout > 0:
        raise InvalidRequest(f"timeout: is {timeout}; it must be above 0 seconds", "INVALID_ARGUMENT")
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="image", datatype="BYTES", shape=(1, 1))
    request.raw_input_contents.append(struct.pack("<I", len(image)) + image)
    if top_k is not None:
        try:
            request.raw_input_contents.append(struct.pack("<i", top_k))
        except struct.error:
            raise InvalidRequest(f"top_k: is {top_k!r}; it must be an integer of 32 bits", "INVALID_ARGUMENT") from None
        request.inputs.add(name="top_k", datatype="INT32", shape=(1, 1))
    for name in (_LABELS, _SCORES):
        request.outputs.add(name=name)
    if timeout is not None:
        request.parameters["timeout"].int64_param = max(1, round(timeout * 1e6))  # microseconds
    return request


def read_labels(response: service_pb2.ModelInferResponse) -> tuple[Label, ...]:
    """The classes in an answer, the likeliest first.

    Raises:
        ServerError: it is none of a `classify` model.
    """
    raw = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=True))
    if not raw.keys() >= {_LABELS, _SCORES}:
        raise ServerError(f"model {response.model_name!r} answers without {_LABELS} and {_SCORES}")
    scores = np.frombuffer(raw[_SCORES], np.float32).tolist()
    return tuple(Label(name, score) for name, score in zip(_strings(raw[_LABELS]), scores, strict=True))


def _strings(raw: bytes) -> list[str]:
    """The elements of a BYTES tensor: each its length, 4 bytes, and its text."""
    found, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        found.append(raw[at + 4 : at + 4 + length].decode("utf-8", "replace"))
        at += 4 + length
    return found
