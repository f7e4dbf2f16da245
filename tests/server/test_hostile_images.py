"""300 broken and hostile images: each gets a reason or an answer, memory stays bounded, and nobody else notices."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hostile_images import HostileImage, encode, hostile_images, photo
from serving import wait_until
from tritonclient import grpc
from vision import peak_bytes, reset_peak, undisturbed

from client import Client, InvalidRequest, Label, ServerError
from tandem.settings import MAX_DECODER_THREADS, DecoderSettings

SEED, COUNT = 23, 300
AT_A_TIME = 4
SECONDS = 60.0
MODEL = "classify_imagenet"
BYTES_PER_PIXEL = 26  # of decoding and converting at its worst
SLACK_BYTES = 200 << 20  # the requests themselves, and what the allocator keeps


def complaint(case: HostileImage, outcome: tuple[Label, ...] | ServerError) -> str | None:
    """What is wrong with the outcome of a hostile image."""
    if isinstance(outcome, tuple):
        if case.says is not None and not case.may_decode:
            return f"{case.name}: classified as {outcome[:1]}"
        return None if outcome and all(0 <= label.score <= 1 for label in outcome) else f"{case.name}: {outcome}"
    if case.says is None:
        return f"{case.name}: {outcome.message}"
    named = isinstance(outcome, InvalidRequest) and outcome.message.startswith("image: ")
    return None if named and case.says in outcome.message else f"{case.name}: {outcome!r}"


def test_hostile_images_get_reasons_and_disturb_nobody(vision_server):
    cases = list(hostile_images(SEED, COUNT))
    good = encode(photo(), "JPEG")

    def check(case: HostileImage) -> str | None:
        try:
            return complaint(case, client.classify(case.data, model=MODEL, timeout=SECONDS))
        except ServerError as error:
            return complaint(case, error)

    decoders = vision_server.stub_pids("image_decoder")
    reset_peak(decoders)
    before = peak_bytes(decoders)
    with Client(vision_server.grpc_url) as client, undisturbed(vision_server, MODEL, good, 50):
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            complaints = [text for text in pool.map(check, cases) if text]
        bound = (
            min(MAX_DECODER_THREADS, os.cpu_count() or 1) * BYTES_PER_PIXEL * DecoderSettings.max_image_pixels
            + SLACK_BYTES
        )
        grown = peak_bytes(decoders) - before
    assert complaints == []
    assert len(cases) == COUNT
    assert grown < bound, f"{grown >> 20} MB where {bound >> 20} are allowed"


def test_the_load_beside_notices_a_dead_decoder(vision_server):
    """The control of `undisturbed`; and how a decoder that was killed comes back."""
    good = encode(photo("flower.jpg"), "JPEG")
    with pytest.raises(AssertionError, match="of the load are wrong"), undisturbed(vision_server, MODEL, good, 4):
        vision_server.kill_stub("image_decoder")
    with grpc.InferenceServerClient(vision_server.grpc_url) as client:
        client.unload_model("image_decoder")  # to Triton it is still there
        client.load_model("image_decoder")  # its ensembles come back with it
    with Client(vision_server.grpc_url) as states:
        wait_until(lambda: states.models()[MODEL] == "READY", "the ensemble")
    with undisturbed(vision_server, MODEL, good, 4):
        pass


@pytest.mark.parametrize(
    ("says", "outcome", "wrong"),
    [
        ("pixels", InvalidRequest("image: is 9 x 9 pixels"), False),
        ("pixels", InvalidRequest("image: is empty"), True),
        ("", InvalidRequest("input is wrong"), True),
        ("", ServerError("Stub process 'image_decoder_0' is not healthy"), True),
        ("", (Label("palace", 0.5),), True),
        (None, (Label("palace", 0.5),), False),
        (None, (Label("palace", float("nan")),), True),
        (None, InvalidRequest("image: is empty"), True),
    ],
)
def test_the_check_wants_a_reason(says, outcome, wrong):
    assert bool(complaint(HostileImage("case", b"", says), outcome)) == wrong
