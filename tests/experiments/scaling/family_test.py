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


def test_a_family_file_is_read_by_name_and_by_budget(comet, tmp_path) -> None:
    (tmp_path / "family.json").write_text(json.dumps(comet))
    for wanted in ("M", "2e19"):
        training.validate(family_config.get_config(f"{wanted},{tmp_path / 'family.json'}"))
    for wanted, says in (("", "no member"), ("XL", "use S, M, L"), ("-1", "use S, M, L"), ("nan", "use S, M, L")):
        with pytest.raises(UserError, match=says):
            family_config.get_config(f"{wanted},{tmp_path / 'family.json'}")
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
