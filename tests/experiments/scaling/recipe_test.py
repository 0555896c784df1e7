"""A recipe's shapes are those that the model has, and its trials are configurations that training takes."""

import dataclasses

import pytest

from cometjax import config as training
from cometjax.model import ModelConfig, num_parameters
from data_pipeline.errors import UserError
from experiments.scaling import recipe as recipes
from experiments.scaling.plan import apply
from experiments.scaling.recipe import LearningRate, Recipe, Shape

VOCABULARY = 7_105


def default(**changes) -> Recipe:
    return dataclasses.replace(Recipe.from_config(recipes.default_config()), **changes)


@pytest.mark.parametrize("shape", [Shape(2, 64, 4, 4, 16, 256), Shape(3, 48, 4, 2, 10, 100)])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_as_the_model_has_them(shape, tied) -> None:
    model = ModelConfig(vocab_size=91, tied_embeddings=tied, **dataclasses.asdict(shape))
    assert shape.parameters(91, tied=tied) == num_parameters(model)
    assert (
        shape.parameters(91, tied=tied) - shape.parameters_without_embeddings() == (1 + (not tied)) * 91 * shape.width
    )


def test_the_default_ladder_holds_the_published_small_and_large_models() -> None:
    ladder = default().ladder()
    assert Shape(6, 768, 12, 12, 64, 3072) in ladder and Shape(16, 2048, 32, 32, 64, 8192) in ladder
    assert [default().nearest(n, VOCABULARY, tied=True).width for n in (62e6, 1.09e9)] == [768, 2048]
    sizes = [shape.parameters(VOCABULARY) for shape in ladder]
    assert sizes == sorted(sizes)


def test_beyond_the_largest_trial_the_nearest_shape_may_still_be_one_of_the_trials() -> None:
    small = default(width_multiple=8, min_width=8, max_width=72, head_dim=8, min_layers=1, max_layers=1)
    largest, next_larger = (small.shape(72).parameters(31), Shape(2, 128, 2, 2, 64, 512).parameters(31))
    for n, width in ((2 * largest, 72), (0.9 * next_larger, 128), (2e9, 2560), (1e11, 9344)):
        shape = small.nearest(n, 31, tied=True)
        assert shape.width == width and shape.head_dim == (8 if width == 72 else 64 if width < 4096 else 128)


def test_learning_rate_and_batch_follow_their_power_laws() -> None:
    rate = LearningRate(2.0, -0.25, 0.125)
    assert rate(16.0, 256.0) == pytest.approx(2.0 * 0.5 * 2.0)
    growing = default(batch_rows=64, batch_exponent=0.5, batch_reference_tokens=1e9)
    assert (growing.rows(1e9), growing.rows(4e9), growing.rows(1e3)) == (64, 128, 8)
    assert default(batch_exponent=0.0).rows(1e15) == 64


def test_a_trial_is_a_configuration_that_training_takes_with_its_warm_up_in_proportion() -> None:
    recipe = default(warmup_fraction=0.1)
    for steps, warmup in ((200, 20), (2, 1)):
        overrides = recipe.overrides(recipe.shape(256), n=10**6, steps=steps, rows=8, tokens=1e8, seed=3)
        config = apply(training.default_config().to_dict(), overrides)
        training.validate(config)
        assert (config.train.steps, config.optimizer.warmup_steps, config.optimizer.final_fraction) == (
            steps,
            warmup,
            0,
        )
        assert config.seed == 3 and config.train.eval_every == steps


def test_a_recipe_that_makes_no_sense_is_refused() -> None:
    for key, value, says in (("min_width", 0, "widths"), ("warmup_fraction", 1.0, "warmup_fraction")):
        config = recipes.default_config()
        config[key] = value
        with pytest.raises(UserError, match=says):
            Recipe.from_config(config)
    config = recipes.default_config()
    config.parameterization, config.learning_rate.n_exponent = "mup", -0.5
    with pytest.raises(UserError, match="mup"):
        Recipe.from_config(config)
