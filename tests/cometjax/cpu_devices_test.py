import os
import subprocess
import sys
import types

import jax
import pytest

from cometjax import config as configs
from cometjax import cpu_devices
from data_pipeline import engines

SHOWN = "from cometjax import cpu_devices; import jax; cpu_devices.show_cores(); print(len(jax.devices()))"


def test_each_core_is_a_device():
    program = [sys.executable, "-c", SHOWN]
    kept = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    done = subprocess.run(program, env=kept, capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) == min(8, engines.cores())


@pytest.mark.parametrize(("number", "flags", "set_to"), [(-1, "", 3), (1, "", None), (-1, "=5", None)])
def test_what_the_user_has_set_stays(monkeypatch, number, flags, set_to):
    settings = {"jax_num_cpu_devices": number}
    monkeypatch.setattr(jax, "config", types.SimpleNamespace(update=settings.__setitem__, jax_num_cpu_devices=number))
    monkeypatch.setattr(engines, "cores", lambda: 3)
    monkeypatch.setenv("XLA_FLAGS", flags and "--xla_force_host_platform_device_count" + flags)
    cpu_devices.show_cores()
    assert settings["jax_num_cpu_devices"] == (number if set_to is None else set_to)


@pytest.mark.parametrize(
    ("rows", "microbatches", "mesh", "used"),
    [
        (8, 1, {}, 4),
        (12, 2, {}, 3),
        (7, 1, {}, 1),
        (6, 1, {}, 3),
        (7, 2, {}, 1),  # refused elsewhere, by name
        (7, 1, {"data": -1, "fsdp": 1}, 4),  # an explicit mesh: refused elsewhere where it does not fit
        (7, 1, {"fsdp": 4}, 4),
    ],
)
def test_a_batch_uses_as_many_cores_as_its_rows_can_be_split_over(monkeypatch, rows, microbatches, mesh, used):
    config = configs.default_config()
    config.train.update(batch_rows=rows, microbatches=microbatches)
    config.mesh.update(mesh)
    monkeypatch.setattr(jax, "devices", lambda: ["core"] * 4)
    assert len(cpu_devices.for_batch(config)) == used


def test_accelerators_are_all_used_whatever_the_rows(monkeypatch):
    config = configs.default_config()
    config.train.batch_rows = 7
    monkeypatch.setattr(jax, "devices", lambda: ["chip"] * 4)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert len(cpu_devices.for_batch(config)) == 4
