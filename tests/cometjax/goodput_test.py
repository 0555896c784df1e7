"""Every second of a run has one cause, over all its restarts."""

import json
import time

import pytest

from cometjax import goodput
from cometjax.goodput import CAUSES, Clock


@pytest.fixture
def tick(monkeypatch):
    """tick(seconds) lets time pass; nothing else does."""
    now = {"perf_counter": 100.0, "time": 1_000_000.0}
    for name in now:
        monkeypatch.setattr(time, name, lambda name=name: now[name])

    def pass_(seconds):
        for name in now:
            now[name] += seconds

    return pass_


def spent(clock):
    return {cause: seconds for cause, seconds in clock.seconds.items() if seconds}


def test_every_second_has_one_cause_and_all_add_up_to_the_wall_time(tick):
    clock = Clock(started=98.0)
    tick(1)
    with clock.measure("compile"):
        tick(4)
    clock.begin("other")
    with clock.measure("input"):
        tick(2)
        clock.count_as("step")  # it turned out that the devices were busy
    with clock.measure("evaluation"):
        tick(8)
        with clock.measure("checkpoint"):
            tick(16)
        tick(32)
    with clock.measure("input"):
        tick(64)
    tick(128)
    assert clock.wall == 2 + 1 + 4 + 2 + 8 + 16 + 32 + 64 + 128
    assert spent(clock) == {
        "setup": 3, "compile": 4, "step": 2, "evaluation": 40, "checkpoint": 16, "input": 64, "other": 128,
    }  # fmt: skip
    assert clock.training == 66 and clock.goodput == 2 / clock.wall


def test_an_error_in_a_block_is_charged_as_well(tick):
    clock = Clock()
    with pytest.raises(KeyError), clock.measure("checkpoint"):
        tick(3)
        raise KeyError
    assert spent(clock) == {"checkpoint": 3}


def run_until_killed(tick):
    """(what the checkpoint keeps, the last record) of a process that saves at 20 s, writes a line at 50 s, and dies."""
    clock = Clock()
    clock.tokens, clock.flops = 10, 5.0
    clock.begin("step")
    tick(20)
    saved = json.loads(json.dumps(clock.to_dict()))
    tick(30)
    record = json.loads(json.dumps(clock.record()))
    tick(7)
    return saved, record


def test_a_restart_costs_what_was_lost_what_passed_without_a_process_and_the_start(tick):
    saved, record = run_until_killed(tick)
    tick(1000)
    started = time.perf_counter()
    tick(5)
    again = Clock(saved, last_record=record, started=started)
    assert (again.tokens, again.flops) == (10, 5.0)
    tick(6)
    again.begin("other")
    # From the last line on, at most log_every steps before the kill, there is nothing that could tell.
    assert again.wall == 20 + 30 + (7 + 1000) + 11
    assert spent(again) == {"step": 20, "lost": 30, "down": 1007, "restart": 11}
    assert again.describe() == "goodput 0.019 of 1,068.0 s: down 0.943, lost 0.028, step 0.019, restart 0.010"


def test_a_run_killed_before_its_first_checkpoint_has_lost_all_of_it(tick):
    _, record = run_until_killed(tick)
    again = Clock(last_record=record)
    tick(1)
    assert again.wall == 50 + 7 + 1 and spent(again) == {"lost": 50, "down": 7, "restart": 1}


def test_an_evaluation_whose_line_is_kept_is_not_lost(tick):
    clock = Clock()
    clock.begin("step")
    tick(20)
    saved = json.loads(json.dumps(clock.to_dict()))
    with clock.measure("evaluation"):
        tick(50)
    kept = json.loads(json.dumps(clock.record()))
    tick(4)
    last = json.loads(json.dumps(clock.record()))
    tick(1)
    again = Clock(saved, kept_record=kept, last_record=last)
    assert spent(again) == {"step": 20, "evaluation": 50, "lost": 4, "down": 1}
    # A line from before the checkpoint says nothing that the checkpoint does not.
    assert spent(Clock(kept_record=None, carried=again.to_dict())) == spent(again)
    assert spent(Clock(again.to_dict(), kept_record=kept, last_record=kept))["lost"] == 4


def test_a_run_that_was_stopped_at_its_checkpoint_has_lost_nothing(tick):
    saved, _ = run_until_killed(tick)
    assert spent(Clock(saved)) == {"step": 20}
    # Saved after its line, and resumed by a machine whose clock is behind.
    assert spent(Clock(saved, last_record={"wall_seconds": 19.5, "time": time.time() + 60})) == {"step": 20}


def test_checkpoints_of_versions_that_counted_a_part_of_the_time_still_add_up(tick):
    old = Clock({"seconds": {"step": 3.0, "input": 1.0}, "tokens": 1, "flops": 1.0, "wall": 6.0})
    assert old.wall == 6 and old.seconds["other"] == 2 and set(old.seconds) == set(CAUSES)


def test_a_record_adds_up_exactly():
    clock = Clock()
    record = clock.record()
    assert sum(record[f"seconds/{cause}"] for cause in CAUSES) == record["wall_seconds"]
    assert record["goodput"] == record["seconds/step"] / record["wall_seconds"]


def test_a_process_knows_when_it_was_started():
    assert 0 < time.perf_counter() - goodput.process_start() < 86_400
