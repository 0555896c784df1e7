"""Memory of the devices and of the host, as the runtime tells it: no allocation is measured, none is waited for."""

import os
import pathlib

import jax

GiB = 2**30
# Key of a metrics line -> key of `Device.memory_stats`.
_STATISTICS = {
    "memory/device_in_use_gib": "bytes_in_use",
    "memory/device_peak_gib": "peak_bytes_in_use",
    "memory/device_limit_gib": "bytes_limit",
}


def memory() -> dict[str, float]:
    """GiB in use, at the peak, and at most, of this process's fullest device; and of its own resident memory.

    Devices that do not tell (CPUs) are left out.
    """
    per_device = [statistics for device in jax.local_devices() if (statistics := device.memory_stats())]
    values = {
        key: max(statistics[name] for statistics in per_device) / GiB
        for key, name in _STATISTICS.items()
        if per_device and all(name in statistics for statistics in per_device)
    }
    resident = _resident_bytes()
    return values if resident is None else values | {"memory/host_resident_gib": resident / GiB}


def _resident_bytes() -> int | None:
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
