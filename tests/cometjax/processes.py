"""Several processes that train one tiny run, on this machine's loopback or on hosts of their own: for tests.

A host of its own is a network namespace with an address, linked to the other's by a pair of virtual Ethernet devices.
What each process read is kept: `python -m tests.cometjax.processes` is `python -m cometjax.train` that writes it down.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from cometjax import train, train_loop
from data_pipeline import command_line
from data_pipeline.corpus import SplitReader
from tests.cometjax.tiny_run import ROOT

# How long the others may take to end once one is lost: the bar, a minute. Machines under load get more.
LOST_SECONDS = 60
_OBSERVE = "COMETJAX_TEST_OBSERVE"


@dataclasses.dataclass(frozen=True)
class Host:
    """Where a process runs: the address by which the others know it, and the words before its command."""

    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Ended:
    """What is left of a process; `code` is negative for a signal."""

    code: int
    out: str
    seconds: float


class Group:
    """The processes of one start of a run. Each writes to a file of its own in `folder`/logs."""

    def __init__(
        self,
        folder: pathlib.Path,
        workdir: pathlib.Path,
        hosts: Sequence[Host],
        overrides: Sequence[str] = (),
        own: Callable[[int], Sequence[str]] = lambda index: (),
    ) -> None:
        self.logs = workdir.parent / f"{workdir.name}-logs-{time.monotonic_ns()}"
        self.logs.mkdir(parents=True)
        address = f"{hosts[0].address}:{free_port()}"
        self.processes = [
            self._start(
                host,
                index,
                [
                    f"--config={folder / 'config.py'}", f"--workdir={workdir}", f"--config.corpus={folder / 'corpus'}",
                    f"--coordinator_address={address}", f"--num_processes={len(hosts)}", f"--process_id={index}",
                    *overrides, *own(index),
                ],
            )
            for index, host in enumerate(hosts)
        ]  # fmt: skip

    def _start(self, host: Host, index: int, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.logs / f"{index}.log").open("w") as log:
            return subprocess.Popen(
                [*host.prefix, sys.executable, "-m", "tests.cometjax.processes", *arguments],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {_OBSERVE: str(self.logs / f"{index}.jsonl"), "JAX_PLATFORMS": "cpu"},
            )

    def read(self, index: int, what: str) -> list:
        """What process `index` read, in order: "records" numbers of each batch, or "rows" as digests of each batch."""
        lines = (self.logs / f"{index}.jsonl").read_text().splitlines()
        return [line[what] for line in map(json.loads, lines) if what in line]

    def out(self) -> str:
        """What all have written so far."""
        return "\n".join(f"[{path.name}]\n{path.read_text()}" for path in sorted(self.logs.glob("*.log")))

    def wait_until(self, arrived: Callable[[], bool], seconds: float = 240) -> None:
        """Wait for something; fails when a process ends before."""
        deadline = time.monotonic() + seconds
        while not arrived():
            assert all(process.poll() is None for process in self.processes), self.out()
            assert time.monotonic() < deadline, self.out()
            time.sleep(0.005)

    def end(self, seconds: float = 240) -> list[Ended]:
        """Wait for all; kills and fails when one takes longer."""
        since = time.monotonic()
        ended: dict[int, float] = {}
        while len(ended) < len(self.processes):
            for index, process in enumerate(self.processes):
                if index not in ended and process.poll() is not None:
                    ended[index] = time.monotonic() - since
            if time.monotonic() - since > seconds:
                self.kill()
                raise AssertionError(f"only {sorted(ended)} ended in {seconds} s\n{self.out()}")
            time.sleep(0.02)
        return [
            Ended(process.returncode, (self.logs / f"{index}.log").read_text(), ended[index])
            for index, process in enumerate(self.processes)
        ]

    def kill(self) -> None:
        """End whatever still runs."""
        for process in self.processes:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def two_hosts(folder: pathlib.Path) -> Iterator[tuple[list[Host], Callable[[], None]]]:
    """Two network namespaces with addresses of their own, and a function that cuts the cable between them.

    Skips where the machine does not allow it. 192.0.2.0/24 is for documentation (RFC 5737): nobody's real address.
    """
    names = [f"cometjax-{os.getpid()}-{index}" for index in range(2)]
    addresses = [f"192.0.2.{index + 1}" for index in range(2)]
    if shutil.which("ip") is None:
        pytest.skip("SKIPPED FOR LACK OF TOOLS: no `ip` for network namespaces; install iproute2")
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable1", "netns", names[1])
        for index, name in enumerate(names):
            _ip("-n", name, "addr", "add", f"{addresses[index]}/24", "dev", f"cable{index}")
            _ip("-n", name, "link", "set", f"cable{index}", "up")
            # As machines do, and unlike a Debian that calls itself 127.0.1.1: an own name that the other can reach.
            (folder / f"{name}.hosts").write_text(f"127.0.0.1 localhost\n{addresses[index]} {socket.gethostname()}\n")
    except subprocess.CalledProcessError as refused:
        _remove(names)
        pytest.skip(f"SKIPPED FOR LACK OF RIGHTS: no network namespaces here: {refused.stderr.strip()}")
    # `ip netns exec` gives a process a mount namespace as well: the bind is seen by nobody else.
    bind = 'mount --bind "$0" /etc/hosts && exec "$@"'
    hosts = [
        Host(address, ("ip", "netns", "exec", name, "sh", "-c", bind, str(folder / f"{name}.hosts")))
        for name, address in zip(names, addresses, strict=True)
    ]
    try:
        yield hosts, lambda: _ip("-n", names[0], "link", "set", "cable0", "down")
    finally:
        _remove(names)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _remove(names: Sequence[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextlib.contextmanager
def observed(file: pathlib.Path) -> Iterator[None]:
    """Write down, a line each, the training records that this process reads and the rows that it trains on."""
    with file.open("w", buffering=1) as lines, pytest.MonkeyPatch.context() as patch:
        records, batches = SplitReader.records, train_loop.train_batches

        def read(self: SplitReader, indices: Sequence[int]) -> list:
            if self.name == "train":
                lines.write(json.dumps({"records": [int(index) for index in indices]}) + "\n")
            return records(self, indices)

        class Observed:
            def __init__(self, *args: object, **kwargs: object) -> None:
                self._batches = batches(*args, **kwargs)

            def __next__(self) -> dict:
                batch = next(self._batches)
                lines.write(json.dumps({"rows": digests(batch)}) + "\n")
                return batch

            def close(self) -> None:
                self._batches.close()

        patch.setattr(SplitReader, "records", read)
        patch.setattr(train_loop, "train_batches", Observed)
        yield


def digests(batch: dict[str, np.ndarray]) -> list[str]:
    """Of each row of a batch, all its arrays."""
    rows = len(batch["tokens_BxL"])
    return [
        hashlib.sha256(b"".join(batch[name][row].tobytes() for name in sorted(batch))).hexdigest()
        for row in range(rows)
    ]


if __name__ == "__main__":
    with observed(pathlib.Path(os.environ[_OBSERVE])):
        command_line.run(train.main, train._define_flags)
