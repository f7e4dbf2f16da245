"""Load profiles: those that ship are valid, mistakes are named; what they send is what they say."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from perf import commands, inputs, mt_bench, profile
from perf.errors import PerfError

TEXTS = [f"question number {index} about something else" for index in range(80)]


@pytest.fixture(autouse=True)
def texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mt_bench, "prompts", lambda count=80: TEXTS[:count])


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_every_profile_of_the_issue_is_there_and_valid() -> None:
    kinds = {name: profile.load(name) for name in profile.names()}
    wanted = "smoke steady concurrency poisson bursts long-prompts long-answers shared-prefix cancelling images"
    assert set(kinds) == set(wanted.split())
    assert all(found.description for found in kinds.values())


VALID = """
description: one
load: {kind: concurrency, levels: [2]}
requests: 4
inputs: {kind: questions, mix: [{share: 1, max_tokens: 8}]}
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("levels: [2]", "levels: [0]"), r"load\.concurrency\.levels\.0: Input should be greater than 0, found 0"),
        (("levels: [2]", "levels: []"), r"load\.concurrency\.levels: List should have at least 1 item"),
        (("kind: concurrency", "kind: storm"), r"load: .*'concurrency', 'poisson', 'bursts'"),
        (("requests: 4", "requests: [4, 5]"), "requests has 2 entries for 1 levels"),
        (("requests: 4", "requests: 1"), "1 requests never make concurrency of 2"),
        (("requests: 4", "reqests: 4"), r"(?s)requests: Field required.*reqests: Extra inputs are not permitted"),
        (("max_tokens: 8", "max_tokens: many"), r"inputs\.questions\.mix\.0\.max_tokens: .*found 'many'"),
        (("description: one", "description: one\nmodel: classify"), "'questions' do not fit the model 'classify'"),
        (("description: one", "- one"), "is not YAML"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert profile.load(written(tmp_path, VALID)).load.levels == [2]
    with pytest.raises(PerfError, match=message):
        profile.load(written(tmp_path, VALID.replace(*change)))


def test_unknown_profile_lists_those_there_are() -> None:
    with pytest.raises(PerfError, match=r"no profile 'smok': choose one of .*concurrency.*smoke"):
        profile.load("smok")


def test_questions_ask_for_what_the_figures_need_and_share_nothing_with_other_rounds() -> None:
    chosen = profile.load("long-prompts")
    entries = inputs.entries(chosen, 120, "round 1")
    assert len(entries) == 120
    assert all(entry["return_token_ids"]["content"] == [True] == entry["stream"]["content"] for entry in entries)
    salted = {(entry["cache_salt"]["content"][0], entry["messages"]["content"][0]) for entry in entries}
    assert len(salted) == 120, "a request that is sent twice would be found in the cache"
    assert salted.isdisjoint(
        (entry["cache_salt"]["content"][0], entry["messages"]["content"][0])
        for entry in inputs.entries(chosen, 120, "round 2")
    )
    words = [len(json.loads(entry["messages"]["content"][0])[0]["content"].split()) for entry in entries]
    assert {count for count in words if count > 100} == {750}
    assert 15 <= sum(count == 750 for count in words) <= 45, "a quarter of the requests is long"
    assert entries == inputs.entries(chosen, 120, "round 1"), "the same every time"


def test_chats_grow_and_share_their_system_prompts() -> None:
    chosen = profile.load("shared-prefix")
    chats = [json.loads(entry["messages"]["content"][0]) for entry in inputs.entries(chosen, 24, "s")]
    assert [len(chat) for chat in chats] == [2] * 6 + [4] * 6 + [6] * 6 + [8] * 6
    assert len({chat[0]["content"] for chat in chats}) == 2
    for early, late in zip(chats, chats[6:], strict=False):
        assert late[: len(early)] == early, "a turn begins with the turn before it"


def test_images_are_jpeg_files_of_the_wanted_sizes() -> None:
    chosen = profile.load("images")
    entries = inputs.entries(chosen, 4, "s", image_input="jpeg")
    tensors = [base64.b64decode(entry["jpeg"]["content"]["b64"]) for entry in entries]
    files = [tensor[4:] for tensor in tensors]
    assert [int.from_bytes(tensor[:4], "little") for tensor in tensors] == [len(file) for file in files]
    assert [Image.open(io.BytesIO(file)).size for file in files] == [(edge, edge) for edge in (160, 224, 320, 512)]
    assert Image.open(io.BytesIO(files[0])).format == "JPEG"
    others = inputs.entries(chosen, 4, "another round", image_input="jpeg")
    assert not {str(entry) for entry in entries} & {str(entry) for entry in others}, "the response cache would answer"


def test_command_lines(tmp_path: Path) -> None:
    def line(name: str, level: float) -> str:
        made = commands.command(
            Path("pa"), profile.load(name), level, 9, "h:1", tmp_path / "in.json", tmp_path / "out.json"
        )
        return " ".join(made)

    assert "--streaming" in line("smoke", 4)
    assert line("smoke", 4).endswith("--concurrency-range 4")
    assert line("poisson", 0.5).endswith("--request-rate-range 0.5 --request-distribution poisson")
    assert line("bursts", 4).endswith(f"--request-intervals {tmp_path / 'out.intervals'}")
    assert "--streaming" not in line("images", 1)
    assert "--request-count 9" in line("images", 1)
    assert sum(commands.burst_intervals(4, 8.0)) == 8_000_000
    assert commands.burst_intervals(1, 2.0) == [2_000_000]
