"""Progress in log files: a line now and then, and every item once."""

from __future__ import annotations

import pytest

from kqeq_md import progress as module
from kqeq_md.progress import progress


def test_log_files_get_lines_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clock that moves by 12 s for each item: a line after more than 30 s, and again."""
    times = iter(range(0, 1000, 12))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(times)))
    assert list(progress(range(10), "charges")) == list(range(10))
    # item k begins at 12 (k + 1) s
    assert capsys.readouterr().err.splitlines() == [
        "charges: 2 of 10, 144 s left",
        "charges: 5 of 10, 72 s left",
        "charges: 8 of 10, 27 s left",
    ]


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([3, 4], "")) == [3, 4]
    assert capsys.readouterr().err == ""
