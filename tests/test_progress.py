"""Progress in log files: a line now and then, and every item once."""

from __future__ import annotations

import pytest

from kqeq_md.machine import progress as module
from kqeq_md.machine.progress import progress


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves by 12 s each time that somebody looks."""
    times = iter(range(0, 1000, 12))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(times)))
    monkeypatch.setattr(module._Told, "last", 0.0)


def test_log_files_get_lines_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    """A line after more than 30 s, and again: item k begins at 12 (k + 1) s."""
    assert list(progress(range(10), "charges")) == list(range(10))
    assert capsys.readouterr().err.splitlines() == [
        "charges: 2 of 10, 144 s left",
        "charges: 5 of 10, 72 s left",
        "charges: 8 of 10, 27 s left",
    ]


def test_many_short_loops_are_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    """The clock goes on from one loop to the next."""
    for number in range(1, 4):
        assert list(progress([3], f"round {number}")) == [3]
    assert capsys.readouterr().err.splitlines() == ["round 2: 0 of 1"]


def test_loops_without_a_name_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(10), "")) == list(range(10))
    assert capsys.readouterr().err == ""
