import contextlib
import dataclasses
import errno
import functools
import json
import logging
import os
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from cometjax import checkpoint_choice, checkpoint_files
from cometjax import workdir as workdirs
from cometjax.checkpoint_files import FOLDER, KeepPolicy, TuningLoss
from cometjax.checkpoints import Checkpoints, load_for_inference
from cometjax.config import default_config
from cometjax.model import ModelConfig
from cometjax.step_guard import init_guard
from cometjax.train_step import TrainState, init_state
from data_pipeline import code_maps, intervals
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import Token, Vocabulary

VOCABULARY = Vocabulary(
    tokens=(
        Token("PAD", "SPECIAL", "pad"),
        *(Token(f"LAB//{i}", "LAB", "first") for i in range(7)),
        *(Token(f"INTERVAL//{name}", "INTERVAL", "interval") for name in intervals.COMET13.names),
    ),
    events=(),
    interval_preset=intervals.COMET13,
    interval_seconds=(60.0,) * 13,
    code_map=code_maps.named("generic"),
)


def tiny_config():
    config = default_config()
    with config.unlocked():
        config.model.update(layers=1, width=8, heads=2, kv_heads=1, head_dim=4, mlp_width=8)
    return config


def state_of(seed):
    config = ModelConfig.from_config(tiny_config().model, len(VOCABULARY))
    return init_state(config, optax.scale_by_adam(), seed)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save(workdir, steps, keep=2):
    checkpoints = Checkpoints(workdir, KeepPolicy(keep))
    for step in steps:
        metadata = {"config": tiny_config().to_dict(), "vocabulary_fingerprint": VOCABULARY.fingerprint, "at": step}
        checkpoints.save(step, state_of(step), metadata)
    checkpoints.close()


def test_state_and_metadata_come_back_bitwise_and_the_latest_are_kept(tmp_path):
    save(tmp_path, [1, 2, 3], keep=2)
    checkpoints = Checkpoints(tmp_path, KeepPolicy(2))
    assert checkpoints.newest() == 3
    state, metadata = checkpoints.restore(3, abstract(state_of(0))), checkpoints.metadata(3)
    jax.tree.map(np.testing.assert_array_equal, state, state_of(3))
    assert metadata["at"] == 3
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir() if path.is_dir()) == ["2", "3"]


def test_a_half_written_checkpoint_is_ignored_and_removed(tmp_path, caplog):
    save(tmp_path, [1])
    partial = tmp_path / FOLDER / "2.partial.orbax-checkpoint-tmp"
    partial.mkdir()
    (partial / "params").mkdir()
    load_target = Checkpoints(tmp_path, KeepPolicy(2))
    assert load_target.newest() == 1
    load_target.close()
    assert not partial.exists()
    assert "half written" in caplog.text


def every_file(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def alter(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


HARM = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "altered": alter,
}


@pytest.mark.parametrize("harm", HARM)
def test_whichever_file_is_harmed_the_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, caplog, harm):
    save(tmp_path / "good", [1, 2])
    names = [path.relative_to(tmp_path / "good") for path in every_file(tmp_path / "good" / FOLDER / "2")]
    assert len(names) > 20
    for number, name in enumerate(names):
        workdir = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", workdir)
        HARM[harm](workdir / name)
        caplog.clear()
        checkpoints = Checkpoints(workdir, KeepPolicy(2))
        assert checkpoints.newest() == 1, name
        checkpoints.close()
        assert name.name in caplog.text and "set aside as 2.damaged" in caplog.text
        assert sorted(path.name for path in (workdir / FOLDER).iterdir()) == ["1", "2.damaged"]


def test_a_workdir_whose_checkpoints_are_all_damaged_is_refused_at_every_start(tmp_path):
    save(tmp_path, [1, 2])
    for step in "12":
        alter(every_file(tmp_path / FOLDER / step)[-1])
    for _ in range(2):
        checkpoints = Checkpoints(tmp_path, KeepPolicy(2))
        with pytest.raises(UserError, match="every checkpoint is damaged; put whole ones back"):
            checkpoints.newest()
        checkpoints.close()


def test_without_verification_files_are_not_looked_into(tmp_path):
    save(tmp_path, [1, 2])
    (tmp_path / FOLDER / "2" / "commit_success.txt").unlink()
    checkpoints = Checkpoints(tmp_path, KeepPolicy(2))
    assert checkpoints.newest(verify=False) == 2
    assert checkpoints.newest() == 1
    checkpoints.close()


def test_the_best_and_every_kth_outlive_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, KeepPolicy(1, every=4, best=2))
    for step, loss in zip(range(1, 8), (0.5, 0.2, 0.9, 0.8, 0.3, 0.6, 0.7), strict=True):
        checkpoints.save(step, state_of(0), {})
        checkpoints.note_tuning_loss(step, TuningLoss(loss, tokens=100))
    checkpoints.close()
    assert checkpoint_files.whole_steps(tmp_path / FOLDER) == [2, 4, 5, 7]


@pytest.mark.parametrize(("before", "after"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_restore_in_another_precision_is_said_and_rounds_to_nearest(tmp_path, caplog, before, after):
    def cast(state, dtype):
        return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)

    state = cast(state_of(1), before)
    checkpoints = Checkpoints(tmp_path, KeepPolicy(1))
    checkpoints.save(1, state, {})
    checkpoints.wait()
    restored = checkpoints.restore(1, abstract(cast(state, after)))
    checkpoints.close()
    assert f"saved in {before}, restored in {after}" in caplog.text
    exactly = (cast(tree, "float32") for tree in (restored, cast(state, after)))
    jax.tree.map(np.testing.assert_array_equal, *exactly)
    assert restored.params["embedding"].dtype == after


def test_arrays_of_another_model_or_optimizer_are_refused_with_both_shapes(tmp_path):
    save(tmp_path, [1])
    checkpoints = Checkpoints(tmp_path, KeepPolicy(1))
    state = state_of(1)
    wider = dataclasses.replace(state, params=state.params | {"final_norm": jnp.ones(9)})
    with pytest.raises(UserError, match=r"params/final_norm is float32\[9\] but was saved as float32\[8\]; give"):
        checkpoints.restore(1, abstract(wider))
    other = dataclasses.replace(state, optimizer=optax.trace(0.9).init(state.params))
    with pytest.raises(UserError, match=r"optimizer/count is absent but was saved as int32\[\].* and \d+ more"):
        checkpoints.restore(1, abstract(other))
    checkpoints.close()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 512 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"SKIPPED FOR LACK OF RIGHTS: cannot mount a small tmpfs: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_told_once_and_leaves_what_was_there_and_a_later_save_has_room(small_disk, caplog):
    checkpoints = Checkpoints(small_disk, KeepPolicy(1))
    checkpoints.save(1, state_of(1), {"at": 1})
    checkpoints.wait()
    assert checkpoints.failure() is None
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError):
        ballast.write_bytes(bytes(1 << 20))
    checkpoints.save(2, state_of(2), {"at": 2})
    checkpoints.wait()
    failure = checkpoints.failure()
    assert failure.startswith("step 2 could not be saved: ") and "No space left on device" in failure
    assert "\n" not in failure and checkpoints.failure() is None
    assert "Traceback" not in caplog.text
    assert checkpoints.newest() == 1
    assert checkpoints.metadata(1) == {"at": 1}

    ballast.unlink()
    checkpoints.save(3, state_of(3), {"at": 3})
    checkpoints.close()
    assert checkpoints.failure() is None
    assert [path.name for path in (small_disk / FOLDER).iterdir()] == ["3"]


def test_a_place_where_no_folder_of_checkpoints_can_be_made_is_told_in_a_line(tmp_path):
    (tmp_path / FOLDER).write_text("in the way")
    with pytest.raises(UserError, match=r"checkpoints: cannot be written \(File exists\)"):
        Checkpoints(tmp_path, KeepPolicy(1))


def test_a_save_is_not_held_to_have_failed_for_the_one_before_it(tmp_path):
    checkpoints = Checkpoints(tmp_path, KeepPolicy(2))
    (tmp_path / FOLDER / "1").write_text("in the way")
    checkpoints.save(1, state_of(1), {})
    checkpoints.wait()
    assert not checkpoints.started(1)
    checkpoints.save(2, state_of(2), {})
    checkpoints.wait()
    assert checkpoints.started(2)
    assert checkpoints.failure() == "step 1 could not be saved: Not a directory"
    assert checkpoints.started(2)
    checkpoints.close()


def test_an_old_checkpoint_that_cannot_be_deleted_yet_is_no_failed_save(tmp_path, monkeypatch, caplog):
    save(tmp_path, [1], keep=1)

    def held(path, ignore_errors=False):
        if not ignore_errors:
            raise OSError(
                errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY)
            )  # what NFS says of files that are open elsewhere

    checkpoints = Checkpoints(tmp_path, KeepPolicy(1))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", held)
        checkpoints.save(2, state_of(2), {})
        checkpoints.wait()
    assert checkpoints.started(2) and checkpoints.failure() is None
    assert "an old checkpoint could not be deleted (Directory not empty)" in caplog.text
    checkpoints.close()
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["2"]


def test_what_asyncio_finds_later_of_a_failed_save_is_not_logged_as_a_traceback(tmp_path, caplog):
    Checkpoints(tmp_path, KeepPolicy(1)).close()
    with pytest.raises(FileNotFoundError) as raised:
        ocp.StandardCheckpointer().restore(tmp_path / "absent")
    for error in (raised.value, ValueError("of somebody else")):
        logging.getLogger("asyncio").error("Future exception was never retrieved", exc_info=error)
    assert caplog.text.count("never retrieved") == 1 and "of somebody else" in caplog.text


def test_a_model_loads_for_inference_with_its_own_parameters(tmp_path):
    save(tmp_path, [4])
    VOCABULARY.save(tmp_path / workdirs.VOCABULARY)
    model, vocabulary, config, step = load_for_inference(tmp_path)
    assert (vocabulary, config.to_dict(), step) == (VOCABULARY, tiny_config().to_dict(), 4)
    np.testing.assert_array_equal(model.embedding[...], state_of(4).params["embedding"])
    ones = jnp.ones((1, 3), jnp.int32)
    assert model(ones, ones, jnp.arange(3)[None]).shape == (1, 3, len(VOCABULARY))


def test_inference_takes_the_step_asked_for_or_the_newest_undamaged_and_changes_nothing(tmp_path, caplog):
    save(tmp_path, [1, 2, 3], keep=3)
    VOCABULARY.save(tmp_path / workdirs.VOCABULARY)
    alter(every_file(tmp_path / FOLDER / "3" / "params")[-1])
    before = sorted(tmp_path.rglob("*"))
    assert load_for_inference(tmp_path)[3] == 2
    assert f"{tmp_path / FOLDER / '3'}: skipped, params/" in caplog.text
    assert load_for_inference(tmp_path, step=1)[3] == 1
    with pytest.raises(UserError, match=r"3: params/.* altered.*; take another step"):
        load_for_inference(tmp_path, step=3)
    with pytest.raises(UserError, match=r"no checkpoint of step 7; there are \[1, 2, 3\]"):
        load_for_inference(tmp_path, step=7)
    assert sorted(tmp_path.rglob("*")) == before


def write_tuning_losses(workdir, losses):
    """`losses`: by step a loss, or null, and of how many tokens."""
    lines = [{"step": step, "split": "tuning", "loss": loss, "tokens/LAB": n} for step, (loss, n) in losses.items()]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_best_step_has_the_lowest_tuning_loss_of_those_kept_that_compare(tmp_path, caplog):
    """As keep_best: the last evaluation, of the whole split, is of other tokens than those before it."""
    save(tmp_path, [2, 3, 4, 5], keep=4)
    choose = functools.partial(checkpoint_choice.choose, tmp_path, "best")
    with pytest.raises(UserError, match=r"has a tuning loss; give --step=N of \[2, 3, 4, 5\]"):
        choose()
    write_tuning_losses(tmp_path, {1: (0.1, 9), 2: (3.0, 9), 3: (1.0, 9), 4: (2.0, 9), 5: (0.5, 90)})
    assert choose().name == "3" and "steps [5] have no tuning loss of as many tokens" in caplog.text
    alter(every_file(tmp_path / FOLDER / "3" / "params")[-1])
    assert choose().name == "4" and f"{tmp_path / FOLDER / '3'}: skipped" in caplog.text
    assert choose(verify=False).name == "3"
    # Of as large groups, that of more tokens.
    write_tuning_losses(tmp_path, {2: (None, 9), 3: (1.0, 9), 4: (0.1, 9), 5: (0.5, 90)})
    shutil.rmtree(tmp_path / FOLDER / "3")
    assert choose().name == "5"
    with pytest.raises(ValueError, match="step 'bset' is neither"):
        checkpoint_choice.choose(tmp_path, "bset")


def test_a_step_flag_is_a_number_or_best():
    parse = checkpoint_choice.StepParser().parse
    assert (parse("12"), parse("best")) == (12, "best")
    for text in ("bset", "-1", "1.5", ""):
        with pytest.raises(ValueError, match="give a step's number, or best"):
            parse(text)


def test_inference_without_a_checkpoint_or_with_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint.*train first"):
        load_for_inference(tmp_path)
    assert not list(tmp_path.iterdir())
    save(tmp_path, [1])
    set_aside = (tmp_path / FOLDER / "1").rename(tmp_path / FOLDER / "1.damaged")
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        load_for_inference(tmp_path)
    set_aside.rename(tmp_path / FOLDER / "1")
    other = Vocabulary(VOCABULARY.tokens, (), VOCABULARY.interval_preset, (61.0,) * 13, VOCABULARY.code_map)
    other.save(tmp_path / workdirs.VOCABULARY)
    with pytest.raises(UserError, match=f"{other.fingerprint[:12]}.*{VOCABULARY.fingerprint[:12]}"):
        load_for_inference(tmp_path)


def test_a_save_is_not_disturbed_by_the_steps_that_follow_at_once(tmp_path):
    # Training donates its state: its memory is overwritten while the save still writes in the background.
    counters = {"step": jnp.zeros((), jnp.int32), "guard": init_guard()}
    big = TrainState({"w": jnp.ones((1 << 22,))}, {"count": jnp.zeros(())}, **counters)
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, KeepPolicy(1))
    checkpoints.save(1, big, {})
    for _ in range(20):
        big = step(big)
    jax.block_until_ready(big)
    checkpoints.wait()
    restored = checkpoints.restore(1, abstract(big))
    assert float(big.params["w"][0]) == 21.0
    np.testing.assert_array_equal(restored.params["w"], np.ones(1 << 22, np.float32))
    checkpoints.close()
