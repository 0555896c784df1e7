"""Families are configurations that training takes, and the published one is one of them."""

import importlib.util
import json
import math

import pytest

from cometjax import config as training
from data_pipeline.errors import UserError
from experiments.configs import comet_family, comet_l, comet_m, comet_s
from experiments.configs import family as family_config
from experiments.scaling import family
from experiments.scaling.family import Law


@pytest.fixture(scope="module")
def comet():
    return comet_family.family()


def test_the_published_models_are_members_as_they_are_trained(comet) -> None:
    assert [one["name"] for one in comet["members"]] == ["S", "M", "L"]
    assert [round(one["n"] / 1e6, 1) for one in comet["members"]] == [62.1, 118.7, 1088.5]
    for name, module in (("S", comet_s), ("M", comet_m), ("L", comet_l)):
        assert comet_family.get_config(name) == module.get_config()
        one = family.find(comet, name)
        config = family.config_of(comet, one)
        training.validate(config)
        for key in ("layers", "width", "heads", "head_dim", "mlp_width"):
            assert config.model[key] == module.get_config().model[key]
        assert config.train.steps == module.get_config().train.steps
        assert config.model.vocab_size == 0  # the corpus's own, whose it is


def test_the_law_goes_through_a_thousand_tokens_a_parameter(comet) -> None:
    (m,) = [one for one in comet["members"] if one["name"] == "M"]
    law = Law(**comet["law"])
    c = 6 * m["n"] * 1000 * m["n"]
    assert law.size(c) == pytest.approx(m["n"]) and law.size(100 * c) == pytest.approx(m["n"] * 100**0.52)


@pytest.mark.parametrize("budget", ["1e17", "1e20", "3e22", "1e24"])
def test_a_budget_becomes_a_real_shape_that_spends_it(comet, budget) -> None:
    one = family.find(comet, budget)
    assert 6 * one["n"] * one["tokens"] == pytest.approx(float(budget))
    assert abs(math.log(one["n"] / Law(**comet["law"]).size(float(budget)))) < math.log(1.6)
    shape = one["shape"]
    assert shape["width"] % 128 == 0 and shape["head_dim"] in (64, 128)
    assert shape["heads"] * shape["head_dim"] == shape["width"]
    training.validate(comet_family.get_config(budget))


def test_rows_that_are_not_full_take_more_steps_and_more_hours(comet) -> None:
    full, half = (family.member(comet | {"targets_per_row": 8192.0 * share}, 1e20) for share in (1.0, 0.5))
    assert half["tokens"] == full["tokens"] and half["steps"] == pytest.approx(2 * full["steps"], abs=1)
    hours = [family.on_pod(comet, one["overrides"], "v5p:4x4x4")["hours"] for one in (full, half)]
    assert hours[1] == pytest.approx(2 * hours[0], rel=1e-3)


def test_long_histories_cost_hours_of_attention(comet) -> None:
    """The study's own squared lengths, not the published mean, decide what a week trains."""
    (m,) = [one for one in comet["members"] if one["name"] == "M"]
    hours = [
        family.on_pod(comet | {"segment_tokens": tokens}, m["overrides"], "v5p:4x4x4")["hours"]
        for tokens in (256.0, 1280.0, 8192.0)
    ]
    assert hours[0] < hours[1] < hours[2] / 1.3
    budgets = [family.for_time(comet | {"segment_tokens": t}, "v5p:4x4x4", 168.0)[0]["budget"] for t in (256.0, 8192.0)]
    assert budgets[1] < 0.9 * budgets[0]


def test_a_trials_intervals_are_not_those_of_a_members_training(comet) -> None:
    config = family.config_of(comet, family.find(comet, "3e21"))
    assert config.train.log_every == comet_m.get_config().train.log_every


def test_a_family_file_is_read_by_name_and_by_budget(comet, tmp_path) -> None:
    (tmp_path / "family.json").write_text(json.dumps(comet))
    for wanted in ("M", "2e19"):
        training.validate(family_config.get_config(f"{wanted},{tmp_path / 'family.json'}"))
    for wanted, says in (("", "no member"), ("XL", "use S, M, L"), ("-1", "use S, M, L"), ("nan", "use S, M, L")):
        with pytest.raises(UserError, match=says):
            family_config.get_config(f"{wanted},{tmp_path / 'family.json'}")
    (tmp_path / "older.json").write_text(json.dumps({k: v for k, v in comet.items() if k != "targets_per_row"}))
    with pytest.raises(UserError, match="--report"):
        family_config.get_config(f"M,{tmp_path / 'older.json'}")
    with pytest.raises(UserError, match="closed gate"):
        family_config.get_config(f"M,{tmp_path / 'none.json'}")


def test_a_configuration_file_holds_the_member_and_warns_of_far_extrapolation(comet, tmp_path) -> None:
    for budget, warned in (("1e20", False), ("1e24", True)):
        one = family.find(comet, budget)
        path = tmp_path / f"c{budget}.py"
        path.write_text(family.config_file(comet, one, None, "CoMET"))
        assert ("WARNING" in path.read_text()) == warned
        spec = importlib.util.spec_from_file_location("made", path)
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        config = made.get_config()
        training.validate(config)
        assert config.model.width == one["shape"]["width"] and config.train.steps == one["steps"]
        assert config.model.vocab_size == 0


def test_a_pod_for_a_week_becomes_a_model_that_takes_it_a_week(comet, tmp_path) -> None:
    one, pod = family.for_time(comet, "v5p:4x8x8", 168.0)
    assert pod["chips"] == 256 and pod["hours"] == pytest.approx(168.0, rel=0.02)
    assert pod["chip_hours"] == pytest.approx(256 * pod["hours"])
    # The chips' peak at the utilization planned, over the counted FLOPs of a token: what the hours come from.
    assert pod["mfu"] == family.MFU <= pod["mfu_bound"]
    assert 6 * one["n"] * one["tokens"] < 168 * 3600 * 256 * 459e12 * pod["mfu"]
    assert 6 * one["n"] * one["tokens"] > 0.7 * 168 * 3600 * 256 * 459e12 * pod["mfu"]
    assert one["batch_rows"] % 256 == 0
    twice, _ = family.for_time(comet, "v5p:4x8x8", 336.0)
    assert twice["budget"] > 1.9 * one["budget"]
    training.validate(family.config_of(comet, one))


def test_a_study_names_the_chip_hours_of_its_members(comet) -> None:
    (m,) = [one for one in comet["members"] if one["name"] == "M"]
    pod = family.on_pod(comet, m["overrides"], "v5p:4x4x4")
    assert pod["chips"] == 64 and pod["chip_hours"] == pytest.approx(64 * pod["hours"])
    refused = family.on_pod(comet, m["overrides"] | {"train.batch_rows": 3}, "v5p:4x4x4")
    assert "3" in refused["refused"]
