"""The configuration of a scaling study: every key with its meaning.

A study's file builds on `default_config()`, as experiments/configs/scaling_world.py does; flags override single keys
(`--config.grid.sizes=7`).
"""

import itertools
from typing import Any

import ml_collections

from cometjax import config as training
from data_pipeline.errors import UserError
from experiments.scaling import frontier, gates, recipe, surface

# What may change between two starts of one study: how trials are run, read and refused, not what they are.
FREE_KEYS = ("run.", "fit.", "family.", "data.entropy_floor", "data.max_epochs", "grid.rehearsal")


def default_config() -> ml_collections.ConfigDict:
    """All keys, locked."""
    config = ml_collections.ConfigDict()
    config.name = "scaling"  # of the study, of the family, of jobs on a cluster
    config.base = training.default_config()  # of every trial, beside what the recipe and the plan decide
    config.recipe = recipe.default_config()
    config.data = ml_collections.ConfigDict(
        {
            "corpus": "",  # a build's folder; "" = the synthetic world
            "world_patients": 30_000,  # of the synthetic world,
            "world_seed": 0,  # and its seed
            "validation_subjects": 0,  # of the tuning split, the same for every trial; 0 = all
            "repeated_unique_tokens": (),  # sizes of the small corpora for trials that repeat their data
            "entropy_floor": "",  # file of `data_pipeline.world --score`; "" = worked out, if the data are the world's
            "max_epochs": 1.0,  # passes of grid and check over their data: more would mix two laws
        }
    )
    config.pilot = ml_collections.ConfigDict(
        {
            "budgets": (),  # 6 N D; two and more also tell how the rate depends on D. () = no pilot
            "widths": (),  # of its models, each at every budget and learning rate
            "learning_rates": (),  # three and more: a parabola is fitted. One or none: the recipe's rate stays
            "center_exponent": 0.5,  # N* = r C^this, from the pilot to the grid
            "tokens_per_parameter": 0.0,  # without a pilot: where the grid of the least budget is centred
        }
    )
    config.grid = ml_collections.ConfigDict(
        {
            "budgets": (),  # 6 N D, at least three (gates.MIN_BUDGETS)
            "sizes": 6,  # of each budget, at least five (frontier.MIN_SIZES)
            "rehearsal": False,  # True: fewer will do, to try a cluster or a recipe; a gate then refuses the fit
            "spread": 4.0,  # the smallest is centre / spread, the largest centre * spread
            "shift": 1.0,  # moves all centres: after a gate said that a minimum lies at an edge
        }
    )
    config.seeds = ml_collections.ConfigDict({"repeats": 0})  # further seeds of one trial, for the noise floor
    # Trials over `data.repeated_unique_tokens`: each width for each number of passes.
    config.repeats = ml_collections.ConfigDict({"widths": (), "epochs": ()})
    config.check = ml_collections.ConfigDict({"factor": 4.0})  # of the largest budget; 0 = no check
    config.fit = ml_collections.ConfigDict(
        {
            "delta": surface.DELTA,  # of the Huber loss, in log-loss
            "bootstrap": 1000,  # resamples of the trials; 0 = no intervals
            "confidence": 0.95,  # of intervals
            "max_holdout_error": gates.MAX_HOLD_OUT_ERROR,  # of the loss at the largest budget, fitted without it
            "seed": 0,  # of the resamples
        }
    )
    config.family = ml_collections.ConfigDict(
        {
            "factors": (1.0, 4.0, 16.0),  # budgets of its members, over the largest of the grid
            "topology": "",  # the pod whose chip-hours are given, as v5p:4x4x4; "" = none
        }
    )
    config.run = ml_collections.ConfigDict(
        {
            "workers": 0,  # trials at once on this machine; 0 = one for each core
            "pin": True,  # each on a core of its own (CPU); False where a trial takes accelerators
            "devices": 1.0,  # of a worker, for device-hours
            "limit_device_hours": 2.0,  # above this the study asks first (--yes: it does not)
        }
    )
    return config.lock()


def validate(config: ml_collections.ConfigDict) -> None:
    """Raise UserError for what makes no sense, naming the key."""
    known = default_config()
    for key in set(config) - set(known):
        raise UserError("unknown key", where=f"config.{key}", fix="see experiments/scaling/study_config.py")
    training.refuse_not_finite(config)
    training.validate(_with_steps(config.base))
    _rising(config, "grid.budgets", at_least=1)
    _rising(config, "pilot.budgets", at_least=0)
    if config.grid.sizes < 1 or config.grid.spread <= 1 or config.grid.shift <= 0:
        raise UserError("give sizes of 1 or more, a spread above 1, a shift above 0", where="config.grid")
    if not config.grid.rehearsal and (missing := too_few(config)):
        raise UserError(
            f"{missing}: every trial would be trained, and then a gate would refuse the fit",
            where="config.grid",
            fix="give more, or say config.grid.rehearsal=True to train them all the same",
        )
    if config.pilot.budgets and not (config.pilot.widths and config.pilot.learning_rates):
        raise UserError("a pilot needs widths and learning_rates", where="config.pilot")
    if not config.pilot.budgets and config.pilot.tokens_per_parameter <= 0:
        raise UserError(
            "nothing says where the grid lies",
            where="config.pilot",
            fix="give budgets, widths and learning_rates of a pilot, or tokens_per_parameter",
        )
    if any(rate <= 0 for rate in config.pilot.learning_rates) or 1 < len(config.pilot.learning_rates) < 3:
        raise UserError("give one learning rate, or three and more", where="config.pilot.learning_rates")
    if config.repeats.widths and not (config.repeats.epochs and config.data.repeated_unique_tokens):
        raise UserError("need repeats.epochs and data.repeated_unique_tokens", where="config.repeats.widths")
    if config.fit.bootstrap < 0 or not 0.5 <= config.fit.confidence < 1:
        raise UserError("give bootstrap of 0 or more, confidence in [0.5, 1)", where="config.fit")


def too_few(config: ml_collections.ConfigDict) -> str:
    """What the grid has too few of for a fit that no gate refuses (`gates.check`); "" where it has enough."""
    budgets, sizes = len(config.grid.budgets), config.grid.sizes
    counts = (("budgets", budgets, gates.MIN_BUDGETS), ("sizes of each budget", sizes, frontier.MIN_SIZES))
    return "; ".join(f"{there} {what}, {least} are needed" for what, there, least in counts if there < least)


def _with_steps(base: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    # The plan sets length and warm-up together.
    copy = ml_collections.ConfigDict(base.to_dict())
    copy.optimizer.warmup_steps = min(copy.optimizer.warmup_steps, copy.train.steps - 1)
    return copy


def _rising(config: ml_collections.ConfigDict, key: str, *, at_least: int) -> None:
    part, name = key.split(".")
    values: Any = config[part][name]
    rises = all(low < high for low, high in itertools.pairwise(values))
    if len(values) < at_least or not rises or any(value <= 0 for value in values):
        raise UserError(f"{tuple(values)} cannot be used", where=f"config.{key}", fix="give rising, positive numbers")
