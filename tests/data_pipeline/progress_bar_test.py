import io
import sys

import pytest

from data_pipeline import progress_bar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_lines_of_a_long_job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress_bar, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress_bar.progress_bar(total=4, desc="simulate", unit="future") as bar:
        for _ in range(4):
            bar.update()
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert len(lines) >= 5 and all(line.startswith("simulate: ") for line in lines)
    assert "100%" in lines[-1] and "4/4" in lines[-1]
    assert "\r" not in err


def test_a_log_gets_nothing_of_a_short_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar.progress_bar([1, 2], desc="score")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_the_time_that_remains_is_not_foretold_by_a_first_piece_that_was_compiled(monkeypatch) -> None:
    now = 0.0
    with progress_bar.progress_bar(total=244, desc="simulate", unit="future") as bar:
        monkeypatch.setattr(bar, "_time", lambda: now)
        bar.start_t = 0.0
        now = 64.0
        bar.update(4)
        assert "4/244 [01:04<?, ?future/s]" in str(bar)
        now = 66.0
        bar.update(120)
        assert "124/244 [01:06<00:02, 60.00future/s]" in str(bar)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress_bar.progress_bar([1, 2], desc="score")) == [1, 2]
    assert "\rscore: 100%" in terminal.getvalue()


def test_nothing_is_shown_where_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    for stream in (terminal, io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(progress_bar, "_SECONDS_BETWEEN_LINES", 0.0)
        assert list(progress_bar.progress_bar([1, 2], enabled=False)) == [1, 2]
        with progress_bar.progress_bar(total=2, enabled=False) as bar:
            bar.update()
        assert stream.getvalue() == ""
