"""When a trace begins and ends, and what is said where there is none. Real traces of a run are in resume_test.py."""

import contextlib

import jax
import pytest

from cometjax import profiling
from data_pipeline.errors import UserError


@pytest.mark.parametrize(("text", "steps"), [("100:105", range(100, 105)), ("1:2", range(1, 2)), ("", range(0))])
def test_steps_are_given_as_a_range(text, steps):
    assert profiling.parse_steps(text) == steps


@pytest.mark.parametrize("text", ["100", "5:5", "0:3", "a:b", "7:3", "1:2:3"])
def test_other_steps_are_refused(text):
    with pytest.raises(UserError, match=r"--profile_steps: .*is not A:B.*100:105"):
        profiling.parse_steps(text)


@pytest.fixture
def calls(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def run(profiler, calls, steps, asked=None, request=None):
    """The calls, with the steps between."""
    for step in steps:
        if step == asked:
            request.ask()
        with profiler.step(step, None):
            calls.append(step)
        profiler.dispatched(step, None)


def test_a_run_that_is_resumed_or_ends_within_the_steps_traces_those_that_it_does(tmp_path, calls):
    said = []
    profiler = profiling.Profiler(tmp_path, range(3, 9), profiling.Request(), said.append)
    run(profiler, calls, [5, 6])
    profiler.end(6)
    assert calls == ["start", 5, 6, "stop"]
    assert said == [f"trace of steps 5 to 6: {tmp_path / 'profile' / 'step_5'}"]
    profiler.end(6)
    assert calls.count("stop") == 1


def test_a_signal_during_a_trace_asks_for_another_after_it(tmp_path, calls):
    request = profiling.Request()
    profiler = profiling.Profiler(tmp_path, range(2, 4), request, lambda message: None)
    run(profiler, calls, range(1, 11), asked=3, request=request)
    assert calls == [1, "start", 2, 3, "stop", "start", 4, 5, 6, 7, 8, "stop", 9, 10]


def test_a_trace_that_cannot_be_made_is_told_and_the_steps_go_on(tmp_path):
    said, calls = [], []
    with contextlib.ExitStack() as stack:
        jax.profiler.start_trace(str(tmp_path / "of another"))  # as a profiler server's
        stack.callback(jax.profiler.stop_trace)
        profiler = profiling.Profiler(tmp_path, range(2, 4), profiling.Request(), said.append)
        run(profiler, calls, [1, 2, 3])
    assert calls == [1, 2, 3] and len(said) == 1 and said[0].startswith("no trace of steps 2 to 3: ")


def test_a_trace_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    stop, said = jax.profiler.stop_trace, []

    def refused():
        stop()  # JAX lets no other trace begin in a process after one that it could not write
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(jax.profiler, "stop_trace", refused)
    profiler = profiling.Profiler(tmp_path, range(1, 2), profiling.Request(), said.append)
    run(profiler, [], [1])
    assert said == ["no trace of steps 1 to 1: No space left on device"]
