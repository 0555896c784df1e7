"""The scaling study of the synthetic world, sized for two CPU cores: what `make scaling-sweep` runs.

    python -m experiments.scaling_sweep --config experiments/configs/scaling_world.py --workdir runs/scaling

Four budgets of six sizes, after a pilot that finds the centre and the learning rates; then seeds, runs that repeat
their data, and the test that counts: a model of four times the largest budget, foretold and measured.
"""

import ml_collections

from experiments.scaling import study_config


def get_config() -> ml_collections.ConfigDict:
    """The study."""
    config = study_config.default_config()
    config.name = "world"
    config.data.world_patients = 50_000
    config.data.validation_subjects = 400
    config.data.repeated_unique_tokens = (60_000.0, 200_000.0)
    config.recipe.update(
        width_multiple=4, min_width=8, max_width=256, width_per_layer=64.0, min_layers=2, max_layers=4, head_dim=16,
        mlp_ratio=4.0, parameterization="mup", mup_base_width=32, row_length=256, batch_rows=8, batch_multiple=1,
        warmup_fraction=0.1, final_fraction=0.0,
    )  # fmt: skip
    config.pilot.budgets = (8e10, 2e11)
    config.pilot.widths = (12, 20, 32)
    config.pilot.learning_rates = (1.2e-2, 3.5e-2, 1e-1)
    config.grid.budgets = (3.2e11, 5.2e11, 8.3e11, 1.32e12)
    config.grid.sizes = 6
    config.grid.spread = 2.5
    config.seeds.repeats = 3
    config.repeats.widths = (16, 32)
    config.repeats.epochs = (4.0, 12.0)
    config.family.topology = "v5p:2x2x1"
    config.run.workers = 0
    return config
