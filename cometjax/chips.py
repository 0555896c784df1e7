"""What one accelerator can do, by the vendors' own figures, and the topologies that are known.

Bandwidths are bytes per second, capacities bytes, peaks dense bfloat16 FLOP/s (a multiplication and an addition count
as two). Peaks are bounds: no program reaches them.

Sources. TPU: the architecture pages docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e} as of 2026. Links there are per chip
and both directions together (v5p 1,200 GB/s over 6 links, v5e 400 GB/s over 4; v6e 3,200 Gbit/s one way over 4), so one
way of one link has a twelfth (v5p) or an eighth of that; data-centre network is per pod or per chip in bits (v5p
50 Gbit/s a chip, v5e 6.4 Tbit/s and v6e 25.6 Tbit/s per 256 chips). GPU: NVIDIA's data sheets of the SXM parts (A100
80 GB, H100, H200, HGX B200); NVLink there is both directions together (600, 900, 900, 1,800 GB/s), the network between
hosts that of the DGX/HGX designs: one port a GPU of 200 (A100) or 400 Gbit/s. PCIe cards of the same names are slower
(data sheets of H100 PCIe and H100 NVL) and are not planned for. What XLA leaves a program of a TPU's
memory is what it says itself when it runs out ("of 15.75G hbm").
"""

import dataclasses
import math
import re

from data_pipeline.errors import UserError

GiB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator. `device_kinds` are the starts of jax's `device_kind` that mean it.

    `link_bandwidth` is one way along one link, `links` how many a chip has; `network_bandwidth` is one way, per chip,
    between slices (TPU) or hosts (GPU). `hbm_usable` is what a program gets. `max_slice` is the largest slice, one
    number per dimension of the torus (for a GPU: GPUs of a host).
    """

    name: str
    platform: str
    device_kinds: tuple[str, ...]
    peak_flops: float
    hbm_usable: float
    hbm_bandwidth: float
    link_bandwidth: float
    links: int
    network_bandwidth: float
    max_slice: tuple[int, ...]


CHIPS = (
    Chip(
        "v5e", "tpu", ("TPU v5 lite", "TPU v5e"), 197e12, 15.75 * GiB, 819e9, 50e9, 4, 3.125e9, (16, 16)
    ),
    Chip(
        "v5p", "tpu", ("TPU v5p", "TPU v5"), 459e12, 95.74 * GiB, 2765e9, 100e9, 6, 6.25e9, (16, 16, 24)
    ),
    Chip(
        "v6e", "tpu", ("TPU v6 lite", "TPU v6e"), 918e12, 31.25 * GiB, 1600e9, 100e9, 4, 12.5e9, (16, 16)
    ),
    Chip("a100", "gpu", ("NVIDIA A100",), 312e12, 80e9, 2039e9, 300e9, 1, 25e9, (8,)),
    Chip("h100", "gpu", ("NVIDIA H100",), 989e12, 80e9, 3350e9, 450e9, 1, 50e9, (8,)),
    Chip("h200", "gpu", ("NVIDIA H200",), 989e12, 141e9, 4800e9, 450e9, 1, 50e9, (8,)),
    Chip("b200", "gpu", ("NVIDIA B200",), 2250e12, 180e9, 7700e9, 900e9, 1, 50e9, (8,)),
)  # fmt: skip

# Trained on, but not planned for: the peak alone, None where it is not known.
_OTHER_PEAKS = {"TPU v4": 275e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": 835e12, "NVIDIA H200 NVL": None}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` slices (GPU: hosts) of `shape` chips each."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def slice_name(self) -> str:
        """One slice: `v5p:4x4x4`, `h100:8`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def name(self) -> str:
        """As the command line takes it: `v5p:4x4x4`, `2xv5e:16x16`, `h100:64`."""
        if self.chip.platform == "gpu":
            return f"{self.chip.name}:{self.chips}"
        return f"{self.slices}x{self.slice_name}" if self.slices > 1 else self.slice_name


def peak_flops_per_second(device_kind: str) -> float | None:
    """Dense bfloat16 peak of one device of jax's `device_kind`, or None where it is not known (every CPU)."""
    chip = of_device_kind(device_kind)
    if chip is not None:
        return chip.peak_flops
    return next((peak for kind, peak in _OTHER_PEAKS.items() if device_kind.startswith(kind)), None)


def of_device_kind(device_kind: str) -> Chip | None:
    """The chip of jax's `device_kind`, or None where it is not known; a PCIe card is not the SXM part of its name."""
    if device_kind.startswith(tuple(_OTHER_PEAKS)):
        return None
    starts = [(kind, chip) for chip in CHIPS for kind in chip.device_kinds if device_kind.startswith(kind)]
    return max(starts, key=lambda start: len(start[0]))[1] if starts else None


def parse_topology(text: str) -> Topology:
    """The topology of `v5p:4x4x4`, `2xv5e:16x16` (two slices), or `h100:64` (GPUs, in hosts of eight).

    Raises:
      UserError: an unknown chip, or a shape that it does not come in; names those known.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z][a-z0-9]*):(\d+(?:x\d+)*)", text)
    chip = next((chip for chip in CHIPS if match and chip.name == match[2]), None)
    if not match or chip is None:
        gpus = ", ".join(f"{chip.name}:8" for chip in CHIPS if chip.platform == "gpu")
        known = f"v5e:16x16, v5p:4x4x4, v6e:16x16 (other shapes and 2xv5e:16x16 too), {gpus} (other numbers too)"
        raise UserError(f"{text!r} is not known", where="--topology", fix=f"known: {known}")
    shape = tuple(int(size) for size in match[3].split("x"))
    if chip.platform == "gpu":
        return _hosts_of_gpus(chip, shape, match)
    slices, dimensions = int(match[1] or 1), len(chip.max_slice)
    if len(shape) != dimensions or min(shape) < 1 or not _fits(shape, chip.max_slice):
        largest = "x".join(map(str, chip.max_slice))
        raise _no_such(match, f"a slice has {dimensions} dimensions, at most {largest}")
    if slices < 1:
        raise _no_such(match, "use 1 slice or more")
    return Topology(chip, shape, slices)


def _hosts_of_gpus(chip: Chip, shape: tuple[int, ...], match: re.Match[str]) -> Topology:
    (host,), gpus = chip.max_slice, shape[0]
    if match[1] or len(shape) > 1 or gpus < 1 or (gpus > host and gpus % host):
        raise _no_such(match, f"give the number of GPUs: up to {host}, or a multiple of it")
    return Topology(chip, (min(gpus, host),), max(1, gpus // host))


def _no_such(match: re.Match[str], fix: str) -> UserError:
    return UserError(f"{match[2]} does not come as {match[0]}", where="--topology", fix=fix)


def _fits(shape: tuple[int, ...], largest: tuple[int, ...]) -> bool:
    return all(size <= limit for size, limit in zip(sorted(shape), sorted(largest), strict=True))
