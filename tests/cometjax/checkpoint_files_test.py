import math
import os
import pathlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cometjax import checkpoint_files
from cometjax.checkpoint_files import KeepPolicy, TuningLoss


def write_checkpoint(folder: pathlib.Path, step: int) -> pathlib.Path:
    partial = checkpoint_files.partial_path(folder, step)
    (partial / "params" / "d").mkdir(parents=True)
    (partial / "params" / "d" / "array").write_bytes(bytes(range(200)))
    (partial / "metadata").write_text('{"at": 1}')
    checkpoint_files.commit(folder, step)
    return folder / str(step)


@example({1, 2, 3, 4}, {1: TuningLoss(math.nan, 100), 2: TuningLoss(0.5, 100), 3: TuningLoss(0.7, 100)}, 1, 0, 1)
@example({1, 2, 3, 4}, {1: TuningLoss(0.7, 100), 2: TuningLoss(math.nan, 100), 3: TuningLoss(0.5, 100)}, 1, 0, 1)
@settings(deadline=None)
@given(
    st.sets(st.integers(1, 20)),
    st.dictionaries(
        st.integers(1, 20),
        st.builds(TuningLoss, st.floats(0, 9) | st.sampled_from([math.nan, math.inf]), st.sampled_from([100, 250])),
    ),
    st.integers(1, 4),
    st.integers(0, 7),
    st.integers(0, 3),
)
def test_kept_are_the_newest_every_kth_and_the_best(steps, losses, latest, every, best):
    kept = KeepPolicy(latest, every=every, best=best).kept(steps, losses)
    assert kept <= steps
    newest = sorted(steps)[-latest:]
    assert set(newest) <= kept
    assert all(step in kept for step in steps if every and step % every == 0)
    best_of_their_likes = set()
    for tokens in (100, 250):  # losses compare where they are of as many tokens
        evaluated = [step for step in steps if step in losses and losses[step].tokens == tokens]
        finite = [step for step in evaluated if math.isfinite(losses[step].loss)]
        among_best = [s for s in finite if sum(losses[other].loss < losses[s].loss for other in finite) < best]
        assert len(kept & set(among_best)) >= min(best, len(finite))
        best_of_their_likes |= set(among_best)
    assert kept - set(newest) - {step for step in steps if every and step % every == 0} <= best_of_their_likes
    # Keeping is stable: what was deleted would not have been kept once it is gone.
    assert KeepPolicy(latest, every=every, best=best).kept(kept, losses) == kept


def test_a_checkpoint_is_whole_only_with_its_checksums(tmp_path):
    partial = checkpoint_files.partial_path(tmp_path, 3)
    partial.mkdir()
    (partial / "file").write_text("half")
    assert checkpoint_files.whole_steps(tmp_path) == []
    checkpoint_files.commit(tmp_path, 3)
    assert checkpoint_files.whole_steps(tmp_path) == [3]
    assert checkpoint_files.problem(tmp_path / "3") is None


@pytest.mark.parametrize("name", ["params/d/array", "metadata", checkpoint_files.CHECKSUMS])
def test_any_file_missing_truncated_or_altered_by_a_bit_is_named(tmp_path, name):
    checkpoint = write_checkpoint(tmp_path, 1)
    path = checkpoint / name
    written = path.read_bytes()
    path.unlink()
    assert checkpoint_files.problem(checkpoint) == f"{name} is missing"
    path.write_bytes(written[:-1])
    assert checkpoint_files.problem(checkpoint).startswith(name)
    for at in range(0, len(written), 7):
        path.write_bytes(written[:at] + bytes([written[at] ^ 1]) + written[at + 1 :])
        assert checkpoint_files.problem(checkpoint).startswith(name), at
    path.write_bytes(written)
    assert checkpoint_files.problem(checkpoint) is None


def test_damaged_ones_are_set_aside_under_names_that_say_so(tmp_path):
    for expected in ("1.damaged", "1.damaged-2", "1.damaged-3"):
        assert checkpoint_files.set_aside(write_checkpoint(tmp_path, 1)).name == expected
    assert checkpoint_files.whole_steps(tmp_path) == []
    assert checkpoint_files.damaged(tmp_path) == ["1.damaged", "1.damaged-2", "1.damaged-3"]


def test_a_deletion_cut_short_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    checkpoint = write_checkpoint(tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rmdir", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        checkpoint_files.delete(checkpoint)
    assert checkpoint_files.whole_steps(tmp_path) == []
    assert list(tmp_path.iterdir())
    assert checkpoint_files.remove_leftovers(tmp_path) == []
    assert not list(tmp_path.iterdir())
