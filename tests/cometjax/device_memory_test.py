import dataclasses

import jax
import pytest

from cometjax import device_memory


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    statistics: dict | None

    def memory_stats(self):
        return self.statistics


def test_a_process_knows_its_own_resident_memory_and_a_cpu_tells_nothing():
    values = device_memory.memory()
    assert values.keys() == {"memory/host_resident_gib"}
    assert 0.05 < values["memory/host_resident_gib"] < 200


@pytest.mark.parametrize("limit", [{}, {"bytes_limit": 16 * 2**30}])
def test_of_several_devices_the_fullest_counts_and_what_one_does_not_tell_is_left_out(monkeypatch, limit):
    def statistics(in_use, peak):
        return {"bytes_in_use": in_use * 2**30, "peak_bytes_in_use": peak * 2**30, "largest_free_block_bytes": 0}

    devices = [FakeDevice(statistics(3, 4) | limit), FakeDevice(statistics(2, 5) | limit)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    values = device_memory.memory()
    del values["memory/host_resident_gib"]
    expected = {"memory/device_in_use_gib": 3, "memory/device_peak_gib": 5}
    assert values == (expected | {"memory/device_limit_gib": 16} if limit else expected)
