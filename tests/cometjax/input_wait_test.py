"""Input wait is the time in which the devices had nothing to do for lack of a batch, and no other."""

import time

from cometjax import metrics, train_loop
from cometjax.config import default_config
from cometjax.train import train

STEPS = 8


def input_wait(config, workdir, monkeypatch, seconds_per_batch):
    """Mean input wait of the steps after the first, which compiles."""
    batches_of = train_loop.train_batches

    def slow_batches(*args, **kwargs):
        for batch in batches_of(*args, **kwargs):
            time.sleep(seconds_per_batch)
            yield batch

    monkeypatch.setattr(train_loop, "train_batches", slow_batches)
    train(config, workdir, progress=False)
    lines = [line for line in metrics.read(workdir) if line["split"] == "train" and 2 < line["step"] < STEPS]
    return sum(line["input_wait"] for line in lines) / len(lines)


def config_of(world_corpus, **model):
    config = default_config()
    config.model.update(layers=1, width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=64, **model)
    config.optimizer.update(warmup_steps=2)
    config.train.update(
        steps=STEPS, batch_rows=8, row_length=64, log_every=1, eval_every=STEPS, checkpoint_every=STEPS, eval_batches=1
    )
    config.corpus = str(world_corpus)
    return config


def test_a_loader_slower_than_the_step_is_seen(world_corpus, tmp_path, monkeypatch):
    wait = input_wait(config_of(world_corpus), tmp_path / "run", monkeypatch, seconds_per_batch=0.3)
    assert wait > 0.6


def test_a_loader_hidden_behind_the_step_is_no_wait(world_corpus, tmp_path, monkeypatch):
    config = config_of(world_corpus)
    config.model.update(width=128, mlp_width=2048)
    config.train.update(row_length=512)
    wait = input_wait(config, tmp_path / "run", monkeypatch, seconds_per_batch=0.03)
    # Counted as it passes, 0.03 s of a step of some 0.2 s would be a seventh.
    assert wait < 0.03
