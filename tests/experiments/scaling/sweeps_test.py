"""Sweeps are composed, not enumerated by hand."""

import pytest

from experiments.scaling.sweeps import axis, product

WIDTHS, RATES = axis("width", (64, 128)), axis("rate", (1e-3, 3e-3))


def test_a_product_has_every_combination_and_the_last_axis_varies_fastest() -> None:
    assert [(p["width"], p["rate"]) for p in product(WIDTHS, RATES)] == [
        (64, 1e-3), (64, 3e-3), (128, 1e-3), (128, 3e-3)
    ]  # fmt: skip


def test_what_two_sweeps_set_is_refused() -> None:
    with pytest.raises(ValueError, match="width"):
        product(WIDTHS, WIDTHS)
