"""Sweeps are composed, not enumerated by hand."""

import pytest

from experiments.scaling.sweeps import axis, chain, product, zipped

WIDTHS, RATES = axis("width", (64, 128)), axis("rate", (1e-3, 3e-3))


def test_a_product_has_every_combination_and_the_last_axis_varies_fastest() -> None:
    assert [(p["width"], p["rate"]) for p in product(WIDTHS, RATES)] == [
        (64, 1e-3), (64, 3e-3), (128, 1e-3), (128, 3e-3)
    ]  # fmt: skip


def test_a_chain_is_one_sweep_after_the_other_and_zip_is_side_by_side() -> None:
    assert chain(WIDTHS, RATES) == ({"width": 64}, {"width": 128}, {"rate": 1e-3}, {"rate": 3e-3})
    assert zipped(WIDTHS, RATES) == ({"width": 64, "rate": 1e-3}, {"width": 128, "rate": 3e-3})


def test_what_two_sweeps_set_is_refused() -> None:
    for compose in (product, zipped):
        with pytest.raises(ValueError, match="width"):
            compose(WIDTHS, WIDTHS)
    with pytest.raises(ValueError, match="shorter"):
        zipped(WIDTHS, axis("rate", (1e-3,)))
