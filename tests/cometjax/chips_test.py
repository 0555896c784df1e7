"""Chips by name, and the topologies that the planner takes or refuses."""

import pytest

from cometjax import chips
from data_pipeline.errors import UserError


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5p", 459e12), ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("NVIDIA H200", 989e12), ("cpu", None)],
)
def test_peak_is_known_by_device_kind_or_not_at_all(kind, peak):
    assert chips.peak_flops_per_second(kind) == peak


@pytest.mark.parametrize(
    ("kind", "peak"), [("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 NVL", 835e12), ("NVIDIA H200 NVL", None)]
)
def test_a_pcie_card_has_not_the_figures_of_the_sxm_part(kind, peak):
    assert chips.peak_flops_per_second(kind) == peak
    assert chips.of_device_kind(kind) is None


@pytest.mark.parametrize(
    ("text", "count", "slices"),
    [
        ("v5p:4x4x4", 64, 1),
        ("2xv5e:16x16", 512, 2),
        ("v6e:4x8", 32, 1),
        ("h100:2", 2, 1),
        ("h100:64", 64, 8),
        ("h200:8", 8, 1),
    ],
)
def test_a_topology_is_read_and_written_alike(text, count, slices) -> None:
    topology = chips.parse_topology(text)
    assert (topology.chips, topology.slices, topology.name) == (count, slices, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v9z:4x4", r"--topology: 'v9z:4x4' is not known; known: v5e:16x16, v5p:4x4x4"),
        ("v5p", r"'v5p' is not known"),
        ("v5p:4x4", r"v5p does not come as v5p:4x4; a slice has 3 dimensions, at most 16x16x24"),
        ("v5e:32x32", r"v5e does not come as v5e:32x32"),
        ("v5e:0x4", r"v5e does not come as v5e:0x4"),
        ("0xv5e:4x4", r"use 1 slice or more"),
        ("h100:12", r"h100 does not come as h100:12; give the number of GPUs: up to 8, or a multiple of it"),
        ("2xh100:8", r"h100 does not come as 2xh100:8"),
    ],
)
def test_what_does_not_exist_is_refused_naming_what_does(text, says) -> None:
    with pytest.raises(UserError, match=says):
        chips.parse_topology(text)
