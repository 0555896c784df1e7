"""A run of seconds on a corpus made by hand, and ways to start, disturb and compare it: for tests of training."""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np

from cometjax import metrics
from data_pipeline import code_maps, corpus, intervals
from data_pipeline.vocabulary import Token, Vocabulary

# A process of its own computes, to the bit, what this process does, which has not made devices of its cores.
ONE_DEVICE = {"JAX_NUM_CPU_DEVICES": "1"}
# Most of the time of so short a program is LLVM's: where a test is not about what is computed, it need not try hard.
HURRIED = {
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
}
ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 120
CHECKPOINT_EVERY = 10
CONFIG = f"""
from cometjax.config import default_config

def get_config():
    config = default_config()
    config.model.update(layers=1, width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=64, scan_layers=False)
    config.optimizer.update(warmup_steps=4, learning_rate=2e-2)
    config.train.update(steps={STEPS}, batch_rows=8, row_length=64, log_every=1, eval_every=50, eval_batches=1,
                        checkpoint_every={CHECKPOINT_EVERY})
    return config
"""
LABS = [f"LAB//{i}" for i in range(12)]


def write_corpus(root, *, seed=0, interval_seconds=60.0):
    """Subjects who walk round the labs, each with a stride and a start of its own: learnt by looking back."""
    tokens = [Token("PAD", "SPECIAL", "pad"), Token("TIMELINE_END", "SPECIAL", "end")]
    tokens += [Token(f"SEX//{i}", "DEMOGRAPHIC", "static") for i in range(4)]
    tokens += [Token(text, "LAB", "first") for text in LABS]
    tokens += [Token(f"INTERVAL//{name}", "INTERVAL", "interval") for name in intervals.COMET13.names]
    vocabulary = Vocabulary(tuple(tokens), (), intervals.COMET13, (interval_seconds,) * 13, code_maps.named("generic"))
    root.mkdir(parents=True)
    vocabulary.save(root / corpus.VOCABULARY)
    random = np.random.default_rng(seed)
    splits = {
        split: write_split(root, split, subjects, random) for split, subjects in {"train": 200, "tuning": 40}.items()
    }
    manifest = {
        "format_version": corpus.FORMAT_VERSION,
        "fingerprint": corpus.fingerprint(vocabulary.fingerprint, splits),
        "vocabulary_fingerprint": vocabulary.fingerprint,
        "source": {"name": "hand-made", "version": "1"},
        "splits": splits,
    }
    (root / corpus.MANIFEST).write_bytes(corpus.encode_manifest(manifest))
    return root


def write_split(root, split, subjects, random):
    (root / split).mkdir()
    records = []
    for subject in range(subjects):
        stride, start, length = random.integers(1, 4), random.integers(12), random.integers(8, 50)
        labs = 6 + (start + stride * np.arange(length)) % 12
        timeline = np.stack([labs, np.full(length, 18)], axis=1).ravel()
        tokens = np.concatenate([[2, 3, 4, 5], timeline, [1]]).astype(np.uint16)
        prefix = tokens[:4][None]
        records.append(corpus.SubjectRecord(subject, tokens, np.zeros(1, np.uint32), prefix))
    path = root / split / "00000.array_record"
    corpus.write_shard(path, records)
    np.save(root / split / "lengths.npy", np.array([len(record.tokens_T) for record in records], np.uint32))
    np.save(root / split / "subject_ids.npy", np.arange(subjects, dtype=np.int64))
    shard = {"file": f"{split}/00000.array_record", "records": subjects, "sha256": corpus.file_sha256(path)}
    tokens = sum(len(record.tokens_T) for record in records)
    return {"subjects": subjects, "tokens": tokens, "shards": [shard]}


def config_of(folder, **train_keys):
    scope = {}
    exec(CONFIG, scope)
    config = scope["get_config"]()
    config.corpus = str(folder / "corpus")
    config.train.update(train_keys)
    return config


def command(folder, workdir, *overrides):
    return [
        sys.executable, "-m", "cometjax.train", f"--config={folder / 'config.py'}", f"--workdir={workdir}",
        f"--config.corpus={folder / 'corpus'}", *overrides,
    ]  # fmt: skip


def start(folder, workdir, *overrides, settings=ONE_DEVICE):
    return subprocess.Popen(
        command(folder, workdir, *overrides),
        cwd=ROOT, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(folder, workdir, *overrides):
    return subprocess.run(
        command(folder, workdir, *overrides),
        cwd=ROOT, env=os.environ | ONE_DEVICE, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def signal_at_step(process, workdir, step, number):
    """Send the signal once the metrics file has reached the step; fails when the process ends before."""
    while not (lines := metrics.read(workdir)) or lines[-1]["step"] < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, number)
    return process.communicate(timeout=100)


def losses(workdir):
    """Exact losses of every line, by step and split."""
    lines = metrics.read(workdir)
    found = {(line["step"], line["split"]): {k: v for k, v in line.items() if "loss" in k} for line in lines}
    assert len(found) == len(lines), "a step was written twice"
    return found
