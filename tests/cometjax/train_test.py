import dataclasses
import itertools
import json
import shutil
import signal

import jax
import numpy as np
import pytest

from cometjax import checkpoints, goodput, metrics, sharding, step_guard
from cometjax.preemption import EXIT_CODE
from cometjax.train import train
from data_pipeline import corpus, loader
from data_pipeline.errors import UserError
from tests.cometjax.tiny_run import (
    CONFIG,
    STEPS,
    config_of,
    losses,
    run,
    signal_at_step,
    start,
    write_corpus,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    write_corpus(folder / "corpus")
    (folder / "config.py").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    """An uninterrupted run in this process: (workdir, result)."""
    workdir = folder / "finished"
    return workdir, train(config_of(folder), workdir, progress=False)


def test_sigterm_saves_the_step_and_the_run_resumes_bitwise(folder, finished):
    workdir = folder / "preempted"
    process = start(folder, workdir, "--config.train.checkpoint_every=1000")
    out, err = signal_at_step(process, workdir, 8, signal.SIGTERM)
    assert process.returncode == EXIT_CODE, err
    saved = metrics.read(workdir)[-1]["step"]
    assert f"SIGTERM: saved at step {saved}" in out
    train(config_of(folder, checkpoint_every=1000), workdir, progress=False)
    assert losses(workdir) == losses(finished[0])


def test_the_tiny_run_learns_what_a_unigram_model_cannot(folder, finished):
    workdir, result = finished
    split = corpus.Corpus.open(folder / "corpus").split("tuning")
    tokens = np.concatenate([split.record(i).tokens_T[1:] for i in range(len(split))])
    frequency = np.bincount(tokens) / len(tokens)
    entropy = -np.sum(frequency[frequency > 0] * np.log(frequency[frequency > 0]))
    assert entropy > 1.9
    assert result.tuning_loss < entropy - 0.8
    first, *_, last = [line["loss"] for line in metrics.read(workdir) if line["split"] == "train"]
    assert first == pytest.approx(np.log(31), abs=0.2)
    assert last < first - 1.5


def test_the_result_is_the_exact_weighted_mean_over_the_tuning_split(folder, finished):
    workdir, result = finished
    model, vocabulary, config, step = checkpoints.load_for_inference(workdir)
    assert step == STEPS == result.step and config.train.steps == STEPS
    split = corpus.Corpus.open(folder / "corpus").split("tuning")
    # Row by row, and from the log-softmax: other shapes and other arithmetic than the evaluation's.
    rows = loader.LoaderConfig(batch_rows=1, row_length=config.train.row_length, seed=0)
    log_softmax = jax.jit(lambda *inputs: jax.nn.log_softmax(model(*inputs)))
    nats, kinds = [], []
    for batch in loader.evaluation_batches(split, rows):
        log_p = log_softmax(batch["tokens_BxL"], batch["segment_ids_BxL"], batch["positions_BxL"])
        nats_BxL = -np.take_along_axis(np.asarray(log_p, np.float64), batch["targets_BxL"][..., None], -1)[..., 0]
        counted = batch["loss_weights_BxL"] > 0
        nats.append(nats_BxL[counted])
        kinds.append(np.array([vocabulary.tokens[token].kind for token in batch["targets_BxL"][counted]]))
    nats, kinds = np.concatenate(nats), np.concatenate(kinds)
    assert len(nats) == sum(split.lengths_R) - len(split) == result.tuning_tokens
    assert result.tuning_loss == pytest.approx(nats.mean(), rel=1e-6)
    by_kind = {str(kind): nats[kinds == kind].mean() for kind in np.unique(kinds)}
    assert result.tuning_loss_by_kind == pytest.approx(by_kind, rel=1e-5, abs=1e-6)
    assert result.tuning_bits_per_event == pytest.approx(nats.sum() / np.log(2) / sum(kinds == "LAB"), rel=1e-5)


def test_the_last_evaluation_can_be_of_part_of_the_tuning_split(folder, tmp_path):
    result = train(config_of(folder, steps=8, last_eval_batches=2), tmp_path / "run", progress=False)
    last = metrics.read(tmp_path / "run")[-1]
    batches = loader.evaluation_batches(
        corpus.Corpus.open(folder / "corpus").split("tuning"), loader.LoaderConfig(8, 64, seed=0), max_batches=2
    )
    counted = sum(int((batch["loss_weights_BxL"] > 0).sum()) for batch in batches)
    assert last["split"] == "tuning" and sum(v for key, v in last.items() if key.startswith("tokens/")) == counted
    assert result.tuning_tokens == counted


def test_the_workdir_says_what_ran_and_how_fast(folder, finished):
    workdir, result = finished
    train_lines = [line for line in metrics.read(workdir) if line["split"] == "train"]
    line = train_lines[-1]
    assert {"loss", "loss/LAB", "loss/INTERVAL", "tokens/LAB", "bits_per_event", "gradient_norm", "learning_rate",
            "tokens_per_second", "model_flops_per_second", "mfu", "input_wait", "goodput", "gradient_norm/attention",
            "gradient_norm/layer_0", "update_norm/embedding", "memory/host_resident_gib"} <= line.keys()  # fmt: skip
    assert line["mfu"] is None  # a CPU's peak is not known
    assert result.tokens == sum(v for line in train_lines for k, v in line.items() if k.startswith("tokens/"))
    assert 0 < result.goodput < 1 and result.tokens_per_second > 0 and result.flops > 0
    for each in metrics.read(workdir):
        assert sum(each[f"seconds/{cause}"] for cause in goodput.CAUSES) == each["wall_seconds"]
    assert sum(result.seconds.values()) == result.wall_seconds > line["wall_seconds"]
    assert all(result.seconds[cause] > 0 for cause in ("setup", "compile", "step", "evaluation", "checkpoint", "other"))
    assert result.seconds["restart"] == result.seconds["lost"] == result.seconds["down"] == 0
    tuning = [line["step"] for line in metrics.read(workdir) if line["split"] == "tuning"]
    assert tuning == [50, 100, STEPS]
    assert json.loads((workdir / "result.json").read_text()) == dataclasses.asdict(result)
    assert {"config.json", "environment.json", "vocabulary.json", "corpus.json", "checkpoints", "tensorboard"} <= {
        path.name for path in workdir.iterdir()
    }


def test_a_finished_run_says_so_and_computes_nothing(folder, finished, capsys):
    workdir, result = finished
    before = (workdir / metrics.METRICS_FILE).read_bytes()
    assert train(config_of(folder), workdir) == result
    assert f"already finished, {STEPS} steps" in capsys.readouterr().out
    assert (workdir / metrics.METRICS_FILE).read_bytes() == before


def test_a_run_killed_between_its_last_evaluation_and_its_result_finishes_without_training(folder, finished):
    workdir, result = finished
    before = (workdir / metrics.METRICS_FILE).read_bytes()
    (workdir / "result.json").unlink()
    again = train(config_of(folder), workdir, progress=False)
    assert (again.tuning_loss, again.tokens, again.step) == (result.tuning_loss, result.tokens, STEPS)
    assert again.seconds["lost"] == 0  # its evaluation is after its checkpoint, and is kept
    assert (workdir / metrics.METRICS_FILE).read_bytes() == before


def test_another_configuration_is_refused_with_both_values(folder, finished):
    workdir, _ = finished
    config = config_of(folder)
    config.optimizer.learning_rate = 0.5
    config.train.log_every, config.train.last_eval_batches = 7, 1  # free to change
    with pytest.raises(UserError, match=r"optimizer\.learning_rate is 0\.5 but was 0\.02; take the old") as refused:
        train(config, workdir, progress=False)
    assert "log_every" not in str(refused.value) and "last_eval_batches" not in str(refused.value)
    assert json.loads((workdir / "config.json").read_text())["optimizer"]["learning_rate"] == 0.02


@pytest.mark.parametrize(("change", "name"), [({"seed": 1}, "corpus"), ({"interval_seconds": 61.0}, "vocabulary")])
def test_another_corpus_or_vocabulary_is_refused_with_both_fingerprints(folder, finished, tmp_path, change, name):
    workdir, _ = finished
    other = corpus.Corpus.open(write_corpus(tmp_path / "other", **change))
    config = config_of(folder)
    config.corpus = str(other.root)
    mine = corpus.Corpus.open(folder / "corpus")
    values = {"corpus": (mine.fingerprint, other.fingerprint)}
    values["vocabulary"] = (mine.vocabulary.fingerprint, other.vocabulary.fingerprint)
    old, new = values[name]
    with pytest.raises(UserError, match=rf"started with {name} {old[:12]}.* has {name} {new[:12]}; give the corpus"):
        train(config, workdir, progress=False)


@pytest.fixture(scope="module")
def poisoned(folder):
    """A run whose batches 2, 5, 6, 7 and 8 make the loss NaN: (workdir, error, order of puts and fetches)."""
    workdir, order = folder / "poisoned", []
    put, get = sharding.put_batch, jax.device_get

    def put_poisoned(mesh, batch):
        order.append("put")
        factor = np.float32("nan") if order.count("put") in (2, 5, 6, 7, 8) else np.float32(1)
        return put(mesh, batch | {"loss_weights_BxL": batch["loss_weights_BxL"] * factor})

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as stopped:
        patch.setattr(sharding, "put_batch", put_poisoned)
        patch.setattr(jax, "device_get", lambda tree: order.append("fetch") or get(tree))
        train(config_of(folder, max_skipped_steps=3), workdir, progress=False)
    return workdir, str(stopped.value), order


def test_nonfinite_steps_are_counted_and_too_many_in_a_row_stop_training(poisoned):
    workdir, error, _ = poisoned
    assert "3 steps skipped in a row, the last of them step 7: loss or gradient not finite; lower config.optim" in error
    lines = {line["step"]: line for line in metrics.read(workdir)}
    assert [lines[step]["skipped_steps"] for step in range(1, 8)] == [0, 1, 1, 1, 2, 3, 4]
    assert [step for step, line in lines.items() if line["loss"] is None] == [2, 5, 6, 7]
    assert not (workdir / "result.json").exists()


def wrong_targets_at(puts, crash_at=None):
    """`sharding.put_batch`, but these calls of it (from 1) get targets that the history says nothing of."""
    put, count = sharding.put_batch, itertools.count(1)

    def put_batch(mesh, batch):
        call = next(count)
        if call == crash_at:
            raise KeyboardInterrupt
        if call in puts:
            wrong = np.random.default_rng(0).integers(6, 18, batch["targets_BxL"].shape, np.int32)
            batch = batch | {"targets_BxL": wrong}
        return put(mesh, batch)

    return put_batch


def test_loss_spikes_are_skipped_counted_told_and_too_many_in_a_row_stop_training(folder, capsys):
    workdir, quiet = folder / "spiked", step_guard.WINDOW
    config = config_of(folder, steps=200, max_skipped_steps=3, eval_every=1000)
    spiked = [quiet + at for at in (10, 20, 21, 22)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as stopped:
        patch.setattr(sharding, "put_batch", wrong_targets_at(spiked))
        train(config, workdir)
    assert f"3 steps skipped in a row, the last of them step {spiked[-1]}: loss spike; lower" in str(stopped.value)
    assert f"step {spiked[0]} skipped: loss spike (loss " in capsys.readouterr().out
    lines = {line["step"]: line for line in metrics.read(workdir)}
    totals = [lines[step]["skipped_spikes"] for step in range(1, spiked[-1] + 1)]
    assert [step + 1 for step in np.flatnonzero(np.diff(totals, prepend=0))] == spiked
    assert all(line["loss_deviations"] is None for step, line in lines.items() if step <= quiet)
    assert lines[spiked[0]]["loss_deviations"] > 10 > lines[spiked[0] + 1]["loss_deviations"]


def test_a_resumed_run_skips_the_spikes_that_the_undisturbed_one_skips(folder):
    config, spiked, crash, saved = config_of(folder, steps=160, eval_every=1000), [138, 150], 147, 140
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "put_batch", wrong_targets_at(spiked))
        assert train(config, folder / "spikes", progress=False).skipped_steps == 2
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt) as interrupt:
        patch.setattr(sharding, "put_batch", wrong_targets_at(spiked, crash_at=crash))
        train(config, folder / "spikes_resumed", progress=False)
    assert str(interrupt.value) == f"the same command goes on from step {saved}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "put_batch", wrong_targets_at([spiked[1] - saved]))
        assert train(config, folder / "spikes_resumed", progress=False).skipped_steps == 2
    assert losses(folder / "spikes_resumed") == losses(folder / "spikes")


def test_the_next_step_is_dispatched_before_the_figures_of_the_last_are_fetched(poisoned):
    *_, order = poisoned
    assert order[:6] == ["put", "put", "fetch", "put", "fetch", "put"]


@pytest.mark.parametrize(
    ("key", "value"), [("mesh.data", 2), ("optimizer.warmup_steps", STEPS), ("model.vocab_size", 7)]
)
def test_what_only_devices_or_corpus_can_tell_is_refused_before_anything_is_written(folder, tmp_path, key, value):
    config = config_of(folder)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=key.split(".")[0]):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "tuning"])
@pytest.mark.parametrize("content", ["absent", "empty"])
def test_a_corpus_without_subjects_to_train_or_evaluate_on_is_refused_before_anything_is_written(
    folder, tmp_path, split, content
):
    root = shutil.copytree(folder / "corpus", tmp_path / "corpus")
    manifest = corpus.decode_manifest((root / corpus.MANIFEST).read_bytes(), "")
    if content == "absent":
        del manifest["splits"][split]
    else:
        manifest["splits"][split] |= {"subjects": 0, "tokens": 0, "shards": []}
        np.save(root / split / "lengths.npy", np.zeros(0, np.uint32))
    del manifest["sha256"]
    manifest["fingerprint"] = corpus.fingerprint(manifest["vocabulary_fingerprint"], manifest["splits"])
    (root / corpus.MANIFEST).write_bytes(corpus.encode_manifest(manifest))
    message = f"no split '{split}'" if content == "absent" else f"split {split} of {root}: has no subjects"
    with pytest.raises(UserError, match=message):
        train(config_of(tmp_path, steps=8), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.train.stepz=3", "stepz"),
        ("--config.train.steps=many", "many"),
        ("--config.train.steps=0", r"config.train.steps"),
        ("--config.corpus=nowhere", "no corpus.json"),
    ],
)
def test_a_wrong_command_is_one_clear_line_with_exit_code_2_and_nothing_written(folder, tmp_path, override, message):
    done = run(folder, tmp_path / "run", override)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()
