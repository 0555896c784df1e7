"""What may befall a run between two steps, and that it goes on as if nothing had."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
import types

import jax
import numpy as np
import pytest

from cometjax import checkpoint_files, checkpoint_timer, metrics, preemption, sharding, train_loop
from cometjax import workdir as workdirs
from cometjax.checkpoint_files import FOLDER
from cometjax.checkpoints import Checkpoints
from cometjax.metrics_writer import MetricsWriter
from cometjax.run_records import RunRecords
from cometjax.train import train
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from tests.cometjax.tiny_run import CONFIG, config_of, losses, write_corpus

STEPS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    write_corpus(folder / "corpus")
    (folder / "config.py").write_text(CONFIG)
    return folder


def config(folder, **train_keys):
    """24 steps, an evaluation of some batches at 12, a checkpoint every fourth."""
    keys = {"steps": STEPS, "eval_every": 12, "eval_batches": 0, "checkpoint_every": 4} | train_keys
    return config_of(folder, **keys)


@pytest.fixture(scope="module")
def finished(folder):
    workdir = folder / "finished"
    train(config(folder), workdir, progress=False)
    return workdir


def copy_unfinished(finished, place):
    """The finished run as if it had been killed before it wrote its result."""
    shutil.copytree(finished, place)
    (place / "result.json").unlink()
    return place


def names(workdir):
    return sorted(path.name for path in (workdir / FOLDER).iterdir())


def test_from_a_damaged_checkpoint_the_run_falls_back_to_the_one_before_and_ends_the_same(
    folder, finished, tmp_path, caplog
):
    workdir = copy_unfinished(finished, tmp_path / "run")
    assert names(workdir) == ["20", "24"]
    path = max((workdir / FOLDER / "24" / "params").rglob("*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])
    train(config(folder), workdir, progress=False)
    assert f"24: skipped, {path.relative_to(workdir / FOLDER / '24')} has " in caplog.text
    assert names(workdir) == ["20", "24", "24.damaged"]
    assert losses(workdir) == losses(finished)


def test_the_best_on_as_many_batches_and_every_kth_outlive_a_restart_and_an_easier_last_evaluation(
    folder, tmp_path, monkeypatch
):
    """From step 16 on the evaluations on a batch are made hard; the last one, on the whole split, is left as it is."""
    put, puts, batches, evaluations = sharding.put_batch, [], train_loop.evaluation_batches, []

    def killed_at_step_18(mesh, batch):
        puts.append(batch)
        if len(puts) == 18 + 4:  # a batch of each evaluation passes here, too
            raise KeyboardInterrupt
        return put(mesh, batch)

    def harder(*args, max_batches, **kwargs):
        evaluations.append(max_batches)
        wrong = 7 if max_batches and len(evaluations) >= 4 else None
        for batch in batches(*args, max_batches=max_batches, **kwargs):
            yield batch if wrong is None else batch | {"targets_BxL": np.full_like(batch["targets_BxL"], wrong)}

    monkeypatch.setattr(train_loop, "evaluation_batches", harder)
    monkeypatch.setattr(sharding, "put_batch", killed_at_step_18)
    keys = {"eval_every": 4, "eval_batches": 1, "keep_checkpoints": 1, "keep_every": 16, "keep_best": 2}
    workdir = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(folder, **keys), workdir, progress=False)
    train(config(folder, **keys), workdir, progress=False)
    on_a_batch = {line["step"]: line["loss"] for line in metrics.read(workdir) if line["split"] == "tuning"}
    whole = on_a_batch.pop(STEPS)
    assert list(on_a_batch) == [4, 8, 12, 16, 20] and evaluations == [1, 1, 1, 1, 1, None]
    assert sorted(on_a_batch, key=on_a_batch.get)[:2] == [12, 8] and whole < on_a_batch[12]
    assert names(workdir) == ["12", "16", "24", "8"]


def test_a_second_run_in_a_workdir_is_refused_and_the_first_goes_on_undisturbed(
    folder, finished, tmp_path, monkeypatch
):
    put, puts, workdir, refused = sharding.put_batch, [], tmp_path / "run", []

    def another_is_started(mesh, batch):
        puts.append(batch)
        if len(puts) == 6:  # a checkpoint is written, and the next may be under way
            with pytest.raises(UserError, match="run: another process trains here; wait for it or choose") as told:
                train(config(folder), workdir, progress=False)
            refused.append(told.value)
        return put(mesh, batch)

    monkeypatch.setattr(workdirs, "LOCK_SECONDS", 0)
    monkeypatch.setattr(sharding, "put_batch", another_is_started)
    train(config(folder), workdir, progress=False)
    assert len(refused) == 1 and losses(workdir) == losses(finished)
    assert names(workdir) == ["20", "24"]


@contextlib.contextmanager
def files_of_at_most(size):
    """A disk without room, as far as larger files go."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_workdir_that_cannot_be_written_is_a_line_at_the_start_on_a_resume_and_at_the_end(folder, finished, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"file/run: cannot be written \(Not a directory\); make room or get the rights"
    ):
        train(config(folder), tmp_path / "file" / "run", progress=False)
    with files_of_at_most(500), pytest.raises(UserError, match=r"new: cannot be written \(File too large\); make"):
        train(config(folder), tmp_path / "new", progress=False)
    workdir = copy_unfinished(finished, tmp_path / "run")
    with (workdir / metrics.METRICS_FILE).open("a") as file:
        file.write('{"step": 25, "spl')  # to be cut
    with files_of_at_most(500), pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written \(File too large\)"):
        train(config(folder), workdir, progress=False)
    metrics.cut(workdir / metrics.METRICS_FILE, STEPS)
    with files_of_at_most(500), pytest.raises(UserError, match=r"result\.json: cannot be written \(File too large\)"):
        train(config(folder), workdir, progress=False)
    train(config(folder), workdir, progress=False)
    assert losses(workdir) == losses(finished)


def test_a_checkpoint_of_another_run_is_refused_with_both_values(folder, finished, tmp_path):
    workdir = copy_unfinished(finished, tmp_path / "run")
    other = config(folder)
    other.optimizer.b2 = 0.5
    (workdir / "config.json").write_text(json.dumps(other.to_dict()))
    with pytest.raises(UserError, match=r"checkpoints/24: was started with .*optimizer\.b2 is 0\.5 but was 0\.95"):
        train(other, workdir, progress=False)


def test_a_run_of_an_older_version_without_newer_keys_is_the_same_run_where_they_stand_as_it_was(
    folder, finished, tmp_path
):
    workdir, corpus = copy_unfinished(finished, tmp_path / "run"), Corpus.open(folder / "corpus")
    old = config(folder).to_dict()
    del old["optimizer"]["stable_steps"]
    (workdir / "config.json").write_text(json.dumps(old))
    newer = config(folder)
    newer.optimizer.stable_steps = 3
    with pytest.raises(UserError, match=r"optimizer\.stable_steps is 3 but was 0; take the old"):
        workdirs.open_workdir(workdir, newer, corpus)
    workdirs.open_workdir(workdir, config(folder), corpus)
    assert json.loads((workdir / "config.json").read_text()) == config(folder).to_dict()


def test_another_precision_of_parameters_may_be_asked_for_on_a_resume(folder, tmp_path, caplog):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(preemption.Preemption, "poll", lambda self: True)
        train(config(folder), tmp_path / "run", progress=False)
    other = config(folder, steps=24)
    other.model.param_dtype = "bfloat16"
    result = train(other, tmp_path / "run", progress=False)
    assert "checkpoints/1: saved in float32, restored in bfloat16" in caplog.text
    assert result.step == STEPS
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["param_dtype"] == "bfloat16"


def test_a_checkpoint_is_due_so_many_minutes_after_the_last_one_and_no_loss_changes(
    folder, finished, tmp_path, monkeypatch
):
    """An hour passes before the first step, and a minute with each."""
    now, record, saved, save = [0.0], RunRecords.step, [], Checkpoints.save
    init = train_loop.TrainLoop.__init__

    def an_hour_later(self, *args, **kwargs):
        init(self, *args, **kwargs)
        now[0] += 3600

    def a_minute_later(self, step, on_device):
        record(self, step, on_device)
        now[0] += 60

    def note(self, step, *args):
        saved.append(step)
        save(self, step, *args)

    monkeypatch.setattr(checkpoint_timer, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(train_loop.TrainLoop, "__init__", an_hour_later)
    monkeypatch.setattr(RunRecords, "step", a_minute_later)
    monkeypatch.setattr(Checkpoints, "save", note)
    train(config(folder, checkpoint_every=10, checkpoint_minutes=4.0), tmp_path / "run", progress=False)
    # A step is recorded while the next one runs, so that four minutes are over when the sixth step is under way.
    assert saved == [6, 10, 16, 20, 24]
    assert losses(tmp_path / "run") == losses(finished)


def test_training_goes_on_while_a_slow_save_is_written(folder, finished, tmp_path, monkeypatch):
    """A save may end only once eight more steps have been taken, which none would be if the loop waited."""
    taken, commit, write = threading.Event(), checkpoint_files.commit, MetricsWriter.write

    def slow_commit(place, step):
        assert taken.wait(60), "training waits for the save"
        commit(place, step)

    def count(self, step, split, values):
        write(self, step, split, values)
        if step >= 12 + 8:
            taken.set()

    monkeypatch.setattr(checkpoint_files, "commit", slow_commit)
    monkeypatch.setattr(MetricsWriter, "write", count)
    workdir = tmp_path / "run"
    train(config(folder, checkpoint_every=12), workdir, progress=False)
    assert losses(workdir) == losses(finished)
    assert names(workdir) == ["12", "24"]


def test_training_goes_on_while_a_line_of_metrics_cannot_be_written(folder, finished, tmp_path, monkeypatch):
    """The second line may be written only once twelve more steps have begun, which none would if the loop waited."""
    begun, appended, waited = threading.Event(), [], []
    put, puts, append = sharding.put_batch, [], MetricsWriter._append

    def count(mesh, batch):
        puts.append(batch)
        if len(puts) >= 2 + 12:
            begun.set()
        return put(mesh, batch)

    def slow_append(self, line):
        appended.append(line)
        if len(appended) == 2:
            waited.append(begun.wait(60))
        append(self, line)

    monkeypatch.setattr(sharding, "put_batch", count)
    monkeypatch.setattr(MetricsWriter, "_append", slow_append)
    workdir = tmp_path / "run"
    train(config(folder, checkpoint_every=12), workdir, progress=False)
    assert waited == [True], "training waits for its metrics"
    assert losses(workdir) == losses(finished)


def test_a_checkpoint_is_seen_only_with_the_lines_of_its_steps(folder, tmp_path, monkeypatch):
    """A kill right after a checkpoint would else leave a resumed run without them, for good."""
    append, commit, found = MetricsWriter._append, checkpoint_files.commit, {}

    def slow_append(self, line):
        time.sleep(0.02)
        append(self, line)

    def look(place, step):
        found[step] = [line["step"] for line in metrics.read(place.parent) if line["split"] == "train"]
        commit(place, step)

    monkeypatch.setattr(MetricsWriter, "_append", slow_append)
    monkeypatch.setattr(checkpoint_files, "commit", look)
    train(config(folder, checkpoint_every=12), tmp_path / "run", progress=False)
    assert sorted(found) == [12, 24]
    assert all(lines[:step] == list(range(1, step + 1)) for step, lines in found.items())


def steps_traced(folder):
    (file,) = folder.glob("plugins/profile/*/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events if event.name == "train"]
    return sorted(dict(event.stats)["step_num"] for event in events)


def test_chosen_steps_and_those_after_a_signal_are_traced_and_nothing_changes(
    folder, finished, tmp_path, monkeypatch, capsys
):
    put, puts = sharding.put_batch, []

    def signalled(mesh, batch):
        puts.append(batch)
        if len(puts) == 7:
            os.kill(os.getpid(), signal.SIGUSR1)
        return put(mesh, batch)

    workdir = tmp_path / "run"
    monkeypatch.setattr(sharding, "put_batch", signalled)
    train(config(folder, checkpoint_every=12), workdir, profile_steps=range(3, 5))
    out = capsys.readouterr().out
    assert f"trace of steps 3 to 4: {workdir / 'profile' / 'step_3'}\n" in out
    assert f"trace of steps 7 to 11: {workdir / 'profile' / 'step_7'}\n" in out
    assert steps_traced(workdir / "profile" / "step_3") == [3, 4]
    assert steps_traced(workdir / "profile" / "step_7") == [7, 8, 9, 10, 11]
    assert losses(workdir) == losses(finished)


def test_sigterm_in_the_warm_up_saves_at_the_next_step(folder, finished, tmp_path, monkeypatch):
    put, puts = sharding.put_batch, []

    def interrupted(mesh, batch):
        puts.append(batch)
        if len(puts) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return put(mesh, batch)

    workdir = tmp_path / "run"
    assert config(folder).optimizer.warmup_steps > 2
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sharding, "put_batch", interrupted)
        train(config(folder), workdir, progress=False)
    assert left.value.code == preemption.EXIT_CODE
    assert names(workdir) == ["2"]
    train(config(folder), workdir, progress=False)
    assert losses(workdir) == losses(finished)


def test_sigterm_in_an_evaluation_saves_and_leaves_there(folder, finished, tmp_path, monkeypatch):
    batches = train_loop.evaluation_batches

    def interrupted(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch
        raise AssertionError("evaluated to the end")

    workdir = tmp_path / "run"
    # No checkpoint is due at the evaluation.
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(train_loop, "evaluation_batches", interrupted)
        train(config(folder, checkpoint_every=1000), workdir, progress=False)
    assert left.value.code == preemption.EXIT_CODE == 143
    assert names(workdir) == ["12"]
    train(config(folder), workdir, progress=False)
    assert losses(workdir) == losses(finished)


def test_sigterm_during_a_save_ends_that_save_and_makes_another(folder, finished, tmp_path, monkeypatch, capsys):
    commit = checkpoint_files.commit

    def signalled(place, step):
        # Twice: schedulers signal the batch shell and the step.
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        commit(place, step)

    workdir = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(checkpoint_files, "commit", signalled)
        train(config(folder, checkpoint_every=2, keep_checkpoints=9), workdir)
    assert left.value.code == preemption.EXIT_CODE
    steps = checkpoint_files.whole_steps(workdir / FOLDER)
    assert steps[0] == 2 and f"SIGTERM: saved at step {steps[-1]}; start again" in capsys.readouterr().out
    train(config(folder), workdir, progress=False)
    assert losses(workdir) == losses(finished)


@pytest.fixture
def small_disk(tmp_path):
    """A workdir whose checkpoints lie on a file system of 640 KiB, full but for a file that can be removed."""
    place = tmp_path / "run" / FOLDER
    place.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=640k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"SKIPPED FOR LACK OF RIGHTS: cannot mount a small tmpfs: {mounted.stderr.decode().strip()}")
    yield place.parent
    # Lazily: of a save that has failed other arrays may still be under way.
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(workdir):
    with contextlib.suppress(OSError):
        (workdir / FOLDER / "ballast").write_bytes(bytes(1 << 20))


def test_on_a_full_disk_training_says_so_and_goes_on_and_saves_once_there_is_room(
    folder, finished, small_disk, monkeypatch, caplog
):
    write = MetricsWriter.write

    def with_room_later(self, step, split, values):
        write(self, step, split, values)
        if (step, split) == (10, "train"):
            (small_disk / FOLDER / "ballast").unlink()

    fill(small_disk)
    monkeypatch.setattr(MetricsWriter, "write", with_room_later)
    train(config(folder, checkpoint_every=8, keep_checkpoints=1), small_disk, progress=False)
    said = "step 8 could not be saved: No space left on device; training goes on (config.train.on_checkpoint_error)"
    assert said in caplog.text and caplog.text.count("could not be saved") == 1
    assert losses(small_disk) == losses(finished)
    assert names(small_disk) == ["24"]


def test_a_save_that_fails_late_does_not_undo_a_run_whose_last_one_is_whole(
    folder, finished, tmp_path, monkeypatch, caplog
):
    """Step 20's save fails only once the loop has come to the last step and is about to save that."""
    arrived, commit, save = threading.Event(), checkpoint_files.commit, train_loop.TrainLoop._save

    def fail_late(place, step):
        if step == 20:
            assert arrived.wait(60)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        commit(place, step)

    def arrive(self):
        if self._step == STEPS:
            arrived.set()
        save(self)

    monkeypatch.setattr(checkpoint_files, "commit", fail_late)
    monkeypatch.setattr(train_loop.TrainLoop, "_save", arrive)
    result = train(config(folder), tmp_path / "run", progress=False)
    assert result.step == STEPS
    assert caplog.text.count("step 20 could not be saved: No space left on device; training goes on") == 1
    assert names(tmp_path / "run") == ["16", "24"]
    assert losses(tmp_path / "run") == losses(finished)


# Tensorstore's threads end after the save has failed: no user wants their traceback.
@pytest.mark.filterwarnings(
    "error:(?s)Exception ignored in.*Event loop is closed:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("choice", ["stop", "continue"])
def test_on_a_full_disk_training_stops_in_a_line_where_told_to_and_at_the_end_always(folder, small_disk, choice):
    fill(small_disk)
    with pytest.raises(
        UserError, match=r"checkpoints: step \d+ could not be saved: No space left on device; mend"
    ) as told:
        train(config(folder, checkpoint_every=8, on_checkpoint_error=choice), small_disk, progress=False)
    assert f"step {8 if choice == 'stop' else 24} " in str(told.value)
    assert not (small_disk / "result.json").exists()
