"""A torch checkpoint to OpenVINO IR: traced in fp32 (or bf16), then its weights compressed.

The graph is the stateful one that optimum-intel exports. Paged attention is put in at load by the engine, so that one
file serves every cache layout.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from build_engines.errors import BuildError
from build_engines.int4_weights import compress_openvino
from build_engines.progress import quiet, stage
from build_engines.recipe import Recipe

MODEL_FILE = "openvino_model.xml"
# Where a multimodal checkpoint (Gemma 3 from 4B on) keeps its language model.
_TEXT_PART = {r"^(model\.)?language_model\.lm_head": "lm_head", r"^(model\.)?language_model\.(model\.)?": "model."}


def load_config(checkpoint: Path) -> Any:
    """The configuration of the language model in a Hugging Face directory (of a multimodal one: its text part)."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError, KeyError) as error:
        raise BuildError(f"{checkpoint.name}: config.json cannot be used: {str(error).splitlines()[0]}") from error
    return config.get_text_config()


def attention_softcap(config: Any) -> float | None:
    """The cap on attention scores (Gemma 2), or None."""
    return getattr(config, "attn_logit_softcapping", None)


def export(checkpoint: Path, output: Path, recipe: Recipe) -> None:
    """Write `openvino_model.xml` and `.bin` to `output` from the Hugging Face directory `checkpoint`."""
    with tempfile.TemporaryDirectory(dir=output, prefix=".export.") as temporary:
        with stage("loading the checkpoint"), quiet():
            model = load_model(checkpoint, recipe)
        with stage("tracing the model to OpenVINO"), quiet():
            _trace(model, Path(temporary), recipe)
            softcap = attention_softcap(model.config)
            del model
        with stage(f"writing {recipe.weights_label} weights"), quiet():
            _compress(Path(temporary) / MODEL_FILE, output / MODEL_FILE, recipe, softcap)


def load_model(checkpoint: Path, recipe: Recipe) -> Any:
    """The torch model in a Hugging Face directory, in bf16 if that is the recipe, else in fp32.

    Raises `BuildError` if weights are missing or do not fit the configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if recipe.weights == "bf16" else torch.float32
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            checkpoint,
            dtype=dtype,
            config=load_config(checkpoint),
            attn_implementation="sdpa",  # the pattern that becomes paged attention
            key_mapping=_TEXT_PART,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BuildError(f"{checkpoint.name}: the weights cannot be loaded: {str(error).splitlines()[0]}") from error
    if missing := sorted(report["missing_keys"]):  # transformers would go on with random numbers
        raise BuildError(f"{checkpoint.name}: {len(missing)} weights are missing, the first is {missing[0]}")
    return model.eval()


def _trace(model: Any, output: Path, recipe: Recipe) -> None:
    import transformers
    from optimum.exporters.openvino.convert import export_from_model
    from optimum.exporters.openvino.model_configs import GemmaOpenVINOConfig

    # optimum-intel has not been tried with Gemma on this transformers; our architecture tests have.
    GemmaOpenVINOConfig.MAX_TRANSFORMERS_VERSION = transformers.__version__
    export_from_model(
        model,
        output,
        task="text-generation-with-past",
        stateful=True,
        preprocessors=[],
        patch_16bit_model=recipe.weights == "bf16",
    )


def _compress(source: Path, target: Path, recipe: Recipe, softcap: float | None) -> None:
    import openvino as ov

    model = ov.Core().read_model(source)
    if softcap is not None:
        # The traced attention has no cap; the engine puts it in where it finds this note.
        model.set_rt_info(str(softcap), ["tandem", "attention_softcap"])
    if recipe.weights == "int4" and recipe.zero_points == "float":
        compress_openvino(model, recipe.group_size)
    if recipe.weights in ("int8", "int4"):
        import nncf

        nncf.set_log_level(40)  # logging.ERROR
        model = nncf.compress_weights(model, **_compression(nncf, recipe))
    ov.save_model(model, target, compress_to_fp16=False)


def _compression(nncf: Any, recipe: Recipe) -> dict[str, Any]:
    """Arguments of `nncf.compress_weights`. Embedding and head keep 8 bits in every recipe."""
    if recipe.weights == "int8" or recipe.zero_points == "float":
        return {"mode": nncf.CompressWeightsMode.INT8_ASYM}
    modes = nncf.CompressWeightsMode
    mode = modes.INT4_SYM if recipe.zero_points == "none" else modes.INT4_ASYM
    return {"mode": mode, "ratio": 1.0, "group_size": recipe.group_size, "all_layers": False}
