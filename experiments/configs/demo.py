"""The demo's model (0.66M parameters): small enough for two CPU cores and a few minutes.

    python -m cometjax.train --config experiments/configs/demo.py --workdir runs/mine --config.corpus=CORPUS

`make demo` runs it. Expect on the synthetic world of 6,000 patients a tuning loss of 0.812 nats/token (bigram 2.137,
entropy floor 0.628) after 1,500 steps; 15,673 tokens/s and 321 s on two CPU cores.
"""

import ml_collections

from cometjax import config as base


def get_config() -> ml_collections.ConfigDict:
    """The demo's configuration."""
    config = base.default_config()
    config.model.layers = 4
    config.model.width = 128
    # 600 steps on a larger world, a core each: two heads of 64 end 0.005 nats/token below four of 32, with half as many
    # scores; an MLP of 256 ends 0.009 below one of 512 with 1.4 times the tokens/s (docs/decisions.md).
    config.model.heads = 2
    config.model.kv_heads = 1
    config.model.head_dim = 64
    config.model.mlp_width = 256
    # On two quiet CPU cores, tokens/s: scan and "dots" 9,400, scan 9,500, unrolled 10,300.
    config.model.scan_layers = False
    config.model.remat = "none"
    config.train.row_length = 768
    # Few tokens, many steps: on the synthetic world 750 steps of 5 rows ended at 0.921 nats/token, 350 of 10 at 0.978.
    # A multiple of the cores, which share a batch's rows (cometjax/cpu_devices.py).
    config.train.batch_rows = 4
    config.train.steps = 1500
    config.train.log_every = 25
    config.train.eval_every = 500
    config.train.checkpoint_every = 500
    # 600 steps on a larger world: AdamW at 4e-3 ended at 1.121 nats/token, Muon at 4e-3 at 0.997, at 1e-2 at 0.976.
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.b2 = 0.99
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 0.4  # times the sum of the learning rates about 3
    # To zero: at a tenth, the rates of rare tokens were still off by a third (43 deaths predicted, 69 observed, on the
    # tuning split of the synthetic world; decayed to zero 66), and risks are sums of rates.
    config.optimizer.final_fraction = 0.0
    return config
