"""Slurm batch scripts: one job, or an array with a task for each trial, that goes on after preemption."""

import pathlib
import shlex
from collections.abc import Sequence

import ml_collections

from cometjax.pod_run import PlannedDevice
from data_pipeline.errors import UserError
from experiments.launch.job import Job

SCRIPT = "train.sbatch"
# The batch shell goes on while its tasks save: srun passes SIGTERM on, and what srun returns decides.
_TEMPLATE = """\
#!/bin/bash
# {title}
# Submit: sbatch {file}     Watch: squeue --me; tail -f {log}     Stop for good: scancel JOB
{directives}

trap : TERM  # sent to this shell too when the job is preempted: wait for the tasks to save
{setup}{arguments}
status=1
srun {srun} python "${{arguments[@]}}"
status=$?

case $status in
  0) exit 0 ;;
  2) echo "not requeued: the command itself is wrong, see the line above" >&2; exit 2 ;;
esac
# An array's last task has the number of the whole array as its SLURM_JOB_ID: asked by that, Slurm would speak of all.
job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
job=${{job:-$SLURM_JOB_ID}}
# 143: saved after SIGTERM (preemption, or {grace} s before the time limit). Anything else: a lost node, a crash.
# A job that Slurm itself ends is no longer RUNNING: preempted, it goes back to the queue by itself; cancelled, it ends.
if [ "$(squeue --noheader --jobs="$job" --format=%T)" != RUNNING ]; then exit "$status"; fi
restarts=${{SLURM_RESTART_COUNT:-0}}
if [ "$restarts" -ge {max_restarts} ]; then
  echo "not requeued: exit code $status after $restarts restarts" >&2
  exit "$status"
fi
echo "exit code $status after $restarts restarts: requeued, goes on from the last checkpoint" >&2
scontrol requeue "$job"
exit "$status"
"""


def default_config() -> ml_collections.ConfigDict:
    """What a Slurm cluster needs to know, by `--slurm.KEY=VALUE`."""
    config = ml_collections.ConfigDict()
    config.nodes = 1  # of one run
    config.tasks_per_node = 1  # processes; one for all GPUs of a node
    config.gpus_per_node = 0  # 0 = none are asked for
    config.cpus_per_task = 0  # 0 = the cluster's default
    config.memory = ""  # per node, as 256G; "" = the cluster's default; 0 = all
    config.time = "24:00:00"  # limit of one stretch; a requeued job has as much again
    config.partition = ""  # of sbatch; "" = the cluster's default
    config.account = ""  # of sbatch; "" = the user's default
    config.qos = ""  # of sbatch; "" = the account's default
    config.grace_seconds = 120  # SIGTERM comes this long before the time limit
    config.max_restarts = 100  # requeues after which the job is given up
    config.parallel_trials = 0  # trials of a sweep at once; 0 = no limit
    config.directory = ""  # where the commands run: a folder that holds the configuration file; "" = the submitter's
    config.setup = ()  # shell lines before them, as ("module load cuda", "source .venv/bin/activate")
    config.srun = ()  # further arguments of srun, as ("--container-image=/images/cometjax.sqsh",)
    return config


def render(job: Job, config: ml_collections.ConfigDict) -> dict[str, str]:
    """File name → text of the batch script, which holds the arguments of every trial.

    Raises UserError for a value that no Slurm script can have.
    """
    for key, low in (("nodes", 1), ("tasks_per_node", 1), ("gpus_per_node", 0), ("grace_seconds", 1)):
        if config[key] < low:
            raise UserError(f"{config[key]} cannot be used", where=f"--slurm.{key}", fix=f"use {low} or more")
    log = f"{job.workdir}/{'%x-%A_%a' if job.trials else '%x-%j'}.log"
    return {
        SCRIPT: _TEMPLATE.format(
            title=f"{job.name}: {len(job.trials) or 1} run(s) of {job.config} on {config.nodes} node(s)",
            file=SCRIPT,
            log=f"{shlex.quote(job.workdir)}/{job.name}-*.log",
            directives="\n".join(f"#SBATCH --{line}" for line in _directives(job, config, log)),
            setup="".join(f"{line}\n" for line in config.setup),
            arguments=_arguments(job),
            srun=shlex.join(_srun(config)),
            grace=config.grace_seconds,
            max_restarts=config.max_restarts,
        )
    }


def submit(job: Job, out: pathlib.Path) -> str:
    """The command that submits what was written to `out`."""
    # Slurm opens its log before the script runs, and does not make the folder.
    return f"mkdir -p {shlex.quote(job.workdir)} && sbatch {shlex.quote(str(out / SCRIPT))}"


def devices(config: ml_collections.ConfigDict) -> list[PlannedDevice]:
    """GPUs of the whole job; none where none are asked for."""
    gpus, processes = config.nodes * config.gpus_per_node, config.nodes * config.tasks_per_node
    return [PlannedDevice("gpu", 0, index * processes // gpus) for index in range(gpus)]


def _directives(job: Job, config: ml_collections.ConfigDict, log: str) -> list[str]:
    lines = [f"job-name={job.name}", f"nodes={config.nodes}", f"ntasks-per-node={config.tasks_per_node}"]
    optional = {
        "gpus-per-node": config.gpus_per_node,
        "cpus-per-task": config.cpus_per_task,
        "mem": config.memory,
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "chdir": config.directory and f'"{config.directory}"',  # quoted: a path may have spaces
    }
    lines += [f"{name}={value}" for name, value in optional.items() if value]
    lines += [f"time={config.time}", f"signal=TERM@{config.grace_seconds}", "requeue", "open-mode=append"]
    lines.append(f'output="{log}"')
    if job.trials:
        limit = f"%{config.parallel_trials}" if config.parallel_trials else ""
        lines.append(f"array=0-{len(job.trials) - 1}{limit}")
    return lines


def _srun(config: ml_collections.ConfigDict) -> Sequence[str]:
    # One task that ends must not kill the others before they have saved; one that hangs must not hold the job.
    return ["--kill-on-bad-exit=0", f"--wait={config.grace_seconds}", *config.srun]


def _arguments(job: Job) -> str:
    if not job.trials:
        return _array(job.arguments())
    cases = "".join(f"{i}) {_array(job.arguments(trial))} ;;\n" for i, trial in enumerate(job.trials))
    return f'case "$SLURM_ARRAY_TASK_ID" in\n{cases}esac'


def _array(arguments: Sequence[str]) -> str:
    return "arguments=(" + "".join(f"\n  {shlex.quote(argument)}" for argument in arguments) + "\n)"
