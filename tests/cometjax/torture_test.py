"""SIGKILL at random moments: the run always resumes, from its last complete save, and ends as if undisturbed."""

import random
import re
import time

import pytest

from cometjax import checkpoint_files, metrics
from cometjax.checkpoint_files import FOLDER
from tests.cometjax.tiny_run import CONFIG, losses, start, write_corpus

CHECKPOINT_EVERY = 3
# Unbuffered: what a killed run had said must have left it.
SETTINGS = {"JAX_NUM_CPU_DEVICES": "2", "PYTHONUNBUFFERED": "1"}
MOMENTS = ("in the steps", "in a save", "while starting")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torture")
    write_corpus(folder / "corpus")
    (folder / "config.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        # Starts are most of the time: what was compiled once is read.
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield folder


def partials(workdir):
    return {path.stat().st_ino for path in (workdir / FOLDER).glob("*.partial*") if path.exists()}


def saved(workdir):
    return bool(checkpoint_files.whole_steps(workdir / FOLDER))


def kill_at(moment, process, workdir, dice):
    """Kill the process at a random instant of that kind; False when it had ended before.

    In the steps and in a save there is something to lose: a whole save came before. How many steps or saves of this
    start come before is drawn, so that runs come on between kills.
    """
    seen, fewest, wanted = partials(workdir), len(metrics.read(workdir)), dice.randint(1, 3)
    before = len(seen)

    def in_the_steps():
        # A run that goes on drops the lines after its checkpoint, and then adds to them.
        nonlocal fewest
        lines = len(metrics.read(workdir))
        fewest = min(fewest, lines)
        return lines >= fewest + CHECKPOINT_EVERY * wanted and saved(workdir)

    def in_a_save():
        seen.update(partials(workdir))
        return len(seen) >= before + wanted and saved(workdir)

    arrived = {
        "while starting": lambda: True,
        "in the first save": lambda: bool(partials(workdir)),
        "in the steps": in_the_steps,
        "in a save": in_a_save,
    }[moment]
    while not arrived():
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    time.sleep(dice.uniform(0, {"while starting": 4.0, "in the steps": 0.7}.get(moment, 0.05)))
    process.kill()
    return True


def overrides_of(steps):
    return [f"--config.train.{key}" for key in (f"steps={steps}", f"checkpoint_every={CHECKPOINT_EVERY}")]


def torture(folder, workdir, moments, *, steps, seed):
    """Kill a run at each of the moments, let it end, and return how many kills left a save half written."""
    dice, whole, half_written = random.Random(seed), 0, 0
    overrides = overrides_of(steps)
    for moment in [*moments, None]:
        process = start(folder, workdir, *overrides, settings=SETTINGS)
        killed = moment is not None and kill_at(moment, process, workdir, dice)
        out, err = process.communicate(timeout=600)
        resumed = re.search(r"resumed at step (\d+)", out)
        # Nothing of the last complete save is lost, and nothing later is taken for one. Killed while it starts, a run
        # may not have come to say so.
        assert (int(resumed[1]) if resumed else 0) == whole or (moment == "while starting" and not resumed), (out, err)
        if moment is None:
            assert process.returncode == 0, err
            break
        assert killed, f"it ended before it could be killed {moment}"
        found = checkpoint_files.whole_steps(workdir / FOLDER)
        assert all(checkpoint_files.problem(workdir / FOLDER / str(step)) is None for step in found)
        assert max(found, default=0) >= whole
        whole = max(found, default=0)
        lines = metrics.read(workdir)
        # Saves wait for one another, and so the last complete one is at most two intervals back.
        assert not lines or lines[-1]["step"] <= whole + 2 * CHECKPOINT_EVERY
        half_written += bool(partials(workdir))
    return half_written


def names(workdir):
    """What lies in a workdir, but for the number of TensorBoard's files."""
    return sorted(path.relative_to(workdir).parts[:2] for path in workdir.glob("*/*") if path.parent.name == FOLDER) + [
        path.name for path in sorted(workdir.iterdir())
    ]


def assert_as_if_undisturbed(folder, workdir, *, steps):
    undisturbed = folder / f"undisturbed-{steps}"
    process = start(folder, undisturbed, *overrides_of(steps), settings=SETTINGS)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert losses(workdir) == losses(undisturbed)
    assert len([key for key in losses(workdir) if key[1] == "train"]) == steps
    assert names(workdir) == names(undisturbed)


@pytest.mark.timeout(900)  # four starts, of a few seconds each: of more than a minute where others want the cores
def test_a_run_killed_in_a_save_and_in_the_steps_ends_as_if_undisturbed(folder):
    torture(folder, folder / "few", ["in a save", "in the steps"], steps=60, seed=1)
    assert_as_if_undisturbed(folder, folder / "few", steps=60)


@pytest.mark.slow
def test_thirty_kills_at_random_moments_leave_no_trace(folder):
    moments = ["in the first save", *random.Random(0).choices(MOMENTS, weights=[5, 4, 1], k=29)]
    assert {*moments} == {"in the first save", *MOMENTS}
    half_written = torture(folder, folder / "many", moments, steps=600, seed=2)
    assert half_written >= 5
    assert_as_if_undisturbed(folder, folder / "many", steps=600)
