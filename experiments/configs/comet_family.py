"""CoMET's published family in the form of a study's: S, M and L, and the law that the paper reports.

    python -m cometjax.train --config experiments/configs/comet_family.py:M --workdir runs/m --config.corpus=CORPUS
    python -m cometjax.train --config experiments/configs/comet_family.py:1e20 --workdir runs/n --config.corpus=CORPUS
    python -m experiments.scaling.family --family comet --topology v5p:4x8x8 --days 7 --out week.py

Known (abstract of arXiv 2508.12104): 62M, 119M and 1B parameters, 151B tokens. Likely (secondary sources): the shapes,
N* growing as C^.520 and D* as C^.512 (fitted apart, so they do not add up to one), and about 1,000 tokens a parameter.
Here the law goes through that ratio at 119M parameters, and D* = C / 6 N*. Learning rates are ours: the power law
through those of comet_s.py, comet_m.py and comet_l.py. No loss is foretold: the paper's data is not at hand.
"""

import dataclasses
from typing import Any

import ml_collections
import numpy as np

from cometjax.roofline import PAPER_SEGMENT
from experiments.configs import comet_l, comet_m, comet_s
from experiments.scaling.family import Law, config_of, find
from experiments.scaling.plan import number_name
from experiments.scaling.points import FLOPS_PER_PARAMETER_AND_TOKEN
from experiments.scaling.recipe import LearningRate, Recipe, Shape
from experiments.scaling.recipe import default_config as default_recipe

VOCABULARY = 7_105
N_EXPONENT = 0.520
TOKENS_PER_PARAMETER = 1_000.0
CONFIGS = {"S": comet_s, "M": comet_m, "L": comet_l}


def family() -> dict[str, Any]:
    """The family as a study would write it, with members S, M and L."""
    configs = {name: module.get_config() for name, module in CONFIGS.items()}
    members = [_published(name, config) for name, config in configs.items()]
    exponent, intercept = np.polyfit(
        np.log([one["n"] for one in members]), np.log([one["learning_rate"] for one in members]), 1
    )
    rate = LearningRate(float(np.exp(intercept)), float(exponent))
    recipe = dataclasses.replace(
        Recipe.from_config(default_recipe()), learning_rate=rate, warmup_fraction=0.01, final_fraction=0.1
    )
    n = members[1]["n"]
    c = FLOPS_PER_PARAMETER_AND_TOKEN * n * TOKENS_PER_PARAMETER * n
    law = Law(n / c**N_EXPONENT, N_EXPONENT, max(one["budget"] for one in members))
    return {
        "name": "CoMET",
        "law": dataclasses.asdict(law),
        "recipe": dataclasses.asdict(recipe),
        "vocab_size": VOCABULARY,
        "targets_per_row": float(recipe.row_length),  # as if rows were full, and no history longer than one
        "segment_tokens": float(PAPER_SEGMENT),  # and all histories of the published mean length
        "base": configs["L"].to_dict() | {"model": configs["L"].model.to_dict() | {"vocab_size": VOCABULARY}},
        "members": members,
    }


def get_config(wanted: str = "M") -> ml_collections.ConfigDict:
    """The configuration of S, M, L, or of a budget in FLOPs."""
    if wanted in CONFIGS:
        return CONFIGS[wanted].get_config()
    made = family()
    return config_of(made, find(made, wanted)).lock()


def _published(name: str, config: ml_collections.ConfigDict) -> dict[str, Any]:
    shape = Shape(**{field.name: config.model[field.name] for field in dataclasses.fields(Shape)})
    n, tokens = shape.parameters(VOCABULARY), config.train.steps * config.train.batch_rows * config.train.row_length
    budget = FLOPS_PER_PARAMETER_AND_TOKEN * n * tokens
    overrides = {f"model.{key}": value for key, value in dataclasses.asdict(shape).items()} | {
        "model.remat": config.model.remat,
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "optimizer.warmup_steps": config.optimizer.warmup_steps,
        "train.steps": config.train.steps,
        "train.batch_rows": config.train.batch_rows,
    }
    return {
        "name": name,
        "compute": number_name(budget),
        "budget": budget,
        "shape": dataclasses.asdict(shape),
        "n": n,
        "n_without_embeddings": shape.parameters_without_embeddings(),
        "tokens": float(tokens),
        "tokens_per_parameter": tokens / n,
        "steps": config.train.steps,
        "batch_rows": config.train.batch_rows,
        "learning_rate": config.optimizer.learning_rate,
        "predicted_loss": None,
        "overrides": overrides,
    }
