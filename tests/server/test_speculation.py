"""Speculation on the real server: the same tokens with and without, whoever drafts and whatever else goes on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import full_precision
import pytest
from served_engine import HAS_SLOTS, default_engine
from serving import EXIT_SECONDS, BackgroundStream, idle_reading, stub_pids, wait_until

from client import Client, Parameters, Result, Unsupported
from launcher.engines import VISION_MODELS
from launcher.errors import ServerError
from launcher.server import Options, TritonServer
from perf import mt_bench

TOKENS = 56
ROUNDING = 0.01  # of log-probabilities: on a CPU without AVX-512 the kernels of a wider step round otherwise
TEXT = (
    "The lighthouse was built in 1900 to guide shipping along the north coast. Before the light was built, many ships "
    "were lost on the rocks, because the cliffs hid the lights of the other towers."
)
CODE = (
    "def sum_list(values):\n    total = 0\n    for value in values:\n        total = total + value\n    return total\n"
)
PROMPTS = [
    f"Repeat the following text word for word:\n{TEXT}",
    f"Rename the function to add_all and print it:\n\n{CODE}",
    f"Correct the spelling:\n{TEXT.replace('lighthouse', 'lihgthouse')}",
    *mt_bench.prompts(3),
]
KINDS: dict[str, Parameters] = {
    "greedy": {"return_log_probs": True},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "random_seed": 11},
    "penalties": {"temperature": 0.7, "repetition_penalty": 1.1, "frequency_penalty": 0.2, "random_seed": 12},
    "masks": {"min_length": 40, "bad_words": [" the light", "total"], "stop_words": ["ships", "return"]},
}


def ask(client: Client, prompt: str, parameters: Parameters, **draft: object) -> Result:
    everything = {"max_tokens": TOKENS, "return_token_ids": True, **parameters, **draft}
    return client.generate(messages=[{"role": "user", "content": prompt}], **everything)  # type: ignore[arg-type]


def contents(result: Result) -> tuple[object, ...]:
    return result.text, result.token_ids, result.finish_reason


def ask_all(server: TritonServer, parameters: Parameters, workers: int, **draft: object) -> list[Result]:
    with Client(server.grpc_url) as client, ThreadPoolExecutor(workers) as threads:
        return list(threads.map(lambda prompt: ask(client, prompt, parameters, **draft), PROMPTS))


def assert_equal(speculative: list[Result], plain: list[Result], accepted: int = 4) -> None:
    """The same answers, of which so many tokens at least were drafts."""
    for one, other in zip(speculative, plain, strict=True):
        assert contents(one) == contents(other)
        if other.log_probs is not None:
            assert one.log_probs == pytest.approx(other.log_probs, abs=ROUNDING)
    assert sum(result.accepted_draft_tokens for result in speculative) >= accepted, "nothing was tested"
    assert all(result.drafted_tokens == 0 for result in plain)


@pytest.fixture(scope="module", params=KINDS)
def plain(request: pytest.FixtureRequest, server: TritonServer) -> tuple[Parameters, list[Result]]:
    """Answers without speculation, each alone on the default server."""
    parameters = KINDS[request.param]
    return parameters, ask_all(server, parameters, 1, drafter="none")


@pytest.mark.parametrize("draft", [{}, {"drafter": "suffix"}, {"num_draft_tokens": 2}], ids=["auto", "suffix", "k=2"])
def test_speculation_changes_no_token(server, plain, draft):
    parameters, answers = plain
    assert_equal(ask_all(server, parameters, 1, **draft), answers)


def test_neighbours_change_no_token(server, plain):
    parameters, answers = plain
    # Where repetitions are penalized few drafts are accepted; beside others they may not pay, and none is made.
    accepted = 0 if "repetition_penalty" in parameters else 4
    assert_equal(ask_all(server, parameters, len(PROMPTS)), answers, accepted)


@pytest.mark.skipif(HAS_SLOTS, reason="a slot has room for a whole sequence: nobody is preempted, the others wait")
def test_preemption_and_small_chunks_change_no_token(server, tmp_path):
    env = {"TANDEM_KV_CACHE_MB": "10", "TANDEM_MIXED_STEP_TOKENS": "16", "TANDEM_MAX_STEP_TOKENS": "48"}
    parameters: Parameters = {"temperature": 0.6, "random_seed": 3, "min_length": 110, "max_tokens": 110}
    answers = ask_all(server, parameters, 1, drafter="none")
    with TritonServer(Options(models=("target", "generate"), env=env, log=tmp_path / "server.log")) as small:
        before = idle_reading(small)
        assert_equal(ask_all(small, parameters, len(PROMPTS)), answers)
        after = idle_reading(small)
    preemptions = "tandem_preemptions_total"
    assert after.value(preemptions) > before.value(preemptions), "the pool was large enough for all"


def test_no_drafts_where_none_are_wanted(server):
    with Client(server.grpc_url) as client:
        for wish in ({"drafter": "none"}, {"num_draft_tokens": 0}):
            result = ask(client, PROMPTS[0], {}, **wish)
            assert (result.drafted_tokens, result.accepted_draft_tokens) == (0, 0)
            assert set(result.origins or ()) == {"target"}


def test_outputs_and_metrics_agree(server):
    before = idle_reading(server)
    with Client(server.grpc_url) as client:
        result = ask(client, PROMPTS[0], {})
    after = idle_reading(server)

    def change(name: str) -> float:
        return after.value(name) - before.value(name)

    assert result.origins is not None
    assert result.token_ids is not None
    assert len(result.origins) == len(result.token_ids) == result.generated_tokens
    assert 0 < result.accepted_draft_tokens == sum(origin != "target" for origin in result.origins)
    assert result.accepted_draft_tokens <= result.drafted_tokens == change("tandem_draft_tokens_total")
    # Drafts behind the end of the answer may have been accepted by the target.
    assert result.accepted_draft_tokens <= change("tandem_accepted_tokens_total")
    assert 0 < change("tandem_drafts_total") <= change("tandem_draft_tokens_total")
    chosen = after.by_label("tandem_chosen_tokens_total", "origin")
    assert chosen["suffix"] > before.by_label("tandem_chosen_tokens_total", "origin")["suffix"]
    verified = after.by_label("tandem_draft_tokens_total", "position")
    assert verified["1"] >= verified["2"] >= verified["16"], "a run has a first place before it has a second"
    # One row of a step gives one token of the target's own.
    own = result.generated_tokens - result.accepted_draft_tokens
    assert change("tandem_step_rows_sum") == pytest.approx(own, abs=1)


def test_comparing_tokens_can_fail(server, plain):
    parameters, answers = plain
    if "random_seed" in parameters:
        with Client(server.grpc_url) as client:
            other = ask(client, PROMPTS[3], {**parameters, "random_seed": 99})
        assert contents(other) != contents(answers[3])


# ------------------------------------------------------------------ a draft model


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The default model in fp32 as target, and its int8 engine as draft: another precision, mostly the same tokens."""
    env = {
        "TANDEM_TARGET_ENGINE": str(full_precision.engine()),
        "TANDEM_DRAFT_ENGINE": str(default_engine().resolve()),
        "TANDEM_KV_CACHE_MB": "512",
        "TANDEM_DRAFT_KV_CACHE_MB": "256",
        "TANDEM_GRAPH_MEMORY_MB": "0",  # loads faster
        "TANDEM_DRAFT_GRAPH_MEMORY_MB": "0",
        "TANDEM_DRAFT_CONTROL": "always",  # a draft of the target's own size does not pay
    }
    log = tmp_path_factory.mktemp("pair") / "server.log"
    with TritonServer(Options(models=("draft", "target", "generate"), env=env, log=log)) as running:
        yield running


@pytest.mark.parametrize("kind", ["greedy", "sampled", "penalties"])
def test_a_draft_model_changes_no_token(pair, kind):
    answers = ask_all(pair, KINDS[kind], 1, drafter="none")
    drafted = ask_all(pair, KINDS[kind], len(PROMPTS), drafter="draft", num_draft_tokens=4)
    assert_equal(drafted, answers)
    origins = [origin for result in drafted for origin in result.origins or ()]
    assert origins.count("draft") > 10
    assert "suffix" not in origins


def test_a_killed_draft_is_missed_by_nobody_and_comes_back(pair):
    with Client(pair.grpc_url) as client:
        answer = client.generate(PROMPTS[3], max_tokens=400, min_length=400, drafter="none", return_token_ids=True)
    wishes = {"max_tokens": 400, "min_length": 400, "drafter": "draft"}
    stream = BackgroundStream(pair.grpc_url, PROMPTS[3], **wishes)
    stream.wait_for_tokens(20)
    killed = pair.kill_stub("draft")
    result = stream.result()
    assert tuple(stream.tokens) == answer.token_ids
    assert result.text == answer.text
    wait_until(lambda: pair.stub_pids("draft") and pair.stub_pids("draft") != killed, "the draft is loaded again")

    def drafts_again() -> bool:
        with Client(pair.grpc_url) as client:
            return "draft" in (ask(client, PROMPTS[4], {}, drafter="draft").origins or ())

    wait_until(drafts_again, "the reloaded draft drafts")


def test_a_killed_target_is_drafted_for_again(pair):
    with Client(pair.grpc_url) as client:
        answer = client.generate(PROMPTS[3], max_tokens=200, min_length=200, drafter="none", return_token_ids=True)
    stream = BackgroundStream(pair.grpc_url, PROMPTS[3], max_tokens=200, min_length=200, drafter="draft")
    stream.wait_for_tokens(20)
    before = stub_pids(pair)["target"]
    pair.kill_stub("target")
    result = stream.result()
    assert tuple(stream.tokens) == answer.token_ids
    assert result.accepted_draft_tokens > 0
    assert stub_pids(pair)["target"] != before


def test_a_drafter_that_is_not_there_is_named(fp32_server):
    with Client(fp32_server.grpc_url) as client, pytest.raises(Unsupported, match="drafter: 'draft' is not available"):
        client.generate("One", drafter="draft")


@pytest.fixture(scope="module")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Engines of two small models with random weights, built by the documented command: target and draft."""
    import tiny_models
    from transformers import LlamaConfig

    from build_engines.__main__ import main

    directory = tmp_path_factory.mktemp("tiny")
    for name, layers, hidden in (("large", 4, 64), ("small", 2, 32)):
        shape = {"num_hidden_layers": layers, "hidden_size": hidden}
        tiny_models.save(tiny_models.random_model(tiny_models.config(LlamaConfig, **shape)), directory / name)
    target, draft = directory / "target", directory / "draft"
    sources = ["--target", str(directory / "large"), "--draft", str(directory / "small")]
    outputs = ["--output", str(target), "--draft-output", str(draft)]
    assert main(["pair", *sources, *outputs, "--draft-weights", "fp32"]) == 0
    return target, draft


def test_a_pair_of_ordinary_models_builds_and_runs(tiny_pair, tmp_path):
    env = {"TANDEM_TARGET_ENGINE": str(tiny_pair[0]), "TANDEM_DRAFT_ENGINE": str(tiny_pair[1])}
    env |= {"TANDEM_KV_CACHE_MB": "64", "TANDEM_DRAFT_KV_CACHE_MB": "64", "TANDEM_DRAFT_CONTROL": "always"}
    models = [model for model in TritonServer(Options(env=env)).models() if model not in VISION_MODELS]
    assert models == ["draft", "generate", "target"]
    options = Options(models=models, env=env, log=tmp_path / "server.log")
    with TritonServer(options) as server, Client(server.grpc_url) as client:
        for sampling in ({}, {"temperature": 0.9, "random_seed": 5}):
            plain = client.generate("One", max_tokens=60, drafter="none", return_token_ids=True, **sampling)
            drafted = client.generate("One", max_tokens=60, drafter="draft", return_token_ids=True, **sampling)
            assert drafted.token_ids == plain.token_ids
            assert drafted.drafted_tokens > 0


def test_a_draft_with_another_tokenizer_is_refused(tiny_pair, tmp_path):
    env = {"TANDEM_DRAFT_ENGINE": str(tiny_pair[1]), "TANDEM_GRAPH_MEMORY_MB": "0"}
    models = ("draft", "target", "generate")
    options = Options(models=models, env=env, log=tmp_path / "log", exit_seconds=EXIT_SECONDS)
    with pytest.raises(ServerError, match=r"cannot draft for .*tokenizers differ"):
        TritonServer(options).start()
