"""What tests of the served classifiers share: calls in Triton's own protocols, and the load beside a test."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import requests
from serving import wait_until
from tritonclient import grpc, http

from client import Client, Label, ServerError
from launcher.server import TritonServer

OUTPUTS = ("scores", "top_labels", "top_scores")
# Bytes behind the end of a file change nothing but the key of the response cache.
_UNIQUE = iter(range(10**9))


def unique(image: bytes) -> bytes:
    """The same JPEG or PNG, but new to the response cache."""
    return image + next(_UNIQUE).to_bytes(8, "little")


def image_input(kind, images: Sequence[bytes]):
    """The tensor `image` for `tritonclient.grpc` or `tritonclient.http`."""
    array = np.array([[image] for image in images], dtype=np.object_)
    tensor = kind.InferInput("image", array.shape, "BYTES")
    tensor.set_data_from_numpy(array)
    return tensor


def top_k_input(kind, values: Sequence[int]):
    array = np.array(values, np.int32).reshape(-1, 1)
    tensor = kind.InferInput("top_k", array.shape, "INT32")
    tensor.set_data_from_numpy(array)
    return tensor


def infer(server: TritonServer, kind, model: str, inputs, outputs: Sequence[str] = OUTPUTS, class_count: int = 0):
    """Call a model by gRPC or HTTP; arrays by the name of the output.

    Raises what `tritonclient` raises.
    """
    url = server.grpc_url if kind is grpc else server.http_url
    with kind.InferenceServerClient(url) as client:
        wanted = [kind.InferRequestedOutput(name, class_count=class_count) for name in outputs]
        result = client.infer(model, inputs, outputs=wanted)
        return {name: result.as_numpy(name) for name in outputs}


def complaint_of(kind, server: TritonServer, model: str, inputs, outputs: Sequence[str] = OUTPUTS) -> str:
    """The error of a call that must fail."""
    try:
        infer(server, kind, model, inputs, outputs)
    except (grpc.InferenceServerException, http.InferenceServerException) as error:
        return error.message()
    raise AssertionError("the request was answered")


def triton_metric(server: TritonServer, name: str, model: str) -> float:
    """A metric of Triton itself, of one model; 0 where it is not there."""
    text = requests.get(f"http://{server.metrics_url}/metrics", timeout=30).text
    found = re.search(rf'^{name}{{[^}}]*model="{model}"[^}}]*}} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def stubs(server: TritonServer, models: Sequence[str]) -> dict[str, list[int]]:
    """Process ids of the models' stubs: they change when a model is loaded anew."""
    return {model: sorted(server.stub_pids(model)) for model in models}


def reset_peak(pids: Sequence[int]) -> None:
    """Let the peak of resident memory count from now on; see proc(5), clear_refs."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(pids: Sequence[int]) -> int:
    """Peak of resident memory since `reset_peak`, all processes together."""
    status = [Path(f"/proc/{pid}/status").read_text(encoding="ascii") for pid in pids]
    return sum(int(found[1]) << 10 for text in status if (found := re.search(r"VmHWM:\s+(\d+)", text)))


def processes(server: TritonServer) -> list[int]:
    """The server and its stubs."""
    return [server.pid, *(child.pid for child in psutil.Process(server.pid).children(recursive=True))]


@contextmanager
def undisturbed(server: TritonServer, model: str, image: bytes, at_least: int) -> Iterator[None]:
    """Two clients that classify one image again and again while the block runs, none of it from the cache.

    Fails if an answer is another one than without the block, or none, if there are fewer than `at_least`, or if a
    process of the server is another one afterwards.
    """
    with Client(server.grpc_url) as client:
        alone = client.classify(unique(image), model=model)
        before = processes(server)
        over = threading.Event()
        answers: list[tuple[Label, ...] | ServerError] = []

        def follow() -> None:
            while not over.is_set():
                try:
                    answers.append(client.classify(unique(image), model=model, timeout=60))
                except ServerError as error:
                    answers.append(error)

        threads = [threading.Thread(target=follow, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: answers, "an answer of the load")
            yield
            wait_until(lambda: len(answers) >= at_least, f"{at_least} answers of the load")
        finally:
            over.set()
            for thread in threads:
                thread.join(120)
        wrong = [answer for answer in answers if not same(answer, alone)]
        assert not wrong, f"{len(wrong)} of {len(answers)} answers of the load are wrong: {wrong[0]!r}"
    assert processes(server) == before, "a process of the server is another one"


def same(answer: tuple[Label, ...] | ServerError, wanted: tuple[Label, ...]) -> bool:
    """Whether an answer is the wanted one, but for what sums in another order change."""
    if isinstance(answer, ServerError):
        return False
    return all(a.name == b.name and abs(a.score - b.score) < 1e-3 for a, b in zip(answer, wanted, strict=True))
