"""A run that begins with another's checkpoint goes on as that one would have, and leaves it as it was."""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest

from cometjax import checkpoint_files, metrics, sharding, train_loop
from cometjax.checkpoint_files import FOLDER
from cometjax.train import train
from data_pipeline.errors import UserError
from tests.cometjax.tiny_run import CONFIG, config_of, losses, write_corpus

STEPS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("continuation")
    write_corpus(folder / "corpus")
    (folder / "config.py").write_text(CONFIG)
    return folder


def config(folder, *, continue_from="", stable_steps=12, **train_keys):
    """16 steps, the first 4 warm-up and none decay; an evaluation at 8, a checkpoint every fourth."""
    keys = {"steps": STEPS, "eval_every": 8, "checkpoint_every": 4, "keep_checkpoints": 9} | train_keys
    made = config_of(folder, **keys)
    made.optimizer.update(stable_steps=stable_steps, decay="linear", learning_rate=1e-3)
    made.continue_from = str(continue_from)
    return made


@pytest.fixture(scope="module", autouse=True)
def hurried_compiler():
    """Most of the time would be LLVM's."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def trunk(folder):
    """A finished run at the peak's rate: (workdir, result)."""
    return folder / "trunk", train(config(folder), folder / "trunk", progress=False)


def everything(workdir):
    """Every file with its bytes and time of change; of folders the latter."""
    return {
        path.relative_to(workdir): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [workdir, *workdir.rglob("*")]
    }


def from_step(step, workdir):
    return {key: values for key, values in losses(workdir).items() if key[0] > step or key == (step, "tuning")}


def steps_trained(workdir):
    return [line["step"] for line in metrics.read(workdir) if line["split"] == "train"]


def test_with_an_unchanged_schedule_the_losses_are_bitwise_those_of_the_run_that_it_continues(folder, trunk, tmp_path):
    workdir, result = trunk
    before = everything(workdir)
    continued = train(config(folder, continue_from=f"{workdir}:8"), tmp_path / "run", progress=False)
    assert from_step(8, tmp_path / "run") == from_step(8, workdir)
    assert steps_trained(tmp_path / "run") == list(range(9, STEPS + 1))
    assert (continued.step, continued.tuning_loss) == (STEPS, result.tuning_loss)
    # What the weights have cost, from the first step on.
    assert (continued.tokens, continued.flops) == (result.tokens, result.flops)
    assert continued.continued_from == f"{workdir}:8" and result.continued_from == ""
    assert json.loads((tmp_path / "run" / "continued_from.json").read_text()) == {"workdir": str(workdir), "step": 8}
    assert everything(workdir) == before


def test_a_finished_run_at_the_peak_is_decayed_as_one_that_was_to_decay_there(folder, trunk, tmp_path):
    workdir, _ = trunk
    grown = train(config(folder, continue_from=workdir, steps=18), tmp_path / "grown", progress=False)
    whole = train(config(folder, steps=18), tmp_path / "whole", progress=False)
    assert from_step(STEPS, tmp_path / "grown") == from_step(STEPS, tmp_path / "whole")
    shared, alone = losses(workdir), losses(tmp_path / "whole")
    assert all(shared[step, "train"] == alone[step, "train"] for step in range(1, STEPS + 1))
    assert steps_trained(tmp_path / "grown") == [17, 18] and grown.continued_from == f"{workdir}:{STEPS}"
    assert (grown.tuning_loss, grown.tokens) == (whole.tuning_loss, whole.tokens)
    assert [line["learning_rate"] for line in metrics.read(workdir)[-3:-1]] == [np.float32(1e-3)] * 2
    assert metrics.read(tmp_path / "grown")[-2]["learning_rate"] == pytest.approx(1e-4)


def test_a_kill_before_its_first_checkpoint_begins_again_at_the_same_step_and_later_ones_from_its_own(
    folder, trunk, tmp_path, monkeypatch
):
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(trunk[0], source)
    shutil.rmtree(source / FOLDER / "16")
    continued = config(folder, continue_from=source)
    put, commit = sharding.put_batch, checkpoint_files.commit

    def killed_at(step, saving):
        puts = []

        def killed(mesh, batch):
            puts.append(batch)
            if len(puts) == step:
                raise KeyboardInterrupt
            return put(mesh, batch)

        def fail(place, step):
            raise OSError("no room")

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(sharding, "put_batch", killed)
            patch.setattr(checkpoint_files, "commit", commit if saving else fail)
            train(continued, run, progress=False)

    killed_at(3, saving=False)
    assert steps_trained(run)[0] == 13 and not checkpoint_files.whole_steps(run / FOLDER)
    # The other run has trained on meanwhile.
    shutil.copytree(trunk[0] / FOLDER / "16", source / FOLDER / "16")
    killed_at(2, saving=True)
    assert checkpoint_files.whole_steps(run / FOLDER) == [12]
    shutil.rmtree(source)
    train(continued, run, progress=False)
    assert steps_trained(run) == [13, 14, 15, 16]
    assert from_step(12, run) == from_step(12, trunk[0])


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_no_beginning(folder, trunk, tmp_path, monkeypatch):
    source = tmp_path / "source"
    shutil.copytree(trunk[0], source)
    restore = train_loop.Checkpoints.restore

    def restore_and_delete(self, step, *args, folder):
        state = restore(self, step, *args, folder=folder)
        checkpoint_files.delete(folder / str(step))
        return state

    monkeypatch.setattr(train_loop.Checkpoints, "restore", restore_and_delete)
    with pytest.raises(UserError, match=r"continue_from, .*checkpoints/12: the checkpoint is not there, or no longer;"):
        train(config(folder, continue_from=f"{source}:12"), tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"continue_from": "TRUNK:5"}, r"TRUNK: no checkpoint of step 5; there are \[4, 8, 12, 16\]"),
        ({"continue_from": "TRUNK/checkpoints"}, r"continue_from, TRUNK/checkpoints: is no run's folder, for there is"),
        ({"continue_from": "gs://bucket/run"}, r"continue_from gs:.*: object stores are not read"),
        ({"continue_from": "TRUNK"}, r"train\.steps: 16 cannot be used: TRUNK has trained 16 steps, .* more than 16"),
        ({"train.batch_rows": 16}, r"continue_from, TRUNK: .*: train\.batch_rows is 16 but was 8; take the old"),
        ({"train.row_length": 32}, r"TRUNK: .*: train\.row_length is 32 but was 64; .*, or continue another run"),
        ({"train.group_by_length": 4}, r"TRUNK: .*: train\.group_by_length is 4 but was 1; take the old"),
        ({"seed": 3}, r"TRUNK: .*: seed is 3 but was 0; take the old"),
        ({"model.layers": 2, "optimizer.b2": 0.9}, r"TRUNK: .*model\.layers is 2 but was 1, optimizer\.b2 is 0\.9 but"),
        ({"init_from": "somewhere"}, r"init_from: 'somewhere' cannot be used; leave it out: config\.continue_from"),
    ],
)
def test_what_cannot_go_on_is_refused_before_anything_is_written(folder, trunk, tmp_path, keys, message):
    named = str(trunk[0])
    wrong = config(folder, continue_from=f"{named}:8")
    wrong.update_from_flattened_dict(
        {k: v.replace("TRUNK", named) if k == "continue_from" else v for k, v in keys.items()}
    )
    with pytest.raises(UserError, match=message.replace("TRUNK", named)):
        train(wrong, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_another_corpus_is_refused_and_so_is_the_workdir_itself(folder, trunk, tmp_path):
    other = config(folder, continue_from=f"{trunk[0]}:8")
    other.corpus = str(write_corpus(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match=r"trunk: was started with corpus .*, and --config\.corpus has .* continue ano"):
        train(other, tmp_path / "run", progress=False)
    with pytest.raises(UserError, match=r"continue_from, .*new: is the --workdir itself; choose another --workdir"):
        train(config(folder, continue_from=tmp_path / "new"), tmp_path / "new", progress=False)
    assert not (tmp_path / "run").exists() and not (tmp_path / "new").exists()
