"""CoMET-S: 62.1M parameters with the paper's vocabulary of 7,105 tokens.

    python -m cometjax.train --config experiments/configs/comet_s.py --workdir runs/comet_s --config.corpus=CORPUS

Known (abstract of arXiv 2508.12104): the size, a Qwen2-style decoder, random initialisation, 151B training tokens.
Likely (secondary sources): context 8,192, the shape below, tied embeddings, AdamW with cosine decay to a tenth,
about 1,000 tokens per parameter.
Ours, until a scaling study says better: learning rate, warm-up, batch, remat, Qwen2's remaining defaults.
"""

import ml_collections

from cometjax import config as base


def get_config() -> ml_collections.ConfigDict:
    """The configuration of CoMET-S."""
    config = base.default_config()
    config.model.layers = 6
    config.model.width = 768
    config.model.heads = 12
    config.model.kv_heads = 12
    config.model.head_dim = 64
    config.model.mlp_width = 3072
    config.model.remat = "none"
    config.train.row_length = 8192
    config.train.batch_rows = 64  # 524,288 tokens
    config.train.steps = 118_000  # 62B tokens
    config.train.log_every = 50
    config.train.eval_every = 2_000
    config.train.eval_batches = 64
    config.train.checkpoint_every = 1_000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 2_000
    config.loader.workers = 4
    config.loader.prefetch = 4
    return config
