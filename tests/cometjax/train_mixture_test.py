"""Training on a mixture of corpora: runs, resumes bitwise, refuses another; and its loss by `cometjax.loss`."""

import dataclasses
import math
import os
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest

from cometjax import loss, metrics
from cometjax import workdir as workdirs
from cometjax.config import default_config
from cometjax.model import ModelConfig
from cometjax.preemption import EXIT_CODE
from cometjax.train import train
from data_pipeline import corpus, show_batch
from data_pipeline.errors import UserError
from data_pipeline.mixture import open_corpus
from data_pipeline.vocabulary import PREFIX_LENGTH


def write_part(source, root, place):
    """Every second subject of a corpus, as a corpus."""
    splits = {}
    for split in ("train", "tuning"):
        (root / split).mkdir(parents=True)
        reader = source.split(split)
        records = [reader.record(index) for index in range(place, len(reader), 2)]
        path = root / split / "00000.array_record"
        corpus.write_shard(path, records)
        np.save(root / split / "lengths.npy", np.array([len(record.tokens_T) for record in records], np.uint32))
        np.save(root / split / "subject_ids.npy", np.array([record.subject_id for record in records], np.int64))
        shard = {"file": f"{split}/00000.array_record", "records": len(records), "sha256": corpus.file_sha256(path)}
        splits[split] = {"tokens": sum(len(record.tokens_T) for record in records), "shards": [shard]}
    shutil.copy(source.root / corpus.VOCABULARY, root)
    changed = {"fingerprint": corpus.fingerprint(source.vocabulary.fingerprint, splits), "splits": splits}
    (root / corpus.MANIFEST).write_bytes(corpus.encode_manifest(dict(source.manifest) | changed))


@pytest.fixture(scope="module")
def config(world_corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    source = corpus.Corpus.open(world_corpus)
    for place, name in enumerate(("even", "odd")):
        write_part(source, root / name, place)
    config = default_config()
    config.model.update(layers=1, width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=64, scan_layers=False)
    config.optimizer.update(warmup_steps=2)
    config.train.update(steps=12, batch_rows=8, row_length=64, log_every=1, eval_every=12, checkpoint_every=5)
    config.corpus = f"{root}/even=0.75,{root}/odd=0.25"
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(config, workdir, progress=False)


def losses(workdir):
    return {line["step"]: line["loss"] for line in metrics.read(workdir) if line["split"] == "train"}


def preempt_at_step(step, workdir):
    def wait():
        while not (losses(workdir) if workdir.exists() else {}).get(step):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def test_an_interrupted_run_resumes_bitwise(config, finished, tmp_path):
    workdir = tmp_path / "run"
    preempt_at_step(3, workdir)
    with pytest.raises(SystemExit) as stopped:
        train(config, workdir, progress=False)
    assert stopped.value.code == EXIT_CODE
    assert max(losses(workdir)) < 12
    result = train(config, workdir, progress=False)
    assert losses(workdir) == losses(finished[0])
    assert result.tuning_loss == finished[1].tuning_loss


def test_the_tuning_loss_is_of_all_subjects_of_both(config, finished, world_corpus):
    (line,) = (line for line in metrics.read(finished[0]) if line["split"] == "tuning")
    lengths_R = corpus.Corpus.open(world_corpus).split("tuning").lengths_R.astype(int)
    tokens = sum(value for key, value in line.items() if key.startswith("tokens/"))
    assert tokens == (lengths_R - 1).sum()


def tuning_line(workdir):
    (line,) = (line for line in metrics.read(workdir) if line["split"] == "tuning")
    return line


def test_the_tuning_loss_is_told_by_source_in_the_same_pass(finished):
    line = tuning_line(finished[0])
    tokens, losses = ([line[f"{key}_by_source/{name}"] for name in ("even", "odd")] for key in ("tokens", "loss"))
    assert min(tokens) > 0 and sum(tokens) == sum(value for key, value in line.items() if key.startswith("tokens/"))
    assert losses[0] != losses[1]
    assert np.average(losses, weights=tokens) == pytest.approx(line["loss"], rel=1e-6)


def test_a_runs_own_tuning_loss_comes_out_to_the_bit(config, finished):
    workdir, trained = finished
    found = loss.loss(workdir, config.corpus, progress=False)
    line = tuning_line(workdir)
    assert (found["step"], found["loss"], found["bits_per_event"]) == (12, line["loss"], line["bits_per_event"])
    assert found["loss_by_kind"] == trained.tuning_loss_by_kind
    for name in ("even", "odd"):
        assert found["loss_by_source"][name] == line[f"loss_by_source/{name}"]
    assert f"{'even':<24}{found['loss_by_source']['even']:>12.4f}" in loss.text_table(found)


def test_one_sources_corpus_has_the_loss_that_the_mixture_tells_of_it(config, finished):
    """In other rows, beside other subjects, and in batches of another size."""
    workdir, line = finished[0], tuning_line(finished[0])
    even = config.corpus.split("=")[0]
    found = loss.loss(workdir, even, batch_rows=3, progress=False)
    assert found["batch_rows"] == 3 and found["batches"] > 1
    assert found["tokens"] == line["tokens_by_source/even"] == sum(found["tokens_by_kind"].values())
    assert found["loss"] == pytest.approx(line["loss_by_source/even"], rel=1e-5) and not found["loss_by_source"]
    few = loss.loss(workdir, even, split="train", step=10, batches=1, progress=False)
    assert (few["step"], few["batches"], few["split"]) == (10, 1, "train") and 0 < few["tokens"] <= 8 * 64


def test_the_table_tells_the_frequent_first_and_a_dash_for_what_is_not_finite():
    kinds = {"LAB": 12, "INTERVAL": 300}
    result = {"workdir": "run", "step": 3, "split": "tuning", "corpus": "c", "loss": None, "tokens": 312}
    result |= {"loss_by_source": {}, "tokens_by_source": {}, "bits_per_event": 1.5}
    table = loss.text_table(result | {"loss_by_kind": {"LAB": 1.25, "INTERVAL": 0.5}, "tokens_by_kind": kinds})
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["nats/token", "tokens"],
        ["all", "-", "312"],
        ["INTERVAL", "0.5000", "300"],
        ["LAB", "1.2500", "12"],
        ["bits", "per", "event", "1.500"],
    ]


def test_a_file_that_is_there_or_has_no_folder_is_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "loss.json").write_text("{}")
    for out, says in ((tmp_path / "loss.json", "is there already"), (tmp_path / "no" / "loss.json", "is no folder")):
        with pytest.raises(UserError, match=says):
            loss._refuse_unwritable(out)
    loss._refuse_unwritable(tmp_path / "new.json")


def test_a_split_that_the_corpus_lacks_is_refused(config, finished):
    with pytest.raises(UserError, match="no split 'heldout'"):
        loss.loss(finished[0], config.corpus.split("=")[0], split="heldout", progress=False)


def test_attention_that_cannot_run_here_gives_way_to_the_platforms_own(caplog):
    here = ModelConfig(16, 1, 16, 2, 2, 8, 32, tied_embeddings=False, attention="reference")
    assert loss._runnable(here) is here and not caplog.text
    elsewhere = dataclasses.replace(here, attention="hopper")
    assert loss._runnable(elsewhere).attention == "auto" and "'hopper' cannot run on cpu" in caplog.text


def test_what_is_not_finite_is_null_in_json():
    assert [loss._finite(value) for value in (1.5, math.nan, math.inf)] == [1.5, None, None]


def test_as_many_devices_as_divide_the_rows_share_them(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: ["a", "b", "c", "d"])
    monkeypatch.setattr(loss.sharding, "make_mesh", lambda _, devices: len(devices))
    assert [loss._mesh(rows) for rows in (8, 6, 3, 1)] == [4, 3, 3, 1]


def test_a_corpus_of_another_vocabulary_has_no_loss(config, finished, tmp_path):
    corpus_root = tmp_path / "other"
    shutil.copytree(config.corpus.split("=")[0], corpus_root)
    opened = corpus.Corpus.open(corpus_root)
    other = dataclasses.replace(opened.vocabulary, interval_seconds=(61.0,) * 13)
    other.save(corpus_root / corpus.VOCABULARY)
    splits = opened.manifest["splits"]
    changed = {
        "vocabulary_fingerprint": other.fingerprint,
        "fingerprint": corpus.fingerprint(other.fingerprint, splits),
    }
    (corpus_root / corpus.MANIFEST).write_bytes(corpus.encode_manifest(dict(opened.manifest) | changed))
    mine = workdirs.read_json(finished[0] / workdirs.CORPUS)["vocabulary_fingerprint"][:12]
    with pytest.raises(UserError, match=f"has vocabulary {other.fingerprint[:12]}, .* trained with {mine}"):
        loss.loss(finished[0], str(corpus_root), progress=False)


def test_what_is_shown_of_a_step_is_what_it_was_trained_on(config, finished):
    mixture, workdir = open_corpus(config.corpus), finished[0]
    shown, trained = [], []
    for line in metrics.read(workdir):
        if line["split"] == "train":
            rows, _ = show_batch.rows_of_step(mixture, workdir, line["step"])
            segments = [segment for row in rows for segment in zip(*row.segments, strict=True)]
            shown.append(sum(int(length) - PREFIX_LENGTH * (start > 0) for _, start, length in segments))
            trained.append(sum(value for key, value in line.items() if key.startswith("tokens/")))
    assert shown == trained and len(set(shown)) > 1
    # Where there are several corpora, each record is told with its own, which has every second subject.
    _, header, _, *lines = show_batch.table(mixture, workdir, 5, subject_ids=True)
    assert header.split() == ["row", "place", "tokens", "split", "record", "subject", "start", "length"]
    origins = set()
    for line in lines:
        *_, of, folder, record, subject, _, _ = line.split()
        reader = corpus.Corpus.open(folder).split("train")
        assert of == "of" and reader.subject_ids_R[int(record.replace(",", ""))] == int(subject)
        origins.add(folder.rsplit("/", 1)[1])
    assert origins == {"even", "odd"}


def test_other_weights_are_another_corpus(config, finished):
    other = config.copy_and_resolve_references()
    other.corpus = config.corpus.replace("0.75", "0.5")
    with pytest.raises(UserError, match="was started with corpus"):
        train(other, finished[0], progress=False)
    # The same mixture, written otherwise, is not.
    even, odd = config.corpus.split(",")
    other.corpus = f"{odd.replace('0.25', '1')},{even.replace('0.75', '3')}"
    assert train(other, finished[0], progress=False) == finished[1]
