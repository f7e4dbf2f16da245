"""The planner: its queueing model against closed forms, its search against a space that is known whole."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from launcher.settings_file import SettingsFileError, read_settings, write_settings
from perf.errors import PerfError
from perf.figures import percentile
from perf.plan import precision, spec
from perf.plan.evaluate import ConfigurationServer
from perf.plan.queueing import Level, OpenLoad
from perf.plan.report import conclusions, write
from perf.plan.search import candidate, grid, pareto, search
from perf.plan.session import compare_search, verify
from perf.plan.spec import Configuration


def level(rate: float, ttft: float = 100.0, itl: float = 10.0) -> Level:
    return Level(rate, np.array([ttft + 49 * itl]), np.array([ttft]), np.array([itl]), tokens_per_request=50)


def test_one_slot_is_the_m_m_1_queue() -> None:
    """The wait exceeds t with probability rho exp(-(mu - lambda) t); the time to first token is 100 ms more."""
    model = OpenLoad({1: level(10.0)}, slots=1)
    arrivals, mu = 8.0, 10.0
    rho = arrivals / mu
    states = model.states(arrivals)
    assert states[:5] == pytest.approx([(1 - rho) * rho**n for n in range(5)], rel=1e-9)
    waits = model.ttft_ms(arrivals) - 100
    assert (waits == 0).mean() == pytest.approx(1 - rho, abs=0.01)
    for percent in (50, 90, 99):
        exact = max(0.0, math.log(rho / (1 - percent / 100)) / (mu - arrivals) * 1000)
        assert percentile(waits, percent) == pytest.approx(exact, rel=0.06)


def test_many_slots_are_the_m_m_c_queue() -> None:
    """Erlang's C formula for the probability of waiting."""
    slots, mu = 4, 2.0
    model = OpenLoad({n: level(n * mu) for n in (1, 2, 4)}, slots)
    arrivals = 6.0
    load = arrivals / mu
    busy = load**slots / math.factorial(slots) * slots / (slots - load)
    erlang_c = busy / (sum(load**n / math.factorial(n) for n in range(slots)) + busy)
    assert (model.ttft_ms(arrivals) > 100).mean() == pytest.approx(erlang_c, abs=0.01)


def test_the_model_without_the_wait_is_noticed() -> None:
    """The negative control: a server that never queues fails the closed form."""
    model = OpenLoad({1: level(10.0)}, slots=1)
    model.slots = 4000  # nobody is ever told to wait
    with pytest.raises(AssertionError):
        assert (model.ttft_ms(8.0) > 100).mean() == pytest.approx(0.8, abs=0.01)


def test_latencies_are_those_of_the_streams_that_run() -> None:
    model = OpenLoad({1: level(1.0, 100, 10), 8: level(4.0, 300, 40)}, slots=8)
    light, heavy = model.itl_ms(0.05), model.itl_ms(3.9)
    assert percentile(light, 95) == 10
    assert percentile(heavy, 95) == 40
    assert set(light) <= {10.0, 40.0}
    assert percentile(model.ttft_ms(0.05), 50) == 100
    assert percentile(model.ttft_ms(3.9), 50) >= 300


@pytest.mark.parametrize("arrivals", [0.0, -1.0, 4.0, 9.0])
def test_a_load_beyond_the_server_is_refused(arrivals: float) -> None:
    with pytest.raises(ValueError, match="are not between 0 and 4"):
        OpenLoad({1: level(1.0), 8: level(4.0)}, slots=8).states(arrivals)


def plan(**changes: object) -> spec.Plan:
    fields = {
        "name": "test",
        "description": "a plan",
        "inputs": {"kind": "questions", "mix": [{"share": 1, "max_tokens": 8}]},
        "targets": {"ttft_p99_ms": 500, "itl_p95_ms": 30},
        "requests_per_s": 20,
        "price_per_hour": 0.5,
        "space": {"max_running": [8, 2, 4], "max_drafts": [16, 0]},
    }
    return spec.Plan.model_validate({**fields, **changes})


def server(configuration: Configuration) -> OpenLoad:
    """More streams give more throughput and longer gaps; drafts cost a tenth."""
    slots, drafts = int(configuration["max_running"]), int(configuration["max_drafts"])
    speed = 0.9 if drafts else 1.0
    return OpenLoad({n: level(speed * n**0.5, 50.0, 8.0 * n**0.5 / speed) for n in (1, 2, 4, 8) if n <= slots}, slots)


def test_the_search_finds_the_best_of_the_grid_with_fewer_measurements() -> None:
    asked: list[Configuration] = []

    def measure(configuration: Configuration) -> OpenLoad:
        asked.append(configuration)
        return server(configuration)

    wide = plan(space={"max_running": [8, 2, 4], "max_drafts": [16, 0], "kv_cache_mb": [1024, 512, 256]})
    best, measured = search(wide, measure)
    whole = [candidate(one, server(one), wide.targets) for one in grid(wide)]
    assert best.capacity == max(one.capacity for one in whole) > 0
    assert best.configuration == {"max_running": 8, "max_drafts": 0, "kv_cache_mb": 1024}
    assert len(measured) == len(asked) < len(whole) == 18
    tight = plan(targets={"itl_p95_ms": 17})  # eight streams are too many
    best, _ = search(tight, server)
    assert best.configuration == {"max_running": 4, "max_drafts": 0}


def test_what_is_far_behind_is_not_measured_again_beside_other_settings() -> None:
    """Two streams carry half of eight, four 0.71: only the four are tried again when drafts are off."""
    best, measured = search(plan(targets={"ttft_p99_ms": 1e9}), server)
    assert best.configuration == {"max_running": 8, "max_drafts": 0}
    looked_at = [tuple(one.configuration.values()) for one in measured]
    assert looked_at == [(8, 16), (2, 16), (4, 16), (8, 0), (4, 0)]


def test_capacity_keeps_the_targets_and_a_higher_load_does_not() -> None:
    found = candidate({"max_running": 8, "max_drafts": 0}, server({"max_running": 8, "max_drafts": 0}), plan().targets)
    targets = plan().targets
    assert all(found.predicted(name, found.capacity) <= bound for name, bound in targets.items())
    above = found.capacity + 0.05 * found.model.most
    assert any(found.predicted(name, above) > bound for name, bound in targets.items())


def test_costs_and_machines() -> None:
    found = candidate({"max_running": 8}, server({"max_running": 8, "max_drafts": 0}), {"ttft_p99_ms": 1e9})
    assert found.capacity == pytest.approx(0.98 * 8**0.5)
    assert found.machines(20) == math.ceil(20 / found.capacity)
    assert found.cost(0.5) == pytest.approx(0.5e6 / (3600 * found.capacity * 50))


def test_no_point_of_the_front_is_beaten() -> None:
    measured = [candidate(one, server(one), plan().targets) for one in grid(plan())]
    front = pareto(measured, 0.5)
    pairs = [(point.cost, point.p99_ms) for point in front]
    assert pairs == sorted(pairs, key=lambda pair: -pair[0])
    assert all(later[1] > earlier[1] for earlier, later in itertools.pairwise(pairs))


def test_a_load_that_breaks_a_target_is_lowered_until_it_does_not(tmp_path: Path) -> None:
    best, measured = search(plan(), server)
    rates: list[float] = []

    def open_load(rate: float) -> dict[str, dict[str, float]]:
        rates.append(rate)
        late = rate > 0.8 * best.capacity
        return {name: dict.fromkeys(("p50", "p95", "p99"), 900.0 if late else 20.0) for name in ("ttft_ms", "itl_ms")}

    verified = verify(plan(), best, open_load)
    assert rates == pytest.approx([best.capacity * share for share in (0.5, 1, 0.85, 0.7225)])
    assert [one.kept(plan().targets) for one in verified] == [True, False, False, True]
    sustained = verified[-1].requests_per_s
    said = " ".join(conclusions(plan(), best, verified, sustained))
    assert f"{math.ceil(20 / sustained)} machines" in said
    assert said.count("NOT kept") == 2
    page = write(tmp_path, plan(), measured, best, verified, sustained, "a machine")
    assert "Cheapest for each latency" in page.read_text(encoding="utf-8")
    assert (tmp_path / "plan.svg").read_bytes().startswith(b"<?xml")


def test_a_grid_says_what_the_search_would_have_missed() -> None:
    """Both settings must change together: one at a time sees nothing, and pays for it."""

    def trap(configuration: Configuration) -> OpenLoad:
        both = configuration == {"max_running": 2, "max_drafts": 0}
        return OpenLoad({1: level(2.0 if both else 1.0)}, slots=1)

    for measure, missed in ((server, 0.0), (trap, 1.0)):
        wanted = plan(space={"max_running": [8, 2], "max_drafts": [16, 0]}, targets={"ttft_p99_ms": 1e9})
        measured = [candidate(one, measure(one), wanted.targets) for one in grid(wanted)]
        best = max(measured, key=lambda one: one.capacity)
        assert compare_search(wanted, measured, best) == pytest.approx(missed)


def images(configuration: Configuration) -> OpenLoad:
    """Small batches halve the rate; a second instance brings nothing."""
    speed = 100.0 if configuration["resnet50_max_batch"] == 16 else 50.0
    return OpenLoad({n: Level(speed * n**0.5, np.array([10.0 * n**0.5])) for n in (1, 4, 16)}, slots=16)


def test_an_open_load_has_more_requests_than_come_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer perf_analyzer gives up."""
    counts: list[int] = []

    def measure(load: object, wanted: list[int], rounds: int, advance: object) -> tuple[dict[str, object], Path]:
        counts.extend(wanted)
        return {"points": [{"all": {}}]}, Path()

    server = ConfigurationServer(Path("perf_analyzer"), spec.load("images"), {}, None)
    monkeypatch.setattr(server, "_measure", measure)
    for rate in (1.0, 900.5):
        server.open_load(rate, print)
    assert counts == [3 * server._plan.requests, 4503]


def test_images_are_planned_by_whole_answers_and_cost_by_the_thousand(tmp_path: Path) -> None:
    wanted = plan(
        model="classify",
        inputs={"kind": "images", "sizes": [64]},
        targets={"latency_p99_ms": 100},
        space={"resnet50_max_batch": [4, 16], "resnet50_instances": [1, 2]},
    )
    best, measured = search(wanted, images)
    assert best.configuration == {"resnet50_max_batch": 16, "resnet50_instances": 1}
    assert best.predicted("latency_p99_ms", best.capacity) <= 100 < best.predicted("latency_p99_ms", 399)
    assert best.cost(0.5) == pytest.approx(0.5 * 1000 / (3600 * best.capacity))
    quick = dict.fromkeys(("p50", "p95", "p99"), 20.0)
    verified = verify(wanted, best, lambda rate: {"latency_ms": quick})
    page = write(tmp_path, wanted, measured, best, verified, best.capacity, "a machine").read_text(encoding="utf-8")
    assert "per thousand images" in page
    assert "tokens" not in page


def test_an_image_has_no_first_token(tmp_path: Path) -> None:
    text = (spec.PLANS / "images.yaml").read_text(encoding="utf-8").replace("latency_p99_ms", "ttft_p99_ms")
    (tmp_path / "wrong.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(PerfError, match="an image has no tokens, and so no ttft_p99_ms"):
        spec.load("wrong", directory=tmp_path)


def test_a_precision_is_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built: list[tuple[str, Path]] = []
    monkeypatch.setattr(precision, "ENGINES", tmp_path)
    monkeypatch.setattr(precision, "fetch", lambda: Path("model.gguf"))
    monkeypatch.setattr(precision, "resolve", lambda text: text)
    monkeypatch.setattr(precision.models, "origin_of", lambda name: name)
    monkeypatch.setattr(
        precision.language, "build",
        lambda source, output, recipe: (output.mkdir(parents=True), built.append((recipe.weights, output))),
    )  # fmt: skip
    monkeypatch.setattr(
        precision.build, "build", lambda origin, recipe, output: built.append((f"{origin} {recipe.name}", output))
    )
    assert precision.settings(plan(), {"max_running": 8}) == {"max_running": 8}
    found = precision.settings(plan(), {"max_running": 8, "precision": "int4"})
    assert found == {"target_engine": str(tmp_path / "int4" / "engine"), "max_running": 8}
    assert (tmp_path / "int4" / "drafter").is_symlink()  # the head that drafts is looked for beside the engine
    found = precision.settings(spec.load("images"), {"precision": "onnxruntime-int8", "resnet50_instances": 2})
    assert found == {"resnet50_engine": str(tmp_path / "resnet50-onnxruntime-int8"), "resnet50_instances": 2}
    assert [name for name, _ in built] == ["int4", "resnet50 onnxruntime-int8"]
    with pytest.raises(PerfError, match="precision 'int3' is not known: choose one of int8"):
        precision.settings(plan(), {"precision": "int3"})


@pytest.mark.parametrize("name", spec.names())
def test_the_plans_that_are_shipped_are_valid(name: str) -> None:
    assert spec.load(name).start


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("targets: {ttft_p98_ms: 3}", "'ttft_p98_ms' is no target"),
        ("targets: {}", "targets: "),
        ("space: {max_running: []}", "max_running has no values"),
        ("price_per_hour: 0", "price_per_hour: "),
        ("model: classify", "inputs of kind 'questions' do not fit the model 'classify'"),
        ("unknown: 1", "unknown: "),
    ],
)
def test_a_wrong_plan_names_its_field(tmp_path: Path, text: str, message: str) -> None:
    whole = (spec.PLANS / "chat.yaml").read_text(encoding="utf-8")
    field = text.split(":")[0]
    lines = whole.splitlines()
    kept, skipping = [], False
    for line in lines:
        skipping = line.startswith(f"{field}:") or (skipping and line.startswith(" "))
        if not skipping:
            kept.append(line)
    (tmp_path / "wrong.yaml").write_text("\n".join([*kept, text]), encoding="utf-8")
    with pytest.raises(PerfError, match=message):
        spec.load("wrong", directory=tmp_path)


def test_a_plan_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(PerfError, match="choose one of chat, images"):
        spec.load("nothing")


def test_settings_are_written_where_the_launcher_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "settings.env"
    assert read_settings(path) == {}
    wanted = spec.environment({"max_running": 8, "target_engine": "/a=b"})
    write_settings(path, wanted, "a test")
    assert read_settings(path) == wanted == {"TANDEM_MAX_RUNNING": "8", "TANDEM_TARGET_ENGINE": "/a=b"}
    path.write_text("TANDEM_A=1\nPATH=2\n", encoding="utf-8")
    with pytest.raises(SettingsFileError, match="line 2: 'PATH=2'"):
        read_settings(path)
