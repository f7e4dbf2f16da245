"""Times without the pauses of measuring in turns."""

from __future__ import annotations

from pathlib import Path

from perf import export, pauses


def test_times_without_pauses() -> None:
    active = pauses.ActiveTime([(100, 150), (300, 400)])
    assert [active.at(time) for time in (50, 100, 120, 150, 200, 300, 399, 400, 500)] == [
        50, 100, 100, 100, 150, 250, 250, 250, 350
    ]  # fmt: skip
    assert pauses.ActiveTime([]).at(7) == 7


def test_an_export_is_read_without_its_pauses(tmp_path: Path) -> None:
    """A pause of a second in the middle of each request takes a second off it."""
    path = tmp_path / "export.json"
    path.write_bytes((Path(__file__).parent / "data" / "perf_export.json").read_bytes())
    before = export.read(path).requests
    begin = before[0].arrivals[0] + 1
    pauses.store(path, [(begin, begin + 1000)])
    for old, new in zip(before, export.read(path).requests, strict=True):
        times = [(old.sent, new.sent), *zip(old.arrivals, new.arrivals, strict=True)]
        assert all(b == a - min(1000, max(0, a - begin)) for a, b in times)
