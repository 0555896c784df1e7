"""GKE JobSet manifests: the hosts of one or more TPU slices, or GPU nodes, restarted together until the run is done.

API: jobset.x-k8s.io/v1alpha2 (https://jobset.sigs.k8s.io) and GKE's node labels for TPU slices
(https://cloud.google.com/kubernetes-engine/docs/how-to/tpus).
"""

import dataclasses
import pathlib
import re
import shlex
from typing import Any

import ml_collections
import yaml

from cometjax import chips
from cometjax.pod_run import PlannedDevice, planned_devices
from data_pipeline.errors import UserError
from experiments.launch.job import Job, Trial

# Accelerator label of a TPU generation's multi-host slices, and chips of each of their hosts.
_TPUS = {"v5e": ("tpu-v5-lite-podslice", 4), "v5p": ("tpu-v5p-slice", 4), "v6e": ("tpu-v6e-slice", 4)}
_COORDINATOR_PORT = 8476
_LABEL, _LONGEST_LABEL = re.compile(r"[a-z][-a-z0-9]*"), 63  # RFC 1035
_USER_ERROR = 2  # what every command exits with when it was called wrongly: starting it again would not help


def default_config() -> ml_collections.ConfigDict:
    """What a GKE cluster needs to know, by `--gke.KEY=VALUE`."""
    config = ml_collections.ConfigDict()
    config.image = ""  # container image that holds cometjax and its configuration files; needed
    config.namespace = "default"  # of Kubernetes
    config.topology = ""  # a TPU slice, as the planner names it: v5p:4x4x4
    config.slices = 1  # TPU slices, joined by the data-centre network
    config.gpu = ""  # instead of a topology: GKE's name of the accelerator, as nvidia-h100-80gb
    config.nodes = 1  # GPU nodes
    config.gpus_per_node = 8  # of the accelerator that gpu names
    config.claim = ""  # PersistentVolumeClaim (ReadWriteMany) that holds corpus and workdir; needed
    config.mount_path = "/data"  # where it is mounted; corpus and workdir lie below
    config.queue = ""  # Kueue LocalQueue; "" = none
    config.grace_seconds = 120  # between SIGTERM and SIGKILL, for the save
    config.max_restarts = 100  # of the JobSet, after which it has failed
    config.environment = ()  # as ("XLA_FLAGS=--xla_dump_to=/data/xla",)
    return config


def render(job: Job, config: ml_collections.ConfigDict) -> dict[str, str]:
    """File name → YAML text: one manifest, or one for each trial.

    Raises UserError for a missing or impossible value, and for names that JobSet refuses.
    """
    _check(job, config)
    if not job.trials:
        return {"train.yaml": _text(manifest(job, config))}
    return {f"{trial.name}.yaml": _text(manifest(job, config, trial)) for trial in job.trials}


def submit(_: Job, out: pathlib.Path) -> str:
    """The command that submits what was written to `out`."""
    return f"kubectl apply -f {shlex.quote(str(out))}"


def devices(config: ml_collections.ConfigDict) -> list[PlannedDevice]:
    """TPU chips or GPUs of the whole job."""
    if config.topology:
        return planned_devices(dataclasses.replace(_slice(config), slices=config.slices))
    return [PlannedDevice("gpu", 0, node) for node in range(config.nodes) for _ in range(config.gpus_per_node)]


def manifest(job: Job, config: ml_collections.ConfigDict, trial: Trial | None = None) -> dict[str, Any]:
    """The JobSet of a run as nested dictionaries."""
    hosts, replicas = _shape(config)
    name = job.name if trial is None else f"{job.name}-{trial.name}"
    _check_name(name, hosts, replicas)
    metadata: dict[str, Any] = {"name": name, "namespace": config.namespace}
    if config.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": config.queue}
    if config.topology:
        # All pods of one slice on the node pool that is that slice, and no other job's pods there.
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool",
        }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            # A lost host takes its whole slice and the others down: all start again, from the last checkpoint.
            "failurePolicy": {
                "maxRestarts": config.max_restarts,
                "rules": [
                    {"name": "userError", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                ],
            },
            "successPolicy": {"operator": "All"},
            "network": {"enableDNSHostnames": True},
            "replicatedJobs": [
                {
                    "name": "train",
                    "replicas": replicas,
                    "template": {
                        "spec": {
                            "completionMode": "Indexed",
                            "parallelism": hosts,
                            "completions": hosts,
                            "backoffLimit": 0,
                            "podFailurePolicy": {
                                "rules": [
                                    {
                                        "action": "FailJob",
                                        "onExitCodes": {
                                            "containerName": "train",
                                            "operator": "In",
                                            "values": [_USER_ERROR],
                                        },
                                    }
                                ]
                            },
                            "template": {"spec": _pod(job, config, trial, name, hosts)},
                        }
                    },
                }
            ],
        },
    }


def _pod(job: Job, config: ml_collections.ConfigDict, trial: Trial | None, name: str, hosts: int) -> dict[str, Any]:
    if config.topology:
        topology = _slice(config)
        accelerator, chips_per_host = _TPUS[topology.chip.name]
        selector = {
            "cloud.google.com/gke-tpu-accelerator": accelerator,
            "cloud.google.com/gke-tpu-topology": "x".join(map(str, topology.shape)),
        }
        resources = {"google.com/tpu": str(chips_per_host)}
        arguments = []  # libtpu and GKE's environment tell jax.distributed where the others are
    else:
        selector = {"cloud.google.com/gke-accelerator": config.gpu}
        resources = {"nvidia.com/gpu": str(config.gpus_per_node)}
        arguments = [
            f"--coordinator_address={name}-train-0-0.{name}:{_COORDINATOR_PORT}",
            f"--num_processes={hosts}",
            "--process_id=$(PROCESS_ID)",
        ]
    environment: list[dict[str, Any]] = []
    for pair in config.environment:
        key, _, value = pair.partition("=")
        environment.append({"name": key, "value": value})
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    environment.append({"name": "PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}})
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": config.grace_seconds,
        "nodeSelector": selector,
        "containers": [
            {
                "name": "train",
                "image": config.image,
                "command": ["python"],
                "args": job.arguments(trial) + arguments,
                "env": environment,
                "ports": [{"containerPort": _COORDINATOR_PORT, "protocol": "TCP"}],
                "resources": {"requests": dict(resources), "limits": dict(resources)},
                "volumeMounts": [{"name": "data", "mountPath": config.mount_path}],
            }
        ],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": config.claim}}],
    }


def _check_name(name: str, hosts: int, replicas: int) -> None:
    # JobSet's admission webhook asks this of the last pod; each pod's name ends in five letters or digits of its own.
    pod = f"{name}-train-{replicas - 1}-{hosts - 1}-abcde"
    if len(pod) > _LONGEST_LABEL or not _LABEL.fullmatch(pod):
        longest = len(name) + _LONGEST_LABEL - len(pod)
        raise UserError(
            f"would have pods like {pod} ({len(pod)} characters)",
            where=f"JobSet {name}",
            fix=f"name the job so that this begins with a letter and has at most {longest} characters",
        )


def _shape(config: ml_collections.ConfigDict) -> tuple[int, int]:
    """(hosts of a slice or GPU nodes, slices)."""
    if not config.topology:
        return config.nodes, 1
    topology = _slice(config)
    return topology.chips // _TPUS[topology.chip.name][1], config.slices


def _slice(config: ml_collections.ConfigDict) -> chips.Topology:
    """One slice. Raises UserError for what is none, or does not fill its hosts."""
    where, fix = "--gke.topology", f"name a slice of {', '.join(_TPUS)}, as v5p:4x4x4; several by --gke.slices"
    try:
        topology = chips.parse_topology(config.topology)
    except UserError as error:
        raise UserError(error.what, where=where, fix=fix) from error
    if topology.chip.name not in _TPUS or topology.slices > 1:
        raise UserError(f"{config.topology!r} is not one TPU slice", where=where, fix=fix)
    chips_per_host = _TPUS[topology.chip.name][1]
    if topology.chips % chips_per_host:
        raise UserError(f"{topology.chips} chips do not make whole hosts of {chips_per_host}", where=where)
    return topology


def _check(job: Job, config: ml_collections.ConfigDict) -> None:
    for key in ("image", "claim"):
        if not config[key]:
            raise UserError("is not set", where=f"--gke.{key}")
    if bool(config.topology) == bool(config.gpu):
        raise UserError("give one of them", where="--gke.topology, --gke.gpu", fix="as in --gke.topology=v5p:4x4x4")
    for key, low in (("slices", 1), ("nodes", 1), ("gpus_per_node", 1), ("grace_seconds", 1), ("max_restarts", 0)):
        if config[key] < low:
            raise UserError(f"{config[key]} cannot be used", where=f"--gke.{key}", fix=f"use {low} or more")
    if not f"{job.workdir}/".startswith(f"{config.mount_path.rstrip('/')}/"):
        raise UserError(
            f"{job.workdir} is not on the volume, which is mounted at {config.mount_path}",
            where="--workdir",
            fix="give a folder below --gke.mount_path: nothing else outlives a pod",
        )
    for pair in config.environment:
        if "=" not in pair:
            raise UserError(f"{pair!r} is not NAME=VALUE", where="--gke.environment")
    if config.topology:
        _slice(config)


def _text(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=False, width=120)
