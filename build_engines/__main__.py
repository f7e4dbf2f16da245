"""Command line: `python -m build_engines --help`."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from build_engines import interrupt
from build_engines.drafting import commands as drafting
from build_engines.errors import BuildError
from build_engines.recipe import ACTIVATIONS, GROUP_SIZES, KV_CACHE, RUNTIMES, WEIGHTS, ZERO_POINTS, Recipe
from build_engines.vision import commands as vision
from tandem import tensorrt_library

DEFAULT_OUTPUT = Path("model_repository/target/1/engine")
DRAFT_OUTPUT = Path("model_repository/draft/1/engine")
DEFAULTS = Recipe()
CAPABILITIES = ("8.6", "8.9", "12.0")
_EXAMPLES = """examples:
  python -m build_engines default
      fetch SmolLM2-135M-Instruct and build the engine that the server loads
  python -m build_engines default --weights fp32 --kv-cache f32 --output .cache/engines/fp32
      the same model in full precision, for comparison
  python -m build_engines language Qwen/Qwen2.5-0.5B-Instruct --weights int4
      a model from the Hugging Face hub
  python -m build_engines pair --target Qwen/Qwen2.5-1.5B-Instruct --draft Qwen/Qwen2.5-0.5B-Instruct
      a target and a smaller model of the same family that drafts for it
  python -m build_engines quality
      which precision is the fastest within 1 % of full quality, on this machine
  python -m build_engines language ~/models/gemma-3-1b-it --output .cache/engines/gemma
      a model directory; a .gguf file works as well
  python -m build_engines language Qwen/Qwen3-0.6B --runtime onnxruntime --weights int8 --max-length 4096
      an engine that ONNX Runtime runs, from the ONNX graph that TensorRT compiles too
  python -m build_engines default --runtime tensorrt --weights fp16
      does the default model compile for GPUs? (nothing is kept)
  python -m build_engines draft --minutes 30
      train the drafter of the default model again; `drafter` builds its engine, `draft-eval` measures it
  python -m build_engines vision efficientnet_lite0 --recipe openvino-int8
      an image classifier
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m build_engines",
        description="Turn checkpoints into engines: graph, tokenizer and manifest in one directory.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    language = commands.add_parser("language", help="build a language model from a directory, hub id or GGUF file")
    language.add_argument("source", help="Hugging Face directory, hub id (owner/name) or GGUF file")
    default = commands.add_parser("default", help="fetch the default model and build it")
    for parts in (language, default):
        _add_recipe(parts)
        parts.add_argument("--compute-capability", nargs="+", metavar="X.Y", dest="capabilities",
                           help="with --runtime tensorrt: build nothing, check that the graph compiles for these GPUs "
                           f"(where TensorRT is not installed: always, for {', '.join(CAPABILITIES)})")  # fmt: skip
    compiles = commands.add_parser(
        "compile-check",
        help="compile an ONNX graph with TensorRT for RTX, which needs no GPU",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    compiles.add_argument("graph", type=Path, help=".onnx file")
    compiles.add_argument("--compute-capability", nargs="+", default=CAPABILITIES, metavar="X.Y", dest="capabilities",
                          help="GPUs to compile for")  # fmt: skip
    pair = commands.add_parser(
        "pair",
        help="build a target and a smaller model that drafts for it (speculative decoding)",
        description="Builds two engines from models with the same tokenizer. The options are those of `language` and "
        "apply to both, unless there is one for the draft.",
    )
    pair.add_argument("--target", required=True, help="directory, hub id or GGUF file of the model that is served")
    pair.add_argument("--draft", required=True, help="the same of the model that drafts; the smaller the better")
    pair.add_argument("--draft-output", type=Path, default=DRAFT_OUTPUT, help="directory of the draft's engine")
    pair.add_argument("--draft-weights", choices=WEIGHTS, help="precision of the draft's weights (default: --weights)")
    _add_recipe(pair)
    commands.add_parser("fetch", help="download the default model's GGUF file (93 MB) into .cache/models")
    checkpoint = commands.add_parser("checkpoint", help="convert a GGUF file to a Hugging Face directory in fp32")
    checkpoint.add_argument("source", nargs="?", help="GGUF file (default: the default model, fetched if needed)")
    quality = commands.add_parser(
        "quality",
        help="measure perplexity and speed of the precisions, and write docs/precision.md",
        description="Builds every candidate precision, measures perplexity on held-out text and speed, and names the "
        "fastest within 1 %% of full precision. Takes a quarter of an hour on two cores; perplexities that were "
        "measured already are kept.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    quality.add_argument("source", nargs="?", help="as for `language` (default: the default model)")
    quality.add_argument("--output", type=Path, default=Path("docs/precision.md"), help="Markdown page to write")
    quality.add_argument("--windows", type=int, default=32, help="windows of 512 tokens of text")
    quality.add_argument("--rounds", type=int, default=7, help="turns each engine gets in the speed part")
    gates = commands.add_parser(
        "precision-gates",
        help="perplexity of the ONNX engines in fp32, fp16, int8, w8a8 and int4; fails if one is too far from fp32",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    gates.add_argument("source", nargs="?", help="as for `language` (default: the default model)")
    gates.add_argument("--windows", type=int, default=16, help="windows of 512 tokens of text")
    drafting.add_parsers(commands)
    vision.add_parsers(commands)
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="directory of the engine")
    parser.add_argument("--name", help="name in the manifest (default: from the source)")
    parser.add_argument("--force", action="store_true", help="build even if the engine is up to date")
    parser.add_argument("--runtime", choices=RUNTIMES, default=DEFAULTS.runtime,
                        help="what runs the engine, in KV blocks on openvino, in slots on onnxruntime; for "
                        "tensorrt it is only checked that the graph compiles")  # fmt: skip
    parser.add_argument("--max-length", type=int, default=DEFAULTS.length, metavar="N",
                        help="tokens of the longest text, which each KV slot has room for")  # fmt: skip
    parser.add_argument("--stages", type=int, default=DEFAULTS.stages, metavar="N",
                        help="graphs that the layers are divided into, each for a GPU of its own (ONNX)")  # fmt: skip
    parser.add_argument("--weights", choices=WEIGHTS, default=DEFAULTS.weights,
                        help="precision of the weights; w8a8: int8 weights and activations")  # fmt: skip
    parser.add_argument("--group-size", type=int, choices=GROUP_SIZES, default=DEFAULTS.group_size,
                        help="weights that share a scale, for int4")  # fmt: skip
    parser.add_argument("--zero-points", choices=ZERO_POINTS, default=DEFAULTS.zero_points,
                        help="of int4 groups: float keeps a Q4_1 checkpoint as it is, others do not")  # fmt: skip
    parser.add_argument("--calibration", type=Path, metavar="FILE",
                        help="text that w8a8 looks at activations on, some 50 kB (default: definitions of FOLDOC, a "
                        "dictionary)")  # fmt: skip
    parser.add_argument("--activations", choices=ACTIVATIONS, default=DEFAULTS.activations,
                        help="precision of the arithmetic, chosen at load (openvino only)")  # fmt: skip
    parser.add_argument("--kv-cache", choices=KV_CACHE, default=DEFAULTS.kv_cache,
                        help="precision of the KV cache, on openvino chosen at load; f32 or f16 elsewhere")  # fmt: skip
    parser.add_argument("--dynamic-quantization-group", type=int, metavar="N",
                        default=DEFAULTS.dynamic_quantization_group,
                        help="activations that share a scale when quantized on the fly; 0 turns that off")  # fmt: skip


def _run(arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    if arguments.command == "fetch":
        from build_engines.fetch import fetch

        fetch()
        return
    if arguments.command in drafting.COMMANDS:
        drafting.run(arguments)
        return
    if arguments.command == "compile-check":
        _compile_check(arguments.graph, arguments.capabilities)
        return
    if arguments.command in vision.COMMANDS:
        vision.run(arguments)
        return
    from build_engines.language import build, checkpoint_of
    from build_engines.source import resolve

    if arguments.command == "pair":
        _pair(arguments)
        return
    if getattr(arguments, "source", None):
        source = resolve(arguments.source)
    else:
        from build_engines.fetch import fetch

        source = resolve(str(fetch()))
    if arguments.command == "checkpoint":
        print(checkpoint_of(source))
        return
    if arguments.command == "precision-gates":
        from build_engines.precision_gates import run as run_gates

        run_gates(source, arguments.windows)
        return
    if arguments.command == "quality":
        from build_engines.quality import run

        command = shlex.join(["python", "-m", "build_engines", *argv])
        run(source, arguments.output, arguments.windows, arguments.rounds, command)
        return
    recipe = _recipe(arguments)
    if recipe.runtime == "tensorrt" and (arguments.capabilities or tensorrt_library.version() is None):
        from build_engines.language_tensorrt import check

        check(source, recipe, arguments.capabilities or CAPABILITIES)
        return
    build(source, arguments.output, recipe, name=arguments.name, force=arguments.force)


def _compile_check(graph: Path, capabilities: Sequence[str]) -> None:
    from build_engines.compile_check import compile_check

    if not graph.is_file():
        raise BuildError(f"{graph} is no file; give it the path of an .onnx file")
    for capability, size in compile_check(graph, capabilities).items():
        print(f"{graph} compiles for compute capability {capability}: {size / 1e6:.1f} MB")


def _pair(arguments: argparse.Namespace) -> None:
    from build_engines.pair import build_pair
    from build_engines.source import resolve

    recipe = _recipe(arguments)
    weights = arguments.draft_weights or recipe.weights
    calibration = recipe.calibration if weights == "w8a8" else None
    recipes = (recipe, dataclasses.replace(recipe, weights=weights, calibration=calibration))
    target, draft = resolve(arguments.target), resolve(arguments.draft)
    build_pair(target, draft, (arguments.output, arguments.draft_output), recipes)


def _recipe(arguments: argparse.Namespace) -> Recipe:
    return Recipe(
        weights=arguments.weights,
        group_size=arguments.group_size,
        zero_points=arguments.zero_points,
        activations=arguments.activations,
        kv_cache=arguments.kv_cache,
        dynamic_quantization_group=arguments.dynamic_quantization_group,
        runtime=arguments.runtime,
        length=arguments.max_length,
        stages=arguments.stages,
        calibration=arguments.calibration,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 failed, 130 interrupted."""
    interrupt.install()
    try:
        arguments = sys.argv[1:] if argv is None else argv
        _run(_parser().parse_args(arguments), arguments)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        print(f"interrupted; {str(interruption) or 'nothing was changed'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
