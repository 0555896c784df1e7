"""The demo's model, trained with Muon for half an hour on two CPU cores: what they can learn of the synthetic world.

    python -m data_pipeline.world --out runs/world/meds --patients 40000
    python -m data_pipeline.build --meds runs/world/meds --out runs/world/corpus --config.code_map=world
    python -m cometjax.train --config experiments/configs/half_hour.py --workdir runs/half-hour \
        --config.corpus=runs/world/corpus

Seen: a tuning loss of 0.738 nats/token after 29 min 34 s (entropy floor 0.643); docs/tasks.md has what it foretells.
"""

import ml_collections

from experiments.configs import demo


def get_config() -> ml_collections.ConfigDict:
    """The half hour's configuration."""
    config = demo.get_config()
    # 600 steps of the same batches: AdamW at 4e-3 ended at 1.121 nats/token, Muon at 4e-3 at 0.997, at 1e-2 at 0.976.
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 6e-3
    config.optimizer.warmup_steps = 150
    config.train.steps = 5400  # 16.5M tokens: four fifths of the corpus, none of it twice
    config.train.eval_every = 5400
    config.train.eval_batches = 160  # of those before the last, which sees the whole split
    config.train.checkpoint_every = 900
    return config
