"""The commands around drafters: `draft-data`, `draft`, `drafter`, `draft-eval`, `student`."""

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
STUDENT = Path(".cache/draft/student")
COMMANDS = ("draft-data", "draft", "drafter", "draft-eval", "student")
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
    draft.add_argument("--output", type=Path, default=WEIGHTS, help="directory of the trained weights")
    draft.add_argument("--work", type=Path, default=WORK, help="directory of the checkpoint")
    draft.add_argument("--inner", type=int, nargs="+", default=[1024], help="width of each block")
    draft.add_argument("--vocabulary", type=int, default=16384, help="tokens that can be proposed")
    student = _parser(
        commands, "student", "train a shallow copy of a target that drafts for it",
        "Keeps some of the target's layers and trains them on the answers of `draft-data` to do the work of all. What "
        "comes out is an ordinary model directory: build it with `pair`. Interrupted, resumed and repeated as `draft`.",
    )  # fmt: skip
    student.add_argument("--layers", type=int, default=2, help="how many to keep")
    student.add_argument("--output", type=Path, default=STUDENT, help="directory of the model")
    student.add_argument("--work", type=Path, default=STUDENT.with_name("student-training"),
                         help="directory of the checkpoint")  # fmt: skip
    for parser in (draft, student):
        budget = parser.add_mutually_exclusive_group()
        budget.add_argument("--minutes", type=float, help="time to train for, in which as many steps are made as fit")
        budget.add_argument("--steps", type=int, help="steps to make (default: 3000, half an hour on two free cores)")
        parser.add_argument("--shards", type=int, help="use only so many shards of answers")
        parser.add_argument("--seed", type=int, default=7, help="of weights and batches")
        parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
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
    measure.add_argument("--model", type=Path, help="engine of an ordinary model to measure instead of the drafter")
    measure.add_argument("--threads", type=int, help="CPU threads of the drafter (default: all)")
    for parser in (draft, engine, student):
        parser.add_argument("--checkpoint", help="the target: directory or GGUF file (default: fetched if needed)")
    engine.add_argument("--weights", type=Path, default=WEIGHTS, help="directory of the trained weights")
    for parser in (data, draft, measure, student):
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
    functions = {
        "draft-data": _data, "draft": _draft, "drafter": _drafter, "draft-eval": _measure, "student": _student,
    }  # fmt: skip
    functions[arguments.command](arguments)


def _data(arguments: argparse.Namespace) -> None:
    from build_engines.drafting import data

    questions = data.training_questions(arguments.engine, arguments.prompts)
    try:
        data.complete(arguments.engine, arguments.data / data.TRAINING, questions, arguments.minutes)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("finished shards are kept: the same command goes on from there") from None


def _draft(arguments: argparse.Namespace) -> None:
    import torch

    from build_engines.drafting import training, weights
    from tandem.manifest import Manifest

    torch.set_num_threads(arguments.threads)
    checked, answers = _answers(arguments)
    table, digest = weights.embedding_of(_checkpoint(arguments))
    plan = training.Plan(
        inner=tuple(arguments.inner), vocabulary=arguments.vocabulary, seed=arguments.seed,
        total_steps=_steps(arguments), minutes=arguments.minutes,
    )  # fmt: skip
    end_ids = Manifest.read(arguments.engine).eos_token_ids
    state = training.train(arguments.work, plan, answers, checked, table, end_ids)
    weights.save(arguments.output, weights.Drafter(state.network, state.vocabulary, NAME, digest))
    _report(arguments.output, state)


def _student(arguments: argparse.Namespace) -> None:
    import torch

    from build_engines.drafting import student
    from build_engines.progress import quiet, silence_libraries
    from tandem.manifest import Manifest

    silence_libraries()
    torch.set_num_threads(arguments.threads)
    checked, answers = _answers(arguments)
    checkpoint = _checkpoint(arguments)
    plan = student.StudentPlan(
        layers=arguments.layers, seed=arguments.seed, total_steps=_steps(arguments), minutes=arguments.minutes
    )
    end_ids = Manifest.read(arguments.engine).eos_token_ids
    state = student.train(arguments.work, plan, answers, checked, checkpoint, end_ids)
    with quiet():
        student.save(arguments.output, state.model, checkpoint)
    _report(arguments.output, state)
    print(f"build it with: python -m build_engines pair --target {checkpoint} --draft {arguments.output}")


def _answers(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Answers to measure on and to learn from; prompts are answered first if there are none."""
    from build_engines.drafting import data

    paths = sorted((arguments.data / data.TRAINING).glob("*.safetensors"))
    if not paths:
        questions = data.training_questions(arguments.engine, PROMPTS)
        paths = data.complete(arguments.engine, arguments.data / data.TRAINING, questions)
    paths = paths[: arguments.shards]
    if len(paths) <= data.CHECKED:
        raise BuildError(f"{len(paths)} shards of answers are too few: run `python -m build_engines draft-data`")
    return data.load(arguments.engine, paths[: data.CHECKED]), data.load(arguments.engine, paths[data.CHECKED :])


def _steps(arguments: argparse.Namespace) -> int | None:
    return arguments.steps or (None if arguments.minutes else 3000)


def _report(output: Path, state: Any) -> None:
    shares = " ".join(f"{share:.3f}" for share in state.agreement)
    print(f"{output}: {state.step} steps in {state.seconds:.0f} s, held-out greedy agreement {shares}")


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
    from build_engines.drafting import data, evaluation
    from build_engines.progress import counted
    from tandem.engines import EngineOptions, load_engine
    from tandem.manifest import Manifest
    from tandem.settings import TargetSettings

    held_out = {}
    for name, temperature in data.HELD_OUT.items():
        questions = data.held_out_questions(arguments.engine, temperature)
        held_out[name] = data.load(arguments.engine, data.complete(arguments.engine, arguments.data / name, questions))
    graphs = TargetSettings().graph_memory_mb
    engine = load_engine(arguments.engine, EngineOptions(kv_cache_mb=256, features=True, graph_memory_mb=graphs))
    if arguments.model:
        draft = load_engine(arguments.model, EngineOptions(kv_cache_mb=256, graph_memory_mb=graphs))
        results = {}
        for name, answers in held_out.items():
            with counted(f"drafts for {name}", len(answers.tokens)) as advance:
                results[name] = evaluation.acceptance_of_model(draft, answers, advance)
        print(evaluation.table(results, [evaluation.cost_of_model(draft, engine, rows) for rows in _ROWS]))
        return
    from build_engines.drafting import trees
    from tandem.engine_profile import profile_engine
    from tandem.recurrent_drafter import RecurrentDrafter

    manifest = Manifest.read(arguments.engine)
    drafter = RecurrentDrafter(arguments.drafter, arguments.threads, manifest)
    results, ranks = {}, {}
    for name, answers in held_out.items():
        with counted(f"drafts for {name}", len(answers.tokens)) as advance:
            results[name] = evaluation.acceptance(drafter, answers, manifest.eos_token_ids, advance)
        with counted(f"ranks for {name}", len(answers.tokens)) as advance:
            ranks[name] = trees.rank_shares(drafter, answers, advance)
    costs = [evaluation.cost(drafter, engine, rows) for rows in _ROWS]
    print(evaluation.table(results, costs))
    print("\n" + trees.table(ranks, profile_engine(engine), costs[0].draft / 1000))


def _checkpoint(arguments: argparse.Namespace) -> Path:
    from build_engines.fetch import fetch
    from build_engines.language import checkpoint_of
    from build_engines.source import resolve

    return checkpoint_of(resolve(arguments.checkpoint or str(fetch())))
