"""A CPU's cores as devices: rows of a batch side by side.

XLA splits one large product over the cores, but runs what lies between (attention's loop over blocks, norms, rotations,
small products) on one of them. Shown to JAX as a device each, the cores take a part of the batch's rows each, for all
of the step: on two cores the demo's step took 0.80 of the time, that of benchmarks/train_step.py 0.92.

JAX_NUM_CPU_DEVICES=1 turns it off, another number sets how many. Accelerators know nothing of it, and a run of several
processes stays with one device a process.
"""

import os
from typing import Any

import jax
import ml_collections

from data_pipeline import engines

_MOST = 8  # more were not tried; each has its part of every small operation to start


def show_cores() -> None:
    """Make a device of each core, up to eight. To be called before JAX's first use; what the user has set stays."""
    settings: Any = jax.config  # Any: its attributes are made at run time
    if settings.jax_num_cpu_devices == -1 and "xla_force_host_platform_device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        jax.config.update("jax_num_cpu_devices", min(_MOST, engines.cores()))


def for_batch(config: ml_collections.ConfigDict) -> list[jax.Device]:
    """The devices that a run uses: all, but on a CPU as many cores as the batch's rows can be split over.

    An explicit `config.mesh` means what it says, on a CPU too.
    """
    devices = jax.devices()
    of_cores = jax.default_backend() == "cpu" and jax.process_count() == 1
    mesh, train = config.mesh, config.train
    if not of_cores or (mesh.data, mesh.fsdp, mesh.tensor) != (1, -1, 1):
        return devices
    shares = train.batch_rows // train.microbatches if train.batch_rows % train.microbatches == 0 else 1
    return devices[: max(count for count in range(1, len(devices) + 1) if shares % count == 0)]
