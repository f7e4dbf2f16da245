"""The recurrent drafter: its engine against the torch network, its choices against `tandem.noise`, its refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from transformers import LlamaConfig

from build_engines.drafting import weights
from build_engines.drafting.engine import build_drafter
from build_engines.drafting.network import Network, Shape
from build_engines.errors import BuildError
from tandem import noise
from tandem.manifest import FILE_NAME, Manifest, ManifestError
from tandem.recurrent_drafter import RecurrentDrafter
from tandem.sampling import SamplingParams

HIDDEN, IDS = 64, 150  # two blocks of 64 columns and a part of one
END = 2
GREEDY = SamplingParams()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("target")
    return tiny_models.save(tiny_models.random_model(tiny_models.config(LlamaConfig, hidden_size=HIDDEN)), directory)


@pytest.fixture(scope="module")
def trained(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    network = Network(Shape(HIDDEN, (48, 32)))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, float(parameter.ndim == 1), 0.2)  # as a mistake in a norm would not show at 1
    network.get_buffer("scale").copy_(torch.rand(HIDDEN) + 0.5)
    ids = np.random.default_rng(0).permutation(tiny_models.VOCABULARY)[:IDS].astype(np.int32)
    directory = tmp_path_factory.mktemp("trained")
    weights.save(directory, weights.Drafter(network, ids, "tiny", weights.embedding_of(checkpoint)[1]))
    return directory


@pytest.fixture(scope="module")
def built(checkpoint: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("drafter") / "engine"
    build_drafter(trained, checkpoint, output, "fp32")
    return output


@pytest.fixture(scope="module")
def drafter(built: Path) -> RecurrentDrafter:
    return RecurrentDrafter(built, threads=1)


@pytest.fixture(scope="module")
def reference(checkpoint: Path, trained: Path) -> Callable[..., list[int]]:
    """Drafts of one row, computed with torch and the definition of the noise."""
    table, _ = weights.embedding_of(checkpoint)
    stored = weights.load(trained)
    ids = np.sort(stored.ids)

    @torch.no_grad()
    def propose(features: Any, token: int, position: int, params: SamplingParams, count: int) -> list[int]:
        state, drafts = stored.network.start(torch.from_numpy(features)), []
        for step in range(count):
            state = stored.network(state[None], table[token][None])[0]
            logits = (table[ids] @ (state * stored.network.get_buffer("scale"))).double().numpy()
            if params.temperature:
                logits = logits / params.temperature + noise.gumbel(params.seed, position + step, ids)
            token = int(ids[logits.argmax()])
            drafts.append(token)
        return drafts

    return propose


def features(rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(rows).normal(size=(rows, HIDDEN)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_drafts_are_those_of_the_network_and_the_noise(
    drafter: RecurrentDrafter, reference: Callable[..., list[int]], rows: int
) -> None:
    given = features(rows)
    params = [SamplingParams(temperature=0.7 * (row % 3), seed=2**63 + row) for row in range(rows)]
    tokens, positions = list(range(40, 40 + rows)), [5 + 7 * row for row in range(rows)]
    proposal = drafter.propose(given, tokens, positions, params, [6] * rows)
    expected = [reference(given[row], tokens[row], positions[row], params[row], 6) for row in range(rows)]
    assert proposal.tokens == expected


def test_rows_do_not_depend_on_each_other_and_counts_are_kept(
    drafter: RecurrentDrafter, reference: Callable[..., list[int]]
) -> None:
    counts = [0, 5, 1, 3, 0, 2]
    given, tokens = features(6), [7, 8, 9, 10, 11, 12]
    params = [SamplingParams(temperature=1.0, seed=row) for row in range(6)]
    proposal = drafter.propose(given, tokens, [10] * 6, params, counts)
    assert [len(drafts) for drafts in proposal.tokens] == counts
    assert [len(shares) for shares in proposal.confidences] == counts
    assert proposal.tokens == [reference(given[i], tokens[i], 10, params[i], counts[i]) for i in range(6)]


def test_nothing_wanted_is_nothing_done(drafter: RecurrentDrafter) -> None:
    assert drafter.propose(features(0), [], [], [], []).tokens == []
    assert drafter.propose(features(2), [1, 1], [1, 1], [GREEDY] * 2, [0, 0]).tokens == [[], []]


def test_an_end_id_is_the_last_draft(drafter: RecurrentDrafter) -> None:
    free = drafter.propose(features(1), [40], [5], [GREEDY], [6]).tokens[0]
    ended = dataclasses.replace(GREEDY, end_ids=(free[2],))
    stopped = drafter.propose(features(1), [40], [5], [ended], [6]).tokens[0]
    assert stopped == free[: free.index(free[2]) + 1]


def test_confidence_is_the_probability_at_the_temperature(
    drafter: RecurrentDrafter, checkpoint: Path, trained: Path
) -> None:
    table, _ = weights.embedding_of(checkpoint)
    stored = weights.load(trained)
    given = features(1)
    with torch.no_grad():
        state = stored.network(stored.network.start(torch.from_numpy(given)), table[[40]])[0]
        logits = table[np.sort(stored.ids)] @ (state * stored.network.get_buffer("scale"))
    for params, temperature in ((GREEDY, 1.0), (SamplingParams(temperature=0.5, seed=3), 0.5)):
        proposal = drafter.propose(given, [40], [5], [params], [1])
        shares = (logits / temperature).softmax(0)
        column = np.sort(stored.ids).tolist().index(proposal.tokens[0][0])
        assert proposal.confidences[0][0] == pytest.approx(float(shares[column]), rel=1e-3)


def test_broken_features_give_no_drafts_and_leave_neighbours_alone(drafter: RecurrentDrafter) -> None:
    given = features(3)
    whole = drafter.propose(given, [4, 5, 6], [1] * 3, [GREEDY] * 3, [3] * 3).tokens
    given[1] = np.nan
    assert drafter.propose(given, [4, 5, 6], [1] * 3, [GREEDY] * 3, [3] * 3).tokens == [whole[0], [], whole[2]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.zeros((1, HIDDEN + 1), np.float32)}, "features"),
        ({"features": np.zeros((1, HIDDEN))}, "features: float64"),
        ({"tokens": [tiny_models.VOCABULARY]}, r"tokens: ids must be in 0 \.\. 511"),
        ({"tokens": [-1]}, "tokens"),
        ({"positions": [-1]}, "positions"),
        ({"counts": [-1]}, "counts"),
        ({"counts": [1, 1]}, "2 counts"),
        ({"sampling": []}, "0 sampling"),
    ],
)
def test_input_out_of_range_is_refused(drafter: RecurrentDrafter, changes: dict[str, Any], message: str) -> None:
    usual = {"features": features(1), "tokens": [1], "positions": [1], "sampling": [GREEDY], "counts": [1]}
    with pytest.raises(ValueError, match=message):
        drafter.propose(**(usual | changes))


def test_int8_weights_choose_nearly_the_same(
    drafter: RecurrentDrafter, checkpoint: Path, trained: Path, tmp_path: Path
) -> None:
    manifest = build_drafter(trained, checkpoint, tmp_path / "int8", "int8")
    assert manifest.precision == "int8"
    arguments = (features(64), [9] * 64, [1] * 64, [GREEDY] * 64, [1] * 64)
    pairs = zip(RecurrentDrafter(tmp_path / "int8").propose(*arguments).tokens, drafter.propose(*arguments).tokens,
                strict=True)  # fmt: skip
    assert sum(left == right for left, right in pairs) >= 56


def test_fewer_ids_can_be_built(checkpoint: Path, trained: Path, tmp_path: Path) -> None:
    build_drafter(trained, checkpoint, tmp_path / "small", "fp32", vocabulary=20)
    small = RecurrentDrafter(tmp_path / "small")
    assert small.ids.tolist() == sorted(weights.load(trained).ids[:20].tolist())
    assert set(small.propose(features(1), [9], [1], [GREEDY], [5]).tokens[0]) <= set(small.ids.tolist())


def target(**changes: Any) -> Manifest:
    usual = Manifest(
        kind="language", name="other", architecture="llama", source="other", source_sha256="00", tokenizer_sha256="11",
        weights="int8", activations="f32", kv_cache="f16", dynamic_quantization_group=64, runtime="openvino",
        runtime_version=metadata.version("openvino"), vocab_size=tiny_models.VOCABULARY, context_length=128,
        bos_token_id=None, eos_token_ids=(END,), add_bos=False, build_key="22", files={},
    )  # fmt: skip
    return dataclasses.replace(usual, **changes)


def test_a_target_with_another_tokenizer_is_refused(built: Path, drafter: RecurrentDrafter) -> None:
    RecurrentDrafter(built, target=target(tokenizer_sha256=drafter.manifest.tokenizer_sha256))
    with pytest.raises(ManifestError, match=r"tiny does not fit the target other: tokenizer sha256 .* there"):
        RecurrentDrafter(built, target=target())


def test_a_damaged_or_foreign_engine_is_refused(checkpoint: Path, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "engine"
    with pytest.raises(ManifestError, match=r"manifest\.json is missing"):
        RecurrentDrafter(output)
    build_drafter(trained, checkpoint, output, "fp32")
    manifest = json.loads((output / FILE_NAME).read_text())
    (output / FILE_NAME).write_text(json.dumps(manifest | {"runtime_version": "1.0"}))
    with pytest.raises(ManifestError, match=r"expected version 1\.0, found"):
        RecurrentDrafter(output)
    (output / FILE_NAME).write_text(json.dumps(manifest | {"kind": "language"}))
    with pytest.raises(ManifestError, match=r"expected recurrent-drafter 1, found language 1"):
        RecurrentDrafter(output)
    (output / FILE_NAME).write_text(json.dumps(manifest))
    with (output / "drafter.bin").open("r+b") as file:
        file.write(b"?")
    with pytest.raises(ManifestError, match=r"drafter\.bin: expected sha256"):
        RecurrentDrafter(output)


def test_a_directory_of_something_else_is_not_replaced(checkpoint: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("keep")
    with pytest.raises(BuildError, match="holds no drafter"):
        build_drafter(trained, checkpoint, tmp_path)
    assert (tmp_path / "letter").is_file()


def test_weights_of_another_target_are_not_built(trained: Path, tmp_path: Path) -> None:
    settings = tiny_models.config(LlamaConfig, hidden_size=HIDDEN, initializer_range=0.1)
    other = tiny_models.save(tiny_models.random_model(settings), tmp_path / "other")
    with pytest.raises(BuildError, match="was trained for a target whose embedding has the sha256"):
        build_drafter(trained, other, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_a_run_ends_where_it_is_told_to(drafter: RecurrentDrafter) -> None:
    given, asked = features(2), []

    def goes_on(row: int, confidences: Sequence[float]) -> bool:
        asked.append((row, len(confidences)))
        return row == 1 or len(confidences) < 2

    whole = drafter.propose(given, [4, 5], [1, 1], [GREEDY] * 2, [5, 5]).tokens
    found = drafter.propose(given, [4, 5], [1, 1], [GREEDY] * 2, [5, 5], goes_on).tokens
    assert found == [whole[0][:2], whole[1]]
    assert asked == [(0, 1), (1, 1), (0, 2), (1, 2), (1, 3), (1, 4)]
