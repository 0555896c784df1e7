"""Which trials a study has: the pilot, the grid with its seeds and repeats, the check."""

import ml_collections
import numpy as np

from data_pipeline.errors import UserError
from experiments.scaling.analysis import Analysis
from experiments.scaling.pilot import PilotResult
from experiments.scaling.plan import PlannedTrial, Planner
from experiments.scaling.points import FLOPS_PER_PARAMETER_AND_TOKEN
from experiments.scaling.sweeps import axis, product


def pilot_trials(planner: Planner, config: ml_collections.ConfigDict) -> list[PlannedTrial]:
    """Every budget, width and learning rate of the pilot."""
    settings = config.pilot
    sweep = product(
        axis("budget", settings.budgets), axis("width", settings.widths), axis("rate", settings.learning_rates)
    )
    return [
        planner.isoflop(
            "pilot",
            point["budget"],
            planner.recipe.shape(point["width"]),
            suffix=f"-lr{point['rate']:.3g}".replace(".", "p"),
            learning_rate=point["rate"],
        )
        for point in sweep
    ]


def grid_trials(planner: Planner, config: ml_collections.ConfigDict, found: PilotResult | None) -> list[PlannedTrial]:
    """The isoFLOP grid around the pilot's optimum, further seeds of one of its trials, and trials that repeat data.

    Raises UserError where the grid would see its data more often than `config.data.max_epochs`.
    """
    made: list[PlannedTrial] = []
    for budget in config.grid.budgets:
        shapes = planner.sizes(center(config, found, budget) * config.grid.shift, config.grid.sizes, config.grid.spread)
        made += [_of_fresh_data(planner.isoflop("grid", budget, shape), config) for shape in shapes]
    # The middle of the least budget: where a repeat costs least.
    middle = made[config.grid.sizes // 2]
    seeds = [
        planner.isoflop("seeds", middle.budget, middle.shape, suffix=f"-s{seed}", seed=seed)
        for seed in range(1, config.seeds.repeats + 1)
    ]
    return [*made, *seeds, *repeat_trials(planner, config)]


def repeat_trials(planner: Planner, config: ml_collections.ConfigDict) -> list[PlannedTrial]:
    """Each width for each number of passes over each of the small corpora."""
    sweep = product(
        axis("corpus", list(planner.data.subsets)),
        axis("width", config.repeats.widths),
        axis("epochs", config.repeats.epochs),
    )
    made = []
    for point in sweep:
        shape = planner.recipe.shape(point["width"])
        tokens = planner.data.subsets[point["corpus"]].unique_tokens * point["epochs"]
        budget = FLOPS_PER_PARAMETER_AND_TOKEN * planner.parameters(shape) * tokens
        name = f"repeats-u{point['corpus']}-w{point['width']}-e{point['epochs']:g}".replace(".", "p")
        made.append(planner.trial(name, "repeats", shape, tokens, budget=budget, corpus=point["corpus"]))
    return made


def check_trial(planner: Planner, config: ml_collections.ConfigDict, found: Analysis) -> PlannedTrial:
    """The family's model at `config.check.factor` of the largest budget.

    Raises UserError where it would see its data more often than `config.data.max_epochs`.
    """
    budget = config.check.factor * max(config.grid.budgets)
    n_star, _ = found.fitted.optimum(np.array(budget))
    data = planner.data
    shape = planner.recipe.nearest(float(n_star), data.vocab_size, tied=data.tied_embeddings)
    return _of_fresh_data(planner.isoflop("check", budget, shape), config)


def _of_fresh_data(trial: PlannedTrial, config: ml_collections.ConfigDict) -> PlannedTrial:
    """The trial itself; repeated tokens obey another law than the one that is fitted and foretold."""
    if trial.epochs > config.data.max_epochs:
        raise UserError(
            f"{trial.name} would see its {trial.unique_tokens:,} unique tokens {trial.epochs:.2f} times",
            where="config.data.max_epochs",
            fix="give more patients (config.data.world_patients), lower the budgets or config.check.factor, "
            "or allow it",
        )
    return trial


def center(config: ml_collections.ConfigDict, found: PilotResult | None, budget: float) -> float:
    """N around which the grid of a budget lies: the pilot's, or from `config.pilot.tokens_per_parameter`."""
    if found is not None:
        return found.center(budget)
    # C = 6 N D and D = r N at the least budget.
    least = min(config.grid.budgets)
    n = (least / FLOPS_PER_PARAMETER_AND_TOKEN / config.pilot.tokens_per_parameter) ** 0.5
    return float(n * (budget / least) ** config.pilot.center_exponent)
