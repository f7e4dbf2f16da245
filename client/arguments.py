"""Arguments of the command line."""

from __future__ import annotations

import argparse
import math
from typing import Any, cast

from client.channel import DEFAULT_URL
from client.classification import MODEL, PHOTO_MODEL
from client.metrics import DEFAULT_METRICS_URL
from client.request import TENSORS, Parameters

_EXAMPLES = """\
examples:
  python -m client generate "The capital of France is" --max-tokens 32
  python -m client generate "Once upon a time" --temperature 0.8 --top-p 0.95 --random-seed 7
  python -m client generate "A name for a cat:" --temperature 0.9 -n 4 --max-tokens 8
  cat prompt.txt | python -m client generate - --stop-words $'\\n\\n' --json
  python -m client chat
  python -m client chat --message "Name three rivers." --system "You are brief."
  python -m client compare --chat "Repeat this: one two three one two three" --max-tokens 32
  python -m client classify photo.jpg
  python -m client classify ~/Pictures --model classify_imagenet --top-k 3 --json
  python -m client status --watch
  python -m client cache
"""

# Parameter -> help; the type follows from its tensor.
_PARAMETERS: dict[str, str] = {
    "max_tokens": "most tokens to generate",
    "min_length": "no end before this many tokens",
    "temperature": "0 is greedy (default)",
    "top_k": "sample among this many most probable tokens; 0 is off",
    "top_p": "sample among the most probable tokens that make up this share; 1 is off",
    "min_p": "drop tokens below this share of the most probable one's; 0 is off",
    "random_seed": "same seed, same tokens; random if absent",
    "stop_words": "end before any of these texts",
    "bad_words": "never write any of these texts",
    "repetition_penalty": "divide the logits of tokens already there; 1 is off",
    "presence_penalty": "subtract from the logits of tokens already written; 0 is off",
    "frequency_penalty": "the same, times how often they were written; 0 is off",
    "num_draft_tokens": "speculation: most tokens drafted in a cycle; 0 is off",
    "drafter": "speculation: auto, none, suffix or draft",
    "priority": "0 (default) to 100; higher runs first",
    "cache_salt": "requests with different salts never share cached prefixes",
    "cache_priority": "0 to 100 (50): how long the server keeps this request's K and V for others",
    "beam_width": "only 1",
    "length_penalty": "only 1",
}
_FLAGS: dict[str, str] = {
    "cache_pin": "keep the prompt's K and V on the server until its cache is reset",
    "cache_skip": "compute all of the prompt, and keep nothing of this request on the server",
    "return_log_probs": "with --json: log-probability of every token",
    "return_token_ids": "with --json: id of every token",
}
_TYPES: dict[str, Any] = {"INT32": int, "UINT64": int, "FP32": float, "BYTES": str}
_METAVARS = {"INT32": "N", "UINT64": "N", "FP32": "X", "BYTES": "TEXT"}


def _seconds(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def build_parser() -> argparse.ArgumentParser:
    """The parser of `python -m client`."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m client",
        description="Talk to a running server.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser(
        "generate",
        help="continue a text",
        description="Continue a text.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    generate.add_argument("prompt", help="the text to continue; - reads it from standard input")
    generate.add_argument(
        "-n",
        "--num-return-sequences",
        type=_count,
        metavar="N",
        help="so many different answers to one prompt, which is computed once; needs --temperature",
    )
    generate.add_argument("--no-stream", action="store_true", help="wait for the whole text")
    generate.add_argument("--json", action="store_true", help="print one JSON object at the end")
    _add_request(generate)
    for name, text in _FLAGS.items():
        generate.add_argument(_option(name), action="store_const", const=True, help=text)
    generate.add_argument(
        "--include-input",
        action="store_true",
        help="repeat the prompt before the text (exclude_input_in_output off)",
    )

    chat = commands.add_parser(
        "chat",
        help="talk in turns",
        description="Talk in turns; /help lists the commands inside.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    chat.add_argument("--message", metavar="TEXT", help="answer this one message and leave")
    chat.add_argument("--system", metavar="TEXT", help="system message")
    _add_request(chat)

    compare = commands.add_parser(
        "compare",
        help="with and without speculation",
        description=(
            "Answer the same request without drafters and with them (--drafter, default auto), in turns, and compare "
            "texts and times."
        ),
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    compare.add_argument("prompt", help="the text to continue; - reads it from standard input")
    compare.add_argument("--chat", action="store_true", help="send the prompt as the user's message of a chat")
    compare.add_argument(
        "--rounds", type=_count, default=3, metavar="N", help="answers each way (default: %(default)s)"
    )
    _add_request(compare)

    classify = commands.add_parser(
        "classify",
        help="what is in pictures",
        description="Name the likeliest classes of pictures. Files that fail are reported and do not stop the rest.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    classify.add_argument(
        "paths", nargs="+", metavar="PATH", help="image file, or folder with all below it; - is standard input"
    )
    classify.add_argument(
        "--model",
        metavar="NAME",
        help=f"{MODEL} (ResNet-50) or {PHOTO_MODEL} (EfficientNet-Lite0); default: the latter, if the server has it",
    )
    classify.add_argument("--top-k", type=_count, metavar="N", help="classes to name (default: the server's, 5)")
    classify.add_argument("--json", action="store_true", help="print one JSON object for each file, a line each")
    classify.add_argument(
        "--concurrency", type=_count, default=8, metavar="N", help="images under way at a time (default: %(default)s)"
    )
    classify.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="give an image up after this")
    _add_url(classify)

    status = commands.add_parser(
        "status",
        help="what the server is doing",
        description="Show what the server is doing.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    _add_url(status)
    _add_metrics_url(status)
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument(
        "--watch",
        nargs="?",
        const=1.0,
        type=_seconds,
        metavar="SECONDS",
        help="repeat, every second unless told",
    )

    cache = commands.add_parser(
        "cache",
        help="what the server keeps of earlier requests",
        description="Show how much of the prompts was found in the prefix cache, and what is kept there; or reset it.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    _add_url(cache)
    _add_metrics_url(cache)
    cache.add_argument("--json", action="store_true", help="print JSON")
    cache.add_argument(
        "--reset", action="store_true", help="forget all of it, pinned or not, in memory and on disk; requests go on"
    )
    return parser


def parameters_from(options: argparse.Namespace) -> Parameters:
    """The request parameters among the parsed arguments, only those that were given."""
    given = {name: getattr(options, name, None) for name in (*_PARAMETERS, *_FLAGS, "num_return_sequences")}
    parameters = {name: value for name, value in given.items() if value is not None}
    if getattr(options, "include_input", False):
        parameters["exclude_input_in_output"] = False
    return cast(Parameters, parameters)


def _add_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=DEFAULT_URL, metavar="HOST:PORT", help="gRPC endpoint (default: %(default)s)")


def _add_metrics_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics-url",
        default=DEFAULT_METRICS_URL,
        metavar="HOST:PORT",
        help="metrics endpoint, or a whole URL (default: %(default)s)",
    )


def _add_request(parser: argparse.ArgumentParser) -> None:
    _add_url(parser)
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="give the whole request up after this")
    group = parser.add_argument_group("request parameters")
    for name, text in _PARAMETERS.items():
        kind = TENSORS[name]
        extra: dict[str, Any] = {"nargs": "+"} if name in ("stop_words", "bad_words") else {}
        group.add_argument(_option(name), type=_TYPES[kind], metavar=_METAVARS[kind], help=text, **extra)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
