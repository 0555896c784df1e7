"""Who the other processes are, by flags, environment, Slurm or GKE; what is said when one is not found, or leaves."""

import os
import socket
import subprocess
import sys
import textwrap

import jax
import pytest

from cometjax import hosts
from cometjax.hosts import Cluster, find_cluster
from data_pipeline.errors import UserError
from tests.cometjax.processes import free_port
from tests.cometjax.tiny_run import ROOT

ADDRESS = "host0:7070"


def test_a_process_without_flags_and_environment_is_alone():
    assert find_cluster(None, None, None, {}) is None
    assert find_cluster(ADDRESS, 1, 0, {}) is None
    assert find_cluster(None, None, None, {"SLURM_STEP_NUM_TASKS": "1", "TPU_WORKER_HOSTNAMES": "host0"}) is None


def test_flags_come_before_the_environment():
    environment = {"JAX_COORDINATOR_ADDRESS": "host9:1", "JAX_NUM_PROCESSES": "8", "JAX_PROCESS_ID": "7"}
    assert find_cluster(ADDRESS, 4, 3, environment) == Cluster(ADDRESS, 4, 3)
    assert find_cluster(None, None, None, environment) == Cluster("host9:1", 8, 7)
    assert find_cluster("auto", None, None, environment) == Cluster()


def test_the_index_of_a_kubernetes_job_is_the_number_of_the_process():
    environment = {"JAX_COORDINATOR_ADDRESS": ADDRESS, "JAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "2"}
    assert find_cluster(None, None, None, environment) == Cluster(ADDRESS, 4, 2)


SLURM = {"SLURM_JOB_ID": "70", "SLURM_STEP_ID": "2", "SLURM_LOCALID": "1", "SLURM_PROCID": "5"}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu7", "gpu7"), ("gpu[03-05,9]", "gpu03"), ("a1,b2", "a1"), ("node-[1,4]", "node-1")],
)
@pytest.mark.parametrize(
    ("tasks", "bound", "device"), [("1(x4)", {}, None), ("2(x2),1", {}, 1), ("4", {"SLURM_GPUS_PER_TASK": "1"}, None)]
)
def test_slurm_tells_the_first_node_and_which_gpu_is_whose(nodes, first, tasks, bound, device):
    step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": nodes, "SLURM_STEP_TASKS_PER_NODE": tasks}
    assert find_cluster(None, None, None, SLURM | step | bound) == Cluster(f"{first}:{61440 + 72}", 8, 5, device)


@pytest.mark.parametrize("environment", [{"TPU_WORKER_HOSTNAMES": "a,b"}, {"MEGASCALE_NUM_SLICES": "2"}])
def test_jax_finds_the_hosts_of_a_tpu_slice_and_other_slices(environment):
    assert find_cluster(None, None, None, environment) == Cluster()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((ADDRESS, 2, None), r"flags: --process_id not set; set all of --coordinator_address, --num_processes"),
        ((None, 2, 0), r"flags: --coordinator_address not set"),
        (("host0", 2, 0), r"--coordinator_address: 'host0' is not HOST:PORT"),
        ((ADDRESS, 2, 2), r"--process_id: 2 of 2 processes; use 0 to 1"),
    ],
)
def test_flags_that_leave_something_out_or_contradict_themselves_are_refused(flags, says):
    with pytest.raises(UserError, match=says):
        find_cluster(*flags, {})


def test_an_environment_that_is_no_number_is_refused():
    environment = {"JAX_COORDINATOR_ADDRESS": ADDRESS, "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}
    with pytest.raises(UserError, match=r"JAX_NUM_PROCESSES, JAX_PROCESS_ID: \['two', '0'\] are not numbers"):
        find_cluster(None, None, None, environment)


def test_a_first_process_that_nobody_finds_or_a_port_that_is_taken_is_told_in_a_line(monkeypatch):
    monkeypatch.setattr(hosts, "START_TIMEOUT_SECONDS", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"coordinator 127\.0\.0\.1:{port}: nobody answers in 0\.5 s .*refused"):
            hosts._await_coordinator(Cluster(f"127.0.0.1:{port}", 2, 1))
        taken.listen()
        hosts._await_coordinator(Cluster(f"127.0.0.1:{port}", 2, 1))
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"coordinator: port {port}: .*in use; choose another port"):
            hosts._await_coordinator(Cluster(f"127.0.0.1:{port}", 2, 0))


def test_a_first_process_with_an_ipv6_address_is_found():
    with socket.socket(socket.AF_INET6) as server:
        try:
            server.bind(("::1", 0))
        except OSError as error:
            pytest.skip(f"SKIPPED FOR LACK OF IPV6: {error}")
        server.listen()
        hosts._await_coordinator(Cluster(f"[::1]:{server.getsockname()[1]}", 2, 1))


PROCESS = """
    import sys, time
    from cometjax import agreement, hosts
    from data_pipeline.errors import UserError
    index = int(sys.argv[2])
    with hosts.joined(hosts.Cluster(f"127.0.0.1:{sys.argv[1]}", 2, index)):
        for error in ("", "disk full" if index else "", ""):
            print(repr(agreement.first_error_beside_the_steps(error)))
        if index:
            raise UserError("damaged", where="shard 3")
        time.sleep(100)  # as in a collective that the other never comes to
"""


def test_one_process_tells_the_other_of_its_error_and_takes_it_along_when_it_leaves_for_a_mistake():
    port, pipe = free_port(), subprocess.PIPE
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROCESS), str(port), str(index)],
            cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for index in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=90) for process in processes]
    assert [out for out, _ in said] == ["''\n'process 1: disk full'\n''\n"] * 2
    assert [process.returncode for process in processes] == [2, 2]
    assert [error for _, error in said] == ["error: process 1: shard 3: damaged\n", "error: shard 3: damaged\n"]


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer\nmore", "Connection closed by peer"),
        ("INTERNAL: NCCL operation ncclGroupEnd() failed", "ncclGroupEnd"),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate", None),
    ],
)
def test_an_error_of_a_collective_is_told_from_a_failure_of_this_process(text, lost):
    error = jax.errors.JaxRuntimeError(text)
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = error
    # The type that JAX raises where a failed collective's result is an argument.
    for each in (error, wrapped, ValueError(text)):
        found = hosts.lost_peer(each)
        assert (found is None) if lost is None else (lost in found and "\n" not in found)
    assert hosts.lost_peer(ValueError("connection")) is None


def test_who_cannot_meet_is_told_his_own_name_and_address():
    advice = hosts._advice("UNKNOWN: Gloo context initialization failed: timed out connecting")
    assert socket.gethostname() in advice and "/etc/hosts" in advice
    assert hosts._advice("Connection closed by peer").startswith("start all processes again")
