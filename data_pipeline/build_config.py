"""The default corpus configuration: every key that `python -m data_pipeline.build --config.KEY=VALUE` takes.

Copy this file, change it and pass it by `--config FILE` to keep a configuration of your own.
"""

import ml_collections

from data_pipeline import intervals
from data_pipeline.errors import UserError


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration of a corpus."""
    return ml_collections.ConfigDict(
        {
            # How the data set's codes are read: world, mimic, omop, synthea, generic, or the path of a JSON file
            # (docs/code_maps.md).
            "code_map": "generic",
            # Interval tokens: comet13 (1 minute to 6 months) or ethos19 (5 minutes to 6 months).
            "interval_preset": "comet13",
            # A code seen in fewer training subjects is shortened, then UNKNOWN: rare codes can single people out.
            "min_subjects_per_code": 11,
            # A code with fewer training values has no deciles.
            "min_values_per_code": 50,
        }
    )


def check(config: ml_collections.ConfigDict) -> None:
    """Raise a UserError that names the first key whose value makes no sense."""
    if config.interval_preset not in intervals.PRESETS:
        raise UserError(
            f"unknown preset {config.interval_preset!r}",
            where="config.interval_preset",
            fix=f"choose one of {', '.join(intervals.PRESETS)}",
        )
    for key in ("min_subjects_per_code", "min_values_per_code"):
        if config[key] < 1:
            raise UserError(f"{config[key]} is below 1", where=f"config.{key}", fix="give a positive number")
