"""The demo's model (about 1.1M parameters): small enough for two CPU cores and a few minutes.

    python -m cometjax.train --config experiments/configs/demo.py --workdir runs/demo --config.corpus=CORPUS

`make demo` runs it on the embedded synthetic world.
"""

import ml_collections

from cometjax import config as base


def get_config() -> ml_collections.ConfigDict:
    """The demo's configuration."""
    config = base.default_config()
    config.model.layers = 4
    config.model.width = 128
    config.model.heads = 4
    config.model.kv_heads = 2
    config.model.head_dim = 32
    config.model.mlp_width = 512
    # A step on two busy CPU cores: scan and "dots" 1.04 s, unrolled 1.16 s, scan 1.20 s, unrolled and "dots" 1.21 s.
    config.model.scan_layers = True
    config.model.remat = "dots"
    config.train.row_length = 512
    config.train.batch_rows = 16
    config.train.steps = 400
    config.train.log_every = 10
    config.train.eval_every = 100
    config.train.eval_batches = 8
    config.train.checkpoint_every = 100
    config.optimizer.learning_rate = 4e-3  # tiny models bear (and in few steps need) a high rate
    config.optimizer.warmup_steps = 20
    return config
