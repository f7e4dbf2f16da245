"""The commands around drafters: `draft-data`, `draft`, `drafter`, `draft-eval`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from build_engines.drafting import WEIGHTS_FILE
from build_engines.errors import BuildError
from build_engines.progress import console
from tandem.drafter_manifest import DrafterManifest
from tandem.manifest import ManifestError, sha256_of_file

NAME = "smollm2-135m-instruct"
ENGINE = Path("model_repository/target/1/engine")
DATA = Path(".cache/draft/answers")
WORK = Path(".cache/draft/training")
WEIGHTS = Path("drafters") / NAME
OUTPUT = Path("model_repository/target/1/drafter")
COMMANDS = ("draft-data", "draft", "drafter", "draft-eval")
PROMPTS = 8000
_ROWS = (1, 8, 16)


def add_parsers(commands: Any) -> None:
    """Add the sub-commands to those of `python -m build_engines`."""
    data = _parser(
        commands, "draft-data", "let the default target answer the prompts that its drafter learns from",
        "Answers prompts with the built engine and stores tokens and features. Stop it at any time and start it again: "
        "it goes on where it was. A thousand prompts are some 130000 tokens: 150 MB, five minutes on two cores.",
    )  # fmt: skip
    data.add_argument("--prompts", type=int, default=PROMPTS, help="how many prompts to answer")
    data.add_argument("--minutes", type=float, help="stop after this time")
    draft = _parser(
        commands, "draft", "train the drafter of the default target",
        "Trains on the answers of `draft-data`, and answers prompts first if there are none. Ctrl-C or a kill leaves a "
        "checkpoint, and the same command goes on from it. With --steps equal inputs give equal weights.",
    )  # fmt: skip
    budget = draft.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="time to train for, in which as many steps are made as fit")
    budget.add_argument("--steps", type=int, help="steps to make (default: 3000, half an hour on two free cores)")
    draft.add_argument("--output", type=Path, default=WEIGHTS, help="directory of the trained weights")
    draft.add_argument("--work", type=Path, default=WORK, help="directory of the checkpoint")
    draft.add_argument("--inner", type=int, nargs="+", default=[1024], help="width of each block")
    draft.add_argument("--vocabulary", type=int, default=16384, help="tokens that can be proposed")
    draft.add_argument("--shards", type=int, help="use only so many shards of answers")
    draft.add_argument("--seed", type=int, default=7, help="of weights and batches")
    draft.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    engine = _parser(
        commands, "drafter", "build the engine of a trained drafter",
        "Puts the trained weights and the target's embedding and LM head into one OpenVINO graph.",
    )  # fmt: skip
    engine.add_argument("--output", type=Path, default=OUTPUT, help="directory of the drafter's engine")
    engine.add_argument("--precision", choices=("int8", "fp32"), default="int8", help="precision of the weights")
    engine.add_argument("--vocabulary", type=int, default=4096, help="keep only so many of the most frequent tokens")
    measure = _parser(
        commands, "draft-eval", "measure what the target accepts of a drafter on MT-Bench",
        "Answers the 80 first turns of MT-Bench with the target, greedily and at temperature 0.8, drafts from every "
        "token, and prints the share of drafts that are the target's own choice, and what trees of drafts would bring. "
        "Takes minutes; the answers are kept.",
    )  # fmt: skip
    measure.add_argument("--drafter", type=Path, default=OUTPUT, help="directory of the drafter's engine")
    measure.add_argument("--threads", type=int, help="CPU threads of the drafter (default: all)")
    for parser in (draft, engine):
        parser.add_argument("--checkpoint", help="the target: directory or GGUF file (default: fetched if needed)")
    engine.add_argument("--weights", type=Path, default=WEIGHTS, help="directory of the trained weights")
    for parser in (data, draft, measure):
        parser.add_argument("--engine", type=Path, default=ENGINE, help="engine of the target")
        parser.add_argument("--data", type=Path, default=DATA, help="directory of the answers")


def _parser(commands: Any, name: str, text: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Run one of `COMMANDS`."""
    if hasattr(arguments, "engine") and not (arguments.engine / "manifest.json").is_file():
        raise BuildError(f"{arguments.engine} holds no engine: run `python -m build_engines default` first")
    {"draft-data": _data, "draft": _draft, "drafter": _drafter, "draft-eval": _measure}[arguments.command](arguments)


def _data(arguments: argparse.Namespace) -> None:
    from build_engines.drafting import data

    questions = data.training_questions(arguments.engine, arguments.prompts)
    try:
        data.complete(arguments.engine, arguments.data / data.TRAINING, questions, arguments.minutes)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("finished shards are kept: the same command goes on from there") from None


def _draft(arguments: argparse.Namespace) -> None:
    import torch

    from build_engines.drafting import data, training, weights
    from tandem.manifest import Manifest

    torch.set_num_threads(arguments.threads)
    paths = sorted((arguments.data / data.TRAINING).glob("*.safetensors"))
    if not paths:
        questions = data.training_questions(arguments.engine, PROMPTS)
        paths = data.complete(arguments.engine, arguments.data / data.TRAINING, questions)
    paths = paths[: arguments.shards]
    if len(paths) <= data.CHECKED:
        raise BuildError(f"{len(paths)} shards of answers are too few: run `python -m build_engines draft-data`")
    table, digest = weights.embedding_of(_checkpoint(arguments))
    steps = arguments.steps or (None if arguments.minutes else 3000)
    plan = training.Plan(
        inner=tuple(arguments.inner), vocabulary=arguments.vocabulary, seed=arguments.seed, total_steps=steps,
        minutes=arguments.minutes,
    )  # fmt: skip
    checked = data.load(arguments.engine, paths[: data.CHECKED])
    answers = data.load(arguments.engine, paths[data.CHECKED :])
    end_ids = Manifest.read(arguments.engine).eos_token_ids
    state = training.train(arguments.work, plan, answers, checked, table, end_ids)
    weights.save(arguments.output, weights.Drafter(state.network, state.vocabulary, NAME, digest))
    print(f"{arguments.output}: {state.step} steps in {state.seconds:.0f} s, held-out greedy agreement "
          + " ".join(f"{share:.3f}" for share in state.agreement))  # fmt: skip


def _drafter(arguments: argparse.Namespace) -> None:
    if _is_up_to_date(arguments):
        console.print(f"  [green]✓[/] {arguments.output} is up to date")
        return
    from build_engines.drafting.engine import build_drafter

    build_drafter(
        arguments.weights, _checkpoint(arguments), arguments.output, arguments.precision, arguments.vocabulary
    )


def _is_up_to_date(arguments: argparse.Namespace) -> bool:
    """Whether the engine that is there is sound and what would be built; told without the heavy libraries."""
    try:
        found = DrafterManifest.load(arguments.output)
        weights = sha256_of_file(arguments.weights / WEIGHTS_FILE)
    except (ManifestError, OSError):
        return False
    wanted = (weights, arguments.precision, arguments.vocabulary)
    return (found.weights_sha256, found.precision, found.proposable) == wanted


def _measure(arguments: argparse.Namespace) -> None:
    from build_engines.drafting import data, evaluation, trees
    from build_engines.progress import counted
    from tandem.engine_profile import profile_engine
    from tandem.engines import EngineOptions, load_engine
    from tandem.manifest import Manifest
    from tandem.recurrent_drafter import RecurrentDrafter
    from tandem.settings import TargetSettings

    manifest = Manifest.read(arguments.engine)
    drafter = RecurrentDrafter(arguments.drafter, arguments.threads, manifest)
    results, ranks = {}, {}
    for name, temperature in data.HELD_OUT.items():
        questions = data.held_out_questions(arguments.engine, temperature)
        paths = data.complete(arguments.engine, arguments.data / name, questions)
        answers = data.load(arguments.engine, paths)
        with counted(f"drafts for {name}", len(answers.tokens)) as advance:
            results[name] = evaluation.acceptance(drafter, answers, manifest.eos_token_ids, advance)
        with counted(f"ranks for {name}", len(answers.tokens)) as advance:
            ranks[name] = trees.rank_shares(drafter, answers, advance)
    options = EngineOptions(kv_cache_mb=256, features=True, graph_memory_mb=TargetSettings().graph_memory_mb)
    engine = load_engine(arguments.engine, options)
    costs = [evaluation.cost(drafter, engine, rows) for rows in _ROWS]
    print(evaluation.table(results, costs))
    print("\n" + trees.table(ranks, profile_engine(engine), costs[0].draft / 1000))


def _checkpoint(arguments: argparse.Namespace) -> Path:
    from build_engines.fetch import fetch
    from build_engines.language import checkpoint_of
    from build_engines.source import resolve

    return checkpoint_of(resolve(arguments.checkpoint or str(fetch())))
