"""The demo's model, trained for half an hour on two CPU cores: what they can learn of the synthetic world.

    python -m data_pipeline.world --out runs/world/meds --patients 40000
    python -m data_pipeline.build --meds runs/world/meds --out runs/world/corpus --config.code_map=world
    python -m cometjax.train --config experiments/configs/half_hour.py --workdir runs/short \
        --config.corpus=runs/world/corpus
    python -m cometjax.export --workdir runs/short --out runs/short-hf
    python -m cometjax.train --config experiments/configs/half_hour.py:long --workdir runs/half-hour \
        --config.corpus=runs/world/corpus --config.init_from=runs/short-hf

Two legs: short rows, which are cheap and teach most, then rows that hold all but the longest histories. Seen: tuning
losses of 0.820 and then 0.725 nats/token, of which the entropy floor is 0.643, after 16 min 27 s and 12 min 16 s more
(with scanned layers; the demo's are unrolled now, which took a tenth less time a step).
docs/tasks.md has what the model foretells.
"""

import ml_collections

from data_pipeline.errors import UserError
from experiments.configs import demo


def get_config(leg: str = "short") -> ml_collections.ConfigDict:
    """The first leg's configuration, or with "long" the second's; raises UserError for another."""
    config = demo.get_config()
    config.train.eval_batches = 160  # of evaluations before the last, which sees the whole split
    if leg == "short":
        config.optimizer.warmup_steps = 150
        config.optimizer.final_fraction = 0.4  # where the second leg goes on
        config.train.steps = 3000  # 9.2M tokens
        config.train.checkpoint_every = 1000
    elif leg == "long":
        config.seed = 1  # of another order
        config.optimizer.learning_rate = 4e-3
        config.optimizer.warmup_steps = 20
        config.train.row_length = 2048
        config.train.batch_rows = 2
        config.train.steps = 1220  # 5.0M tokens
        config.train.checkpoint_every = 400
    else:
        raise UserError(f"no leg {leg!r}", where="--config", fix="half_hour.py:short or half_hour.py:long")
    config.train.eval_every = config.train.steps
    return config
