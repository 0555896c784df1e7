"""Jobs on a real Slurm of one node: preempted or crashed, requeued, and ending as undisturbed ones do.

The daemons are started by the test, on ports and in folders of their own, where slurm-wlm and munge are installed
(`make test-cluster` installs them on Debian and Ubuntu).
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest

from cometjax import workdir as workdirs
from experiments.scaling import trials
from experiments.scaling.plan import Plan
from tests.cometjax import tiny_run
from tests.experiments.scaling import made_up_study

ROOT = pathlib.Path(__file__).resolve().parents[3]
DAEMONS = ("munged", "slurmctld", "slurmd")
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerParameters=sched_interval=2
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=grace Nodes={host} PriorityTier=1 GraceTime=60
PartitionName=nograce Nodes={host} PriorityTier=1 GraceTime=0 Default=YES
PartitionName=urgent Nodes={host} PriorityTier=10 PreemptMode=OFF
"""
CONFIG = """
from cometjax.config import default_config

def get_config():
    config = default_config()
    config.model.update(layers=1, width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=64)
    config.optimizer.update(warmup_steps=4, learning_rate=2e-2)
    config.train.update(steps=600, batch_rows=8, row_length=64, log_every=1, eval_every=1000, checkpoint_every=1000)
    return config
"""
# Three trials of one budget, long enough to be disturbed.
STUDY = """
import pathlib
from tests.experiments.scaling import made_up_study

def get_config():
    return made_up_study.config(pathlib.Path({folder!r}), grid__budgets=(2e10,), grid__sizes=3, grid__spread=1.5,
                                grid__rehearsal=True, pilot__tokens_per_parameter=150.0)
"""

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    """A running Slurm of one node with two CPUs; SLURM_CONF points at it."""
    missing = [name for name in DAEMONS if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"SKIPPED: needs root and {', '.join(missing) or 'nothing else'}; see make test-cluster")
    # Not tmp_path: the path of a socket has at most 108 bytes, and munge wants folders that only root can write.
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = pathlib.Path(name)
        folder.chmod(0o755)  # munge wants its socket within everyone's reach
        for part in ("state", "spool"):
            (folder / part).mkdir()
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        (folder / "slurm.conf").write_text(
            SLURM_CONF.format(host=host, folder=folder, ports=(free_port(), free_port()))
        )
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        munge = [f"--{name}={folder / file}" for name, file in
                 {"key-file": "key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log",
                  "seed-file": "munged.seed"}.items()]  # fmt: skip
        try:
            for command in (["munged", *munge], ["slurmctld"], ["slurmd"]):
                subprocess.run(command, check=True, timeout=60)
            wait_for(lambda: "idle" in run("sinfo", "--noheader", "--format=%T"), "an idle node", 60)
            yield
        finally:
            subprocess.run(["scancel", "--me", "--full"], check=False, timeout=60)
            for name in reversed(DAEMONS):
                with contextlib.suppress(OSError, ValueError):
                    os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)
            time.sleep(2)


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT).stdout


def wait_for(condition, what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.5)


def submit(
    folder: pathlib.Path, name: str, partition: str, corpus: pathlib.Path, *flags: str, tasks: int = 2
) -> tuple[str, pathlib.Path]:
    """Launch a job of two tasks, or so many, as a user would; (its id, its workdir)."""
    (folder / "config.py").write_text(CONFIG)
    workdir = folder / name
    workdir.mkdir()
    setup = (f"export PATH={pathlib.Path(sys.executable).parent}:$PATH JAX_PLATFORMS=cpu",)
    run(
        sys.executable, "-m", "experiments.launch", "--cluster=slurm", f"--config={folder / 'config.py'}",
        f"--config.corpus={corpus}", f"--workdir={workdir}", f"--out={folder / 'launch' / name}", f"--name={name}",
        f"--slurm.tasks_per_node={tasks}", f"--slurm.partition={partition}", f"--slurm.directory={ROOT}",
        f"--slurm.setup={setup!r}", *flags,
    )  # fmt: skip
    return run("sbatch", "--parsable", str(folder / "launch" / name / "train.sbatch")).strip(), workdir


def steps_done(workdir: pathlib.Path) -> int:
    with contextlib.suppress(OSError):
        return (workdir / "metrics.jsonl").read_text().count("\n")
    return 0


def log_of(workdir: pathlib.Path) -> str:
    return "".join(path.read_text() for path in workdir.glob("*.log"))


def state(job: str) -> str:
    return run("scontrol", "show", "job", job).partition("JobState=")[2].split()[0]


def finish(job: str, workdir: pathlib.Path) -> dict:
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
    wait_for(lambda: state(job) in ended, f"the end of {workdir.name}", 400)
    assert state(job) == "COMPLETED", log_of(workdir)
    return json.loads((workdir / "result.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(slurm, tmp_path_factory, world_corpus) -> dict:
    job, workdir = submit(tmp_path_factory.mktemp("undisturbed"), "undisturbed", "nograce", world_corpus)
    return finish(job, workdir)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("partition", ["grace", "nograce"])
def test_a_preempted_job_comes_back_and_ends_with_the_undisturbed_loss(
    undisturbed, tmp_path, world_corpus, partition
) -> None:
    job, workdir = submit(tmp_path, "preempted", partition, world_corpus)
    wait_for(lambda: steps_done(workdir) > 20 or state(job) == "FAILED", "20 steps", 240)
    run("sbatch", "--partition=urgent", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 1")
    result = finish(job, workdir)
    assert "Restarts=1" in run("scontrol", "show", "job", job)
    assert "resumed at step" in log_of(workdir)
    assert result["tuning_loss"] == undisturbed["tuning_loss"]
    assert result["step"] == undisturbed["step"] == 600


@pytest.mark.timeout(600)
def test_a_sweep_is_an_array_whose_tasks_train_a_trial_each(slurm, tmp_path, world_corpus) -> None:
    sweep = ("--sweep=optimizer.learning_rate=1e-3,3e-3,1e-2", "--config.train.steps=8", "--slurm.parallel_trials=2")
    _, workdir = submit(tmp_path, "sweep", "nograce", world_corpus, *sweep, tasks=1)
    results = [workdir / f"trial-{trial}" / "result.json" for trial in range(3)]
    wait_for(lambda: run("squeue", "--noheader") == "", "an empty queue", 240)
    assert all(result.exists() for result in results), log_of(workdir)
    rates = [
        json.loads((result.parent / "config.json").read_text())["optimizer"]["learning_rate"] for result in results
    ]
    assert rates == [1e-3, 3e-3, 1e-2]
    assert len({json.loads(result.read_text())["tuning_loss"] for result in results}) == 3


@pytest.mark.timeout(600)
def test_a_cancelled_job_is_not_requeued(slurm, tmp_path, world_corpus) -> None:
    job, workdir = submit(tmp_path, "cancelled", "nograce", world_corpus)
    wait_for(lambda: steps_done(workdir) > 5 or state(job) == "FAILED", "5 steps", 240)
    run("scancel", job)
    wait_for(lambda: run("squeue", "--noheader") == "", "an empty queue", 120)
    assert state(job) == "CANCELLED"
    assert (workdir / "checkpoints").is_dir() and not (workdir / "result.json").exists()


@pytest.mark.timeout(600)
def test_a_wrong_command_ends_the_job(slurm, tmp_path) -> None:
    job, workdir = submit(tmp_path, "wrong", "nograce", tmp_path / "no-such-corpus")
    wait_for(lambda: state(job) == "FAILED", "the end", 240)
    assert "not requeued: the command itself is wrong" in log_of(workdir)
    assert "no-such-corpus" in log_of(workdir)


def training_process(workdir: pathlib.Path) -> int:
    """The process, not the srun that waits for it, that trains there."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if pathlib.Path(words[0]).name.startswith("python") and f"--workdir={workdir}" in words:
                return int(path.parent.name)
    raise AssertionError(f"nobody trains in {workdir}")


def restarts(job: str) -> dict[int, int]:
    """How often each task of an array was requeued."""
    tasks = run("scontrol", "show", "job", job).split("\n\n")
    return {int(re.search(r"ArrayTaskId=(\d+) ", task)[1]): int(re.search(r"Restarts=(\d+)", task)[1])
            for task in tasks if task.strip()}  # fmt: skip


def sweep(folder: pathlib.Path, workdir: pathlib.Path, *flags: str) -> str:
    command = [sys.executable, "-m", "experiments.scaling_sweep", f"--config={folder / 'study_file.py'}"]
    done = subprocess.run(
        [*command, f"--workdir={workdir}", "--yes", *flags],
        capture_output=True, text=True, timeout=600, cwd=ROOT, env=os.environ | tiny_run.ONE_DEVICE,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.timeout(1500)
def test_a_study_is_an_array_of_which_only_the_disturbed_tasks_come_back(slurm, tmp_path) -> None:
    made_up_study.config(tmp_path)  # the corpus
    (tmp_path / "study_file.py").write_text(STUDY.format(folder=str(tmp_path)))
    workdir = tmp_path / "run"
    setup = (f"export PATH={pathlib.Path(sys.executable).parent}:$PATH JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1",)
    launch = ("--launcher=slurm", "--slurm.partition=grace", f"--slurm.directory={ROOT}", f"--slurm.setup={setup!r}")
    said = sweep(tmp_path, workdir, *launch)
    assert "0 of 3 trials finished" in said
    (submit,) = [line.strip() for line in said.splitlines() if "sbatch" in line and "mkdir" in line]
    job = run("bash", "-c", submit).split()[-1]
    planned = Plan.load(workdir / "plan.json").trials
    folders = [trials.folder(workdir, trial.name) for trial in planned]

    def trains(task: int) -> bool:
        return steps_done(folders[task]) > 10

    # Two of three have the node's two CPUs. The urgent job wants one, and takes it from one of them.
    wait_for(lambda: trains(0) and trains(1), "two trials", 240)
    run("sbatch", "--partition=urgent", "--ntasks=1", "--output=/dev/null", "--wrap=sleep 1")
    # The last task of an array has the array's own number as its job's: a crash of it must not bring back all.
    wait_for(lambda: trains(2), "the third trial", 400)
    os.kill(training_process(folders[2]), signal.SIGKILL)
    wait_for(lambda: run("squeue", "--noheader") == "", "an empty queue", 600)
    again = restarts(job)
    assert again[2] == 1 and sorted([again[0], again[1]]) == [0, 1], log_of(workdir / "trials")
    (preempted,) = [task for task in (0, 1) if again[task]]
    assert "resumed at step" in log_of_task(workdir, job, preempted)
    assert "exit code 137 after 0 restarts: requeued" in log_of_task(workdir, job, 2)

    # The same command takes up the results (of a grid this small no law can be fitted); they are those of the study
    # trained here.
    assert "3 trials of the grid are finished" in sweep(tmp_path, workdir, *launch)
    here = tmp_path / "here"
    assert "3 trials of the grid are finished" in sweep(tmp_path, here, "--config.run.pin=False")
    for trial, folder in zip(planned, folders, strict=True):
        undisturbed = workdirs.read_json(trials.folder(here, trial.name) / workdirs.RESULT)
        result = workdirs.read_json(folder / workdirs.RESULT)
        assert result["step"] == undisturbed["step"] == trial.steps
        assert result["tuning_loss"] == undisturbed["tuning_loss"]


def log_of_task(workdir: pathlib.Path, job: str, task: int) -> str:
    (log,) = (workdir / "trials").glob(f"*-{job}_{task}.log")
    return log.read_text()
