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
    ("text", "slices", "count"),
    [("v5p:4x4x4", 1, 64), ("v5e:16x16", 2, 512), ("v6e:4x8", 1, 32), ("h100:8", 1, 8), ("h200:8x2", 1, 16)],
)
def test_a_topology_is_read_and_written_alike(text, slices, count) -> None:
    topology = chips.parse_topology(text, slices)
    assert topology.chips == count and topology.name == text


@pytest.mark.parametrize(
    ("text", "slices", "says"),
    [
        ("v9z:4x4", 1, r"--topology: 'v9z:4x4' is not known; known: v5e:16x16, v5p:4x4x4"),
        ("v5p", 1, r"'v5p' is not known"),
        ("v5p:4x4", 1, r"v5p does not come as 4x4; give 3 numbers, at most 16x16x24"),
        ("v5e:32x32", 1, r"v5e does not come as 32x32"),
        ("v5e:0x4", 1, r"v5e does not come as 0x4"),
        ("h100:16", 1, r"h100 does not come as 16; give 1 number, at most 8, and hosts"),
        ("h100:8", 2, r"--slices: is for TPUs; give hosts as --topology=h100:8x2"),
        ("v5e:4x4", 0, r"--slices: 0 slices"),
    ],
)
def test_what_does_not_exist_is_refused_naming_what_does(text, slices, says) -> None:
    with pytest.raises(UserError, match=says):
        chips.parse_topology(text, slices)
