"""How fast the chips along a mesh axis exchange bytes, and how long the usual collectives take.

Rings: of an array of S bytes over n chips, an all-gather or reduce-scatter brings S * (n - 1) / n bytes through each
chip's links, an all-reduce twice that.
"""

import math
from collections.abc import Mapping

from cometjax.chips import Topology
from cometjax.sharding import AXES


def axis_bandwidth(topology: Topology, sizes: Mapping[str, int], axis: str) -> float:
    """Bytes per second that a chip takes in from its neighbours along `axis`.

    TPU: an axis lies along one or more dimensions of the torus, each with a link in both directions where the dimension
    closes to a ring, and half of that where it is a line; `data` across slices goes over the network. GPU: NVLink
    within a host; groups that span hosts also need its network ports, one a GPU.
    """
    chip, members = topology.chip, sizes[axis]
    if chip.platform == "gpu":
        (host,) = topology.shape
        inner = math.prod(sizes[name] for name in AXES[AXES.index(axis) + 1 :])
        beside = max(1, min(members, host // inner))  # members of a group within one host
        if beside == members:
            return chip.link_bandwidth
        return min(chip.link_bandwidth, beside * chip.network_bandwidth)
    if axis == "data" and topology.slices > 1:
        return chip.network_bandwidth
    dimensions = [size for size in topology.shape if size > 1] or [1]
    slice_chips = math.prod(dimensions)
    share = math.log(members) / math.log(slice_chips) if slice_chips > 1 and members > 1 else 1.0
    spanned = min(len(dimensions), max(1, round(len(dimensions) * share)))
    longest = sorted(dimensions, reverse=True)[:spanned]
    # A ring takes the whole of a dimension; a part of it is a line.
    rings = [2 if members >= size and _closes(topology, size) else 1 for size in longest]
    return sum(rings) * chip.link_bandwidth


def _closes(topology: Topology, size: int) -> bool:
    """Whether a dimension of the torus has a link from its end to its start."""
    if len(topology.shape) == 3:
        return all(size % 4 == 0 for size in topology.shape)  # only whole cubes of 4x4x4 reach the optical switches
    return size == max(topology.chip.max_slice)


def gather_seconds(array_bytes: float, members: int, bandwidth: float) -> float:
    """Time of an all-gather to, or a reduce-scatter of, `array_bytes` on each of `members` chips."""
    return array_bytes * (members - 1) / members / bandwidth


def all_reduce_seconds(array_bytes: float, members: int, bandwidth: float) -> float:
    """Time of an all-reduce of `array_bytes`: a reduce-scatter and an all-gather."""
    return 2 * gather_seconds(array_bytes, members, bandwidth)
