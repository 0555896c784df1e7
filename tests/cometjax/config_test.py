"""Configurations: the files are valid, and each mistake is named by key, value and what to do."""

import functools
import json
from collections.abc import Callable
from typing import Any

import ml_collections
import pytest

from cometjax.config import default_config, validate
from cometjax.model import ModelConfig
from data_pipeline.errors import UserError
from experiments.configs import comet_l, comet_m, comet_s, demo, half_hour


@pytest.mark.parametrize(
    "make",
    [module.get_config for module in (demo, comet_s, comet_m, comet_l, half_hour)]
    + [functools.partial(half_hour.get_config, "long")],
)
def test_the_configurations_that_come_with_the_project_are_valid(make: Callable[[], Any]) -> None:
    config = make()
    validate(config)
    ModelConfig.from_config(config.model, 800)


def test_the_default_is_valid_and_survives_json() -> None:
    validate(default_config())
    again = ml_collections.ConfigDict(json.loads(default_config().to_json()))
    validate(again)
    assert again.to_dict() == default_config().to_dict()


def test_an_unlisted_key_cannot_be_set() -> None:
    config = default_config()
    with pytest.raises((AttributeError, KeyError), match="layer"):
        config.model.layer = 3


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("seed", -1, "use 0 or more"),
        ("seed", 2**32, r"use less than 2\*\*32"),
        ("model.layers", 0, "use 1 or more"),
        ("model.kv_heads", 3, r"use a divisor of config.model.heads \(4\)"),
        ("model.kv_heads", 8, r"use a divisor of config.model.heads \(4\)"),
        ("model.head_dim", 33, "even"),
        ("model.vocab_size", -5, "use 0 or more"),
        ("model.rope_theta", 0.0, "above 0"),
        ("model.norm_eps", float("nan"), "use a finite value"),
        ("model.compute_dtype", "float16", "use one of auto, float32, bfloat16"),
        ("model.param_dtype", "auto", "use one of float32, bfloat16"),
        ("model.attention", "flash9", "use one of auto, reference"),
        ("model.remat", "some", "use one of none, dots, full"),
        ("optimizer.learning_rate", -1e-3, "above 0"),
        ("optimizer.learning_rate", float("inf"), "use a finite value"),
        ("optimizer.b2", 1.0, r"use a value in \[0, 1\)"),
        ("optimizer.final_fraction", 1.5, r"use a value in \[0, 1\]"),
        ("optimizer.decay", "stairs", "use one of cosine, linear, sqrt"),
        ("optimizer.name", "lion", "use one of adamw, muon"),
        ("optimizer.muon_momentum", 1.0, r"use a value in \[0, 1\)"),
        ("optimizer.clip_norm", 0.0, "above 0"),
        ("optimizer.weight_decay", float("nan"), "use a finite value"),
        ("optimizer.weight_decay", float("inf"), "use a finite value"),
        ("train.spike_threshold", float("inf"), "use a finite value"),
        ("train.spike_threshold", float("nan"), "use a finite value"),
        ("train.checkpoint_minutes", float("inf"), "use a finite value"),
        ("optimizer.warmup_steps", 1000, r"use less than config.train.steps \(1000\)"),
        ("optimizer.stable_steps", -1, "use 0 or more"),
        ("optimizer.stable_steps", 901, "use at most 900, what warm-up leaves of config.train.steps"),
        ("train.steps", 0, "use 1 or more"),
        ("train.batch_rows", 0, "use 1 or more"),
        ("train.row_length", 4, "use 8 or more"),
        ("train.eval_batches", -1, "use 0 or more"),
        ("train.last_eval_batches", -1, "use 0 or more"),
        ("train.checkpoint_every", 0, "use 1 or more"),
        ("train.checkpoint_minutes", -1.0, "use 0 or more"),
        ("loader.workers", -1, "use 0 or more"),
        ("mesh.tensor", 0, "-1 for what remains"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_key_and_value(key: str, value: Any, fix: str) -> None:
    config = default_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=fix) as refusal:
        validate(config)
    assert str(refusal.value).startswith(f"config.{key}: {value!r} cannot be used; ")


def test_two_open_mesh_axes_are_refused() -> None:
    config = default_config()
    config.mesh.update(data=-1, fsdp=-1)
    with pytest.raises(UserError, match=r"config\.mesh: .*at most one axis may be -1"):
        validate(config)


def test_a_configuration_with_other_keys_is_refused_by_name() -> None:
    config = default_config().unlock()
    config.model.depth = 3
    with pytest.raises(UserError, match=r"config\.model\.depth: unknown key"):
        validate(config)
    config = default_config().unlock()
    del config.optimizer.b1
    with pytest.raises(UserError, match=r"config\.optimizer\.b1: missing key"):
        validate(config)


def test_a_value_of_another_type_is_refused_and_a_whole_number_passes_for_a_real_one() -> None:
    values = default_config().to_dict()
    values["optimizer"]["clip_norm"] = 1
    validate(ml_collections.ConfigDict(values))
    values["train"]["steps"] = "200"
    with pytest.raises(UserError, match=r"config\.train\.steps: '200' is a str; use int"):
        validate(ml_collections.ConfigDict(values))
    values["train"]["steps"] = True
    with pytest.raises(UserError, match=r"config\.train\.steps: True is a bool"):
        validate(ml_collections.ConfigDict(values))


def test_muon_is_refused_where_learning_rates_follow_the_width_as_adams():
    config = default_config()
    config.optimizer.name, config.model.parameterization = "muon", "mup"
    with pytest.raises(UserError, match=r"config\.optimizer\.name: 'muon' cannot be used; use \"adamw\""):
        validate(config)
