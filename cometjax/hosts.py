"""The processes of one run: how they find each other, start together, and leave together.

Found in this order:
1. Flags: --coordinator_address, --num_processes, --process_id. Address "auto" leaves it to JAX (TPU VMs, MPI).
2. The environment: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, and JAX_PROCESS_ID or an indexed Kubernetes Job's
   JOB_COMPLETION_INDEX.
3. A Slurm step of several tasks (srun).
4. A Cloud TPU slice of several hosts, or several slices, on GKE.
Else the process is alone, and nothing of this is used.

Exit codes of a run of several processes: 0 finished, 2 a user's mistake (told by all, whoever met it), 143 saved after
SIGTERM, 1 a failure of this process (traceback), 75 another process was lost: start all of them again. JAX's own watch
ends a process by SIGABRT (134 in a shell) when a peer is silent for HEARTBEAT_TIMEOUT_SECONDS, or the first process is
gone, and names it; it means the same as 75. (PYTHONFAULTHANDLER=1 adds the stacks of all threads.)
"""

import contextlib
import dataclasses
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
from jax._src import distributed

from data_pipeline.command_line import USER_ERROR_EXIT_CODE
from data_pipeline.errors import UserError

# EX_TEMPFAIL of sysexits.h: trying again may help.
LOST_PEER_EXIT_CODE = 75
# A process that is silent for this long is given up, and all others with it.
HEARTBEAT_TIMEOUT_SECONDS = 30
# How long the processes of a run may take to start, the first to the last.
START_TIMEOUT_SECONDS = 300
# How long a process that ends in an error waits for the others to end in theirs.
_LEAVE_SECONDS = 10.0
# How often the others look whether one process has left for a user's mistake, and then wait whether it is theirs too.
_LOOK_SECONDS = 1.0
_MISTAKES = "cometjax/mistakes/"
_AUTO = "auto"
_LEAVING = threading.Lock()  # never given back
# What errors of a collective say when a peer is gone: gloo on CPU, NCCL on GPU, the coordination service anywhere.
_LOST_PEER = re.compile(r"gloo|nccl|connection|heartbeat|coordination|unavailable|barrier", re.IGNORECASE)
# How such an error begins, whatever its type: where a failed collective's result is an argument, it is a ValueError.
_STATUS = re.compile(r"[A-Z_]+: ")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where the processes of a run meet, and which one this is; no field set: JAX finds out.

    `local_device` is the only device of the machine that this process takes; None: all that it sees.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device: int | None = None


def find_cluster(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """The cluster that flags or environment tell of, or None for a process that is alone.

    Raises UserError when they contradict themselves or leave something out.
    """
    if coordinator_address == _AUTO and num_processes is None and process_id is None:
        return Cluster()
    given = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    if any(value is not None for value in given.values()):
        return _checked("flags", given)
    if "JAX_NUM_PROCESSES" in environment:
        process = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environment else "JOB_COMPLETION_INDEX"
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", process)
        return _checked("environment", {name: environment.get(name) for name in names})
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return _from_slurm(environment)
    several_hosts = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    if several_hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return Cluster()
    return None


def _checked(where: str, given: Mapping[str, str | int | None]) -> Cluster | None:
    missing = [name for name, value in given.items() if value in (None, "")]
    if missing:
        raise UserError(f"{', '.join(missing)} not set", where=where, fix=f"set all of {', '.join(given)}, or none")
    address, *numbers = given.values()
    names = list(given)
    if not re.fullmatch(r".+:\d{1,5}", str(address)):
        raise UserError(f"{address!r} is not HOST:PORT", where=names[0], fix="give the first process's host and a port")
    try:
        count, index = (int(str(number)) for number in numbers)
    except ValueError as error:
        raise UserError(f"{numbers} are not numbers", where=f"{names[1]}, {names[2]}") from error
    if not 0 <= index < count:
        raise UserError(f"{index} of {count} processes", where=names[2], fix=f"use 0 to {count - 1}")
    return None if count == 1 else Cluster(str(address), count, index)


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    # JAX's own reading of Slurm gives each process one GPU, even where it has a node for itself.
    nodes = environment["SLURM_STEP_NODELIST"]
    first = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
    assert first is not None, nodes
    job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", 0))
    port = 61440 + (job + step) % 4096
    tasks_here = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    alone_on_node = set(re.sub(r"\(x\d+\)", "", tasks_here).split(",")) == {"1"}
    bound = "SLURM_GPUS_PER_TASK" in environment
    return Cluster(
        coordinator_address=f"{first[1]}{first[2] or ''}:{port}",
        num_processes=int(environment["SLURM_STEP_NUM_TASKS"]),
        process_id=int(environment["SLURM_PROCID"]),
        local_device=None if alone_on_node or bound else int(environment["SLURM_LOCALID"]),
    )


@contextlib.contextmanager
def joined(cluster: Cluster | None) -> Iterator[None]:
    """Be one of the processes of `cluster` for the block; with None, nothing happens.

    Out of the block a process of a cluster goes in one of three ways. It ended, or leaves by SystemExit as all do at
    the same step: it waits for the others. A UserError: it is printed, and the others leave with it, whatever they are
    doing. Anything else: it is gone at once, and the others notice.
    """
    if cluster is None:
        yield
        return
    _join(cluster)
    ended = threading.Event()
    threading.Thread(target=_watch_for_mistakes, args=(ended,), name="mistakes", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        _leave(128 + signal.SIGINT, "")
    except UserError as error:
        _tell_mistake(error)
        _leave(USER_ERROR_EXIT_CODE, f"error: {error}", wait=True)
    except Exception as error:
        lost = lost_peer(error)
        if lost is None:
            _leave(1, traceback.format_exc())
        # The first one's end would end the others before they could say the same.
        linger = _LEAVE_SECONDS / 2 if jax.process_index() == 0 else 0
        text = f"error: another process of this run was lost ({lost}); {_advice(lost)}"
        _leave(LOST_PEER_EXIT_CODE, text, linger=linger)
    finally:
        # Not reached from _leave.
        ended.set()
        jax.distributed.shutdown()


def _tell_mistake(error: UserError) -> None:
    """Leave a mistake where `_watch_for_mistakes` of the other processes finds it."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody is there any more
        coordination_client().key_value_set(f"{_MISTAKES}{jax.process_index()}", str(error))


def _watch_for_mistakes(ended: threading.Event) -> None:
    """End this process when another one has left for a user's mistake; for a thread of its own.

    The main thread waits for that process in a collective by then. To notice that it is gone would be to start again,
    and to meet the same mistake.
    """
    client = coordination_client()
    while not ended.wait(_LOOK_SECONDS):
        try:
            mistakes = sorted(client.key_value_dir_get(_MISTAKES))
        except jax.errors.JaxRuntimeError:  # the service is gone, which JAX's own watch tells
            return
        if mistakes and not ended.wait(_LOOK_SECONDS):
            key, text = mistakes[0]
            _leave(USER_ERROR_EXIT_CODE, f"error: process {key.removeprefix(_MISTAKES)}: {text}", wait=True)


def _join(cluster: Cluster) -> None:
    # The service takes SIGTERM for itself; cometjax.preemption does.
    jax.config.update("jax_enable_preemption_service", False)
    if "PYTHONFAULTHANDLER" not in os.environ:
        # JAX says which peer is lost, and aborts; absl's fault handler would bury that under every thread's stack.
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
    if cluster.coordinator_address is not None:
        _await_coordinator(cluster)
    jax.distributed.initialize(
        cluster.coordinator_address,
        cluster.num_processes,
        cluster.process_id,
        local_device_ids=cluster.local_device,
        cluster_detection_method=None if cluster.coordinator_address is None else "deactivate",
        initialization_timeout=START_TIMEOUT_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
    )


def _await_coordinator(cluster: Cluster) -> None:
    """JAX ends the process, with a page of stack, when nobody answers; here that is a line."""
    host, _, port = str(cluster.coordinator_address).rpartition(":")
    host = host.strip("[]")  # of an IPv6 address
    if cluster.process_id == 0:
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                server.bind(("", int(port)))
            except OSError as error:
                fix = "choose another port"
                raise UserError(f"port {port}: {error.strerror}", where="coordinator", fix=fix) from error
        return
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"nobody answers in {START_TIMEOUT_SECONDS} s ({error.strerror or error})",
                    where=f"coordinator {host}:{port}",
                    fix="look into the log of process 0, and at the names and ports between the machines",
                ) from error
            time.sleep(0.2)


def coordination_client() -> Any:
    """The client of the service where the processes meet; JAX itself has no public name for it."""
    return distributed.global_state.client


def lost_peer(error: BaseException | None) -> str | None:
    """The first line of JAX's error that says that a peer is gone, in an error or what it came from; or None."""
    while error is not None:
        of_jax = isinstance(error, jax.errors.JaxRuntimeError) or _STATUS.match(str(error))
        if of_jax and _LOST_PEER.search(str(error)):
            return str(error).splitlines()[0]
        error = error.__cause__ or error.__context__
    return None


def _advice(lost: str) -> str:
    if "context initialization failed" not in lost:
        return "start all processes again with the same workdir to go on from the last checkpoint"
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "no address"
    return (
        "CPU processes meet at the address of each machine's own name, which must be one that the others reach: "
        f"{name} is {address} here, see /etc/hosts"
    )


def _leave(code: int, text: str, *, wait: bool = False, linger: float = 0) -> NoReturn:
    """End this process, and say why, without the wait for all others that JAX adds to an interpreter's end.

    Of two threads that would end it, the second waits for the first.
    """
    _LEAVING.acquire()
    if text:
        print(text.rstrip(), file=sys.stderr, flush=True)
    time.sleep(linger)
    if wait:
        together = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        together.start()
        together.join(_LEAVE_SECONDS)
    for child in multiprocessing.active_children():  # they outlive a process that ends without cleaning up
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
