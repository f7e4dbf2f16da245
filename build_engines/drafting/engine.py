"""A trained drafter to an OpenVINO engine: one step per call, with the target's embedding and LM head inside."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from build_engines.drafting import WEIGHTS_FILE
from build_engines.drafting.network import EPSILON, Network
from build_engines.drafting.weights import Drafter, embedding_of, load
from build_engines.errors import BuildError
from build_engines.progress import quiet, silence_libraries, stage
from tandem import recurrent_drafter
from tandem.drafter_manifest import DrafterManifest
from tandem.manifest import FILE_NAME, sha256_of_file

RUNTIME = "openvino"
PRECISIONS = ("int8", "fp32")


def build_drafter(
    weights: Path, checkpoint: Path, output: Path, precision: str = "int8", vocabulary: int | None = None
) -> DrafterManifest:
    """Make the directory `output` hold the engine of the drafter in `weights` for the target `checkpoint`.

    `vocabulary` keeps so many of the most frequent tokens that it can propose: fewer make its steps cheaper.

    Raises:
        BuildError: the drafter was trained for another target, or a file is unusable. `output` is then as it was.
    """
    drafter = load(weights)
    table, digest = embedding_of(checkpoint)
    if digest != drafter.embedding_sha256:
        raise BuildError(
            f"{weights} was trained for a target whose embedding has the sha256 {drafter.embedding_sha256}; that of "
            f"{checkpoint.name} has {digest}"
        )
    if output.exists() and any(output.iterdir()) and not (output / FILE_NAME).is_file():
        raise BuildError(f"{output} exists and holds no drafter; choose another --output or remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.build-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with stage(f"building {output} from {weights}, {precision}"):
            silence_libraries()
            with quiet():
                ids = np.sort(drafter.ids[:vocabulary])
                _write_model(temporary, drafter, table.numpy(), ids, precision)
        manifest = DrafterManifest(
            name=drafter.name,
            weights_sha256=sha256_of_file(weights / WEIGHTS_FILE),
            embedding_sha256=digest,
            tokenizer_sha256=sha256_of_file(checkpoint / "tokenizer.json"),
            precision=precision,
            proposable=len(ids),
            runtime=RUNTIME,
            runtime_version=metadata.version(RUNTIME),
            hidden_size=drafter.network.shape.hidden,
            vocab_size=len(table),
            files={item.name: sha256_of_file(item) for item in sorted(temporary.iterdir())},
        )
        manifest.write(temporary)
        shutil.rmtree(output, ignore_errors=True)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _write_model(
    directory: Path, drafter: Drafter, table: npt.NDArray[np.float32], ids: npt.NDArray[np.int32], precision: str
) -> None:
    import openvino as ov

    scale = drafter.network.get_buffer("scale").numpy()
    model = _graph(drafter.network, table, table[ids] * scale)
    if precision == "int8":
        import nncf

        nncf.set_log_level(40)  # logging.ERROR
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    ov.save_model(model, directory / recurrent_drafter.MODEL_FILE, compress_to_fp16=False)
    np.savez(directory / recurrent_drafter.TABLES_FILE, ids=ids, scale=scale)


def _graph(network: Network, table: npt.NDArray[np.float32], head: npt.NDArray[np.float32]) -> Any:
    """Inputs: state float32 [n, hidden], token int64 [n]; outputs: logits float32 [n, ids], next state."""
    import openvino as ov
    from openvino import opset13 as ops

    def constant(value: torch.Tensor | npt.NDArray[np.float32]) -> Any:
        return ops.constant(np.asarray(value.detach() if isinstance(value, torch.Tensor) else value, np.float32))

    def normed(x: Any, weight: torch.Tensor) -> Any:
        square = ops.reduce_mean(ops.multiply(x, x), ops.constant([1], dtype=np.int64), keep_dims=True)
        return ops.multiply(ops.divide(x, ops.sqrt(ops.add(square, constant(np.array(EPSILON))))), constant(weight))

    def linear(x: Any, weight: torch.Tensor | npt.NDArray[np.float32]) -> Any:
        return ops.matmul(x, constant(weight), False, True)

    first = ops.parameter([-1, network.shape.hidden], np.float32, name="state")
    tokens = ops.parameter([-1], np.int64, name="tokens")
    embedding = ops.gather(constant(table), tokens, ops.constant(0, dtype=np.int64))
    x = ops.concat([normed(first, network.state_norm), normed(embedding, network.token_norm)], -1)
    state = ops.add(first, linear(x, network.linear.weight))
    for number, block in enumerate(network.blocks):
        if number:
            x = normed(state, network.later_norms[number - 1])
        gate = linear(x, block.gate.weight)
        inner = ops.multiply(ops.swish(gate), linear(x, block.up.weight))
        state = ops.add(state, linear(inner, block.down.weight))
    logits = linear(state, head)
    return ov.Model([ops.result(logits), ops.result(state)], [first, tokens], "drafter")
