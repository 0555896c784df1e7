"""Plans of large splits: planned once a host, mapped afterwards, the same bytes everywhere, nothing half made."""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipeline import packing, plan_cache
from data_pipeline.errors import UserError

LENGTHS = np.random.default_rng(0).integers(5, 100, 600).astype(np.uint32)
ARGUMENTS = {"row_length": 64, "prefix_length": 4, "seed": 3}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COMETJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(plan_cache, "STORED_RECORDS", 100)
    return tmp_path / plan_cache.FOLDER


def arrays(plan):
    return plan.row_offsets_R1, plan.record_G, plan.start_G, plan.length_G


def equal(plan, other):
    return all(np.array_equal(a, b) for a, b in zip(arrays(plan), arrays(other), strict=True))


def stored(cache):
    return [path for path in cache.iterdir() if path.is_dir()]


def is_mapped(plan):
    return not any(array.flags.owndata or array.flags.writeable for array in arrays(plan))


def test_a_stored_plan_is_the_plan(cache):
    plan = plan_cache.plan(LENGTHS, **ARGUMENTS)
    assert equal(plan, packing.plan(LENGTHS, **ARGUMENTS)) and is_mapped(plan)


def test_the_next_start_maps_what_the_first_planned(cache, monkeypatch):
    first = plan_cache.plan(LENGTHS, **ARGUMENTS)
    monkeypatch.setattr(packing, "plan", lambda *_, **__: pytest.fail("planned again"))
    second = plan_cache.plan(LENGTHS, **ARGUMENTS)
    assert equal(first, second) and is_mapped(second)


def test_plans_of_other_lengths_seeds_and_rows_are_others(cache):
    plan_cache.plan(LENGTHS, **ARGUMENTS)
    changed = LENGTHS.copy()
    changed[-1] += 1
    for lengths_R, changes in ((changed, {}), (LENGTHS, {"seed": 4}), (LENGTHS, {"row_length": 65})):
        arguments = ARGUMENTS | changes
        assert equal(plan_cache.plan(lengths_R, **arguments), packing.plan(lengths_R, **arguments))
    assert len(stored(cache)) == 4


def test_small_splits_write_nothing(cache):
    plan = plan_cache.plan(LENGTHS[:100], **ARGUMENTS)
    assert equal(plan, packing.plan(LENGTHS[:100], **ARGUMENTS))
    assert not cache.exists()


def test_two_caches_hold_the_same_bytes(cache, tmp_path, monkeypatch):
    # Two hosts, each with a disk of its own.
    plan_cache.plan(LENGTHS, **ARGUMENTS)
    monkeypatch.setenv("COMETJAX_CACHE", str(tmp_path / "other"))
    plan_cache.plan(LENGTHS, **ARGUMENTS)
    (one,), (other,) = stored(cache), stored(tmp_path / "other" / plan_cache.FOLDER)
    assert one.name == other.name
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (one, other)]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", ["record_G.npy", "scalars.npy", "row_offsets_R1.npy"])
@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_a_damaged_plan_is_made_again(cache, name, damage):
    plan_cache.plan(LENGTHS, **ARGUMENTS)
    path = stored(cache)[0] / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2 if damage == "short" else 0])
    assert equal(plan_cache.plan(LENGTHS, **ARGUMENTS), packing.plan(LENGTHS, **ARGUMENTS))
    assert path.read_bytes() == content


_PLAN = """
import sys, numpy as np
from data_pipeline import packing, plan_cache
plan_cache.STORED_RECORDS = 100
if sys.argv[1] == "stuck":
    def save(self, folder):
        (folder / "half").write_text("made")
        print("saving", flush=True)
        import time; time.sleep(600)
    packing.PackingPlan.save = save
else:
    before = packing.plan
    def counted(*args, **kwargs):
        print("planning", flush=True)
        return before(*args, **kwargs)
    packing.plan = counted
lengths_R = np.random.default_rng(0).integers(5, 100, 600).astype(np.uint32)
plan_cache.plan(lengths_R, row_length=64, prefix_length=4, seed=3)
"""


def start(mode):
    root = pathlib.Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", _PLAN, mode], cwd=root, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_planner_leaves_is_removed_by_the_next(cache):
    process = start("stuck")
    assert process.stdout.readline() == "saving\n"
    process.kill()
    process.communicate()
    assert list(cache.glob("*.tmp"))
    plan_cache.plan(LENGTHS, **ARGUMENTS)
    assert len(stored(cache)) == 1 and not list(cache.glob("*.tmp"))


def test_of_several_processes_one_plans_and_the_others_wait(cache):
    processes = [start("plan") for _ in range(4)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(said) == ["", "", "", "planning\n"]


def test_plans_that_nobody_opened_for_a_season_are_removed(cache):
    plan_cache.plan(LENGTHS, **ARGUMENTS)
    (old,) = stored(cache)
    plan_cache.plan(LENGTHS, **ARGUMENTS | {"seed": 4})
    assert old.exists()
    os.utime(old, (time.time() - 91 * 86_400,) * 2)
    plan_cache.plan(LENGTHS, **ARGUMENTS | {"seed": 5})
    assert not old.exists() and len(stored(cache)) == 2


def test_a_cache_that_cannot_be_written_names_the_variable(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMETJAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file/packing_plans.*set the environment variable COMETJAX_CACHE"):
        plan_cache.plan(LENGTHS, **ARGUMENTS)
