"""GGUF file to a Hugging Face directory in fp32: weights dequantized, tokenizer rebuilt from the metadata.

The directory is what engines are exported from, and what tests give to transformers as the oracle.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from build_engines.architectures import require_supported
from build_engines.errors import BuildError
from build_engines.gguf_tokenizer import write_tokenizer
from build_engines.progress import quiet, stage

# llama.cpp's names for the model types of Hugging Face, where they differ.
_MODEL_TYPES = {"gemma3": "gemma3_text"}


def convert(path: Path, output: Path) -> Path:
    """Write the model of the GGUF file `path` to the directory `output`; return that directory.

    `output` appears only when it is complete; one that exists already is kept. Raises `BuildError` for an
    architecture, a tensor or a tokenizer that cannot be carried over.
    """
    if output.is_dir():
        return output
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        with stage(f"reading {path.name}"):
            fields, tensor_names = _read_metadata(path)
            architecture = str(fields["general.architecture"])
            require_supported(_MODEL_TYPES.get(architecture, architecture))
            if "rope_freqs.weight" in tensor_names:
                raise BuildError(
                    f"{path.name} scales its rotary embedding by a table (rope_freqs), which cannot be carried over. "
                    "Build from the Hugging Face checkpoint of this model instead."
                )
            write_tokenizer(fields, temporary)
        with stage("dequantizing the weights to fp32"), quiet():
            _write_weights(path, temporary, fields)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def _read_metadata(path: Path) -> tuple[dict[str, Any], set[str]]:
    """Metadata of a GGUF file by key, and the names of its tensors."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise BuildError(f"{path} is damaged or of an unknown GGUF version: {error}") from error
    return fields, {tensor.name for tensor in reader.tensors}


def _write_weights(path: Path, output: Path, fields: dict[str, Any]) -> None:
    """Write config.json, generation_config.json and model.safetensors.

    transformers' own `from_pretrained(gguf_file=...)` is not used: it wants the package accelerate only to be told
    that it is there, and takes the end token from the wrong field.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    settings = load_gguf_checkpoint(str(path))["config"]
    settings.pop("_model_name_or_path", None)
    config = AutoConfig.for_model(**settings)
    config.bos_token_id = fields.get("tokenizer.ggml.bos_token_id")
    config.eos_token_id = fields.get("tokenizer.ggml.eos_token_id")
    with torch.device("meta"):  # names and shapes only: initializing weights that are replaced takes longest
        model = AutoModelForCausalLM.from_config(config)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    missing = sorted(expected.keys() - tensors.keys())
    wrong = sorted(name for name in expected.keys() & tensors.keys() if expected[name] != tensors[name].shape)
    if missing or wrong:
        raise BuildError(f"{path.name} does not fit its own architecture: missing {missing}, wrong shape {wrong}")
    _save(tensors, output)
    config.architectures = [type(model).__name__]
    config.dtype = "float32"
    config.save_pretrained(output)
    generation = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    (output / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def _save(tensors: dict[str, Any], output: Path) -> None:
    from safetensors.torch import save_file

    contiguous = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, output / "model.safetensors", metadata={"format": "pt"})
