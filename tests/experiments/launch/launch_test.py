"""Launch files say what the flags said, refuse what a cluster would refuse, and fit the published schemas."""

import copy
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from data_pipeline.errors import UserError
from experiments.configs import demo
from experiments.launch import jobset, slurm
from experiments.launch.__main__ import write
from experiments.launch.checks import check
from experiments.launch.job import Job, Trial, sweep

DEMO = "experiments/configs/demo.py"


def job(**changes) -> Job:
    return Job(**({"name": "run", "config": DEMO, "overrides": (), "workdir": "/data/runs/a"} | changes))


def gke(**changes):
    config = jobset.default_config()
    config.update({"image": "registry.example/cometjax:1", "claim": "shared", "topology": "v5p:4x4x4"} | changes)
    return config


def launch(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.launch", f"--config={DEMO}", "--workdir=/data/runs/a", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def arguments_of(script: str, task: int | None = None) -> list[str]:
    """What the batch script hands to python, by running it with an srun that prints its arguments."""
    stand_in = 'srun() { printf "%s\\n" "$@"; }; squeue() { echo RUNNING; }\n'
    environment = {"PATH": os.environ["PATH"]} | ({} if task is None else {"SLURM_ARRAY_TASK_ID": str(task)})
    done = subprocess.run(
        ["bash", "-c", stand_in + script], capture_output=True, text=True, check=True, env=environment, timeout=60
    )
    lines = done.stdout.splitlines()
    return lines[lines.index("python") + 1 :]


def test_a_sweep_has_a_trial_for_each_combination() -> None:
    trials = sweep(["optimizer.learning_rate=1e-3,3e-3", "seed=0,1,2"])
    assert [trial.name for trial in trials] == [f"trial-{i}" for i in range(6)]
    assert trials[4].overrides == ("--config.optimizer.learning_rate=3e-3", "--config.seed=1")
    assert len({trial.overrides for trial in trials}) == 6


def test_the_batch_script_runs_the_command_whatever_its_values_hold() -> None:
    asked = job(overrides=("--config.corpus=/data/it's here $HOME",))
    script = slurm.render(asked, slurm.default_config())["train.sbatch"]
    assert arguments_of(script) == asked.arguments()


def test_paths_may_have_spaces(tmp_path) -> None:
    config = slurm.default_config()
    config.directory = "/home/my code"
    asked = job(workdir=f"{tmp_path}/my runs")
    script = slurm.render(asked, config)["train.sbatch"]
    # sbatch takes quotes in a directive as a shell does.
    directives = [shlex.split(line)[1:] for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert ["--chdir=/home/my code"] in directives and [f"--output={tmp_path}/my runs/%x-%j.log"] in directives
    out = tmp_path / "my launch"
    stand_ins = 'sbatch() { ls -d "$1" && wc -l < "$1"; }; kubectl() { ls "$3"; }\n'
    for renderer, said in ((slurm, f"{out}/train.sbatch\n1\n"), (jobset, "train.sbatch\n")):
        write(out, {"train.sbatch": "#!/bin/bash\n"})
        command = ["bash", "-ec", stand_ins + renderer.submit(asked, out)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout == said
        shutil.rmtree(out)
    assert (tmp_path / "my runs").is_dir()


def test_each_task_of_the_array_runs_its_own_trial_in_its_own_folder() -> None:
    asked = job(trials=sweep(["seed=0,1,2"]))
    config = slurm.default_config()
    config.parallel_trials = 2
    script = slurm.render(asked, config)["train.sbatch"]
    assert "#SBATCH --array=0-2%2\n" in script
    for i, trial in enumerate(asked.trials):
        assert arguments_of(script, i) == asked.arguments(trial)
        assert f"--workdir=/data/runs/a/trial-{i}" in asked.arguments(trial)


@pytest.mark.parametrize(
    ("status", "state", "restarts", "requeued"),
    [(0, "RUNNING", 0, False), (2, "RUNNING", 0, False), (143, "RUNNING", 0, True), (1, "RUNNING", 6, True),
     (143, "RUNNING", 7, False), (143, "CANCELLED", 0, False), (143, "", 0, False)],
)  # fmt: skip
def test_a_job_is_requeued_unless_it_is_done_wrong_cancelled_or_tired(status, state, restarts, requeued) -> None:
    config = slurm.default_config()
    config.max_restarts = 7
    script = slurm.render(job(), config)["train.sbatch"]
    stand_in = f'srun() {{ return {status}; }}; squeue() {{ echo "{state}"; }}; scontrol() {{ echo "asked: $*"; }}\n'
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(
        ["bash", "-c", stand_in + script], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert done.returncode == status
    assert ("asked: requeue 12" in done.stdout) == requeued


def test_a_task_of_an_array_asks_for_itself_alone() -> None:
    """The array's last task has the array's own number as its job's."""
    script = slurm.render(job(trials=sweep(["seed=0,1,2"])), slurm.default_config())["train.sbatch"]
    stand_in = """srun() { return 1; }; scontrol() { echo "asked: $*"; }
    squeue() { case "$*" in *--jobs=12_2*) echo RUNNING ;; *) echo "RUNNING COMPLETED" ;; esac; }\n"""
    array = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2"}
    done = subprocess.run(
        ["bash", "-c", stand_in + script],
        capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"], **array}, timeout=60,
    )  # fmt: skip
    assert done.stdout == "asked: requeue 12_2\n"


def test_the_script_asks_slurm_for_what_the_flags_say(tmp_path) -> None:
    out = tmp_path / "launch"
    done = launch(
        "--cluster=slurm", f"--out={out}", "--config.corpus=/data/corpus", "--config.train.batch_rows=64",
        "--slurm.nodes=4", "--slurm.gpus_per_node=8", "--slurm.partition=gpu", "--slurm.grace_seconds=90",
        "--name=big-run", "--slurm.setup=('module load cuda',)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    script = (out / "train.sbatch").read_text()
    for line in ("job-name=big-run", "nodes=4", "gpus-per-node=8", "partition=gpu", "signal=TERM@90", "requeue"):
        assert f"#SBATCH --{line}\n" in script
    assert "\nmodule load cuda\n" in script
    assert "sbatch" in done.stdout and str(out) in done.stdout


def test_a_slice_is_asked_for_by_hosts_and_topology() -> None:
    spec = jobset.manifest(job(), gke(slices=2))["spec"]
    (group,) = spec["replicatedJobs"]
    assert group["replicas"] == 2
    assert group["template"]["spec"]["parallelism"] == group["template"]["spec"]["completions"] == 16
    pod = group["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5p-slice"
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": "4"}
    assert pod["containers"][0]["args"] == job().arguments()
    assert len(jobset.devices(gke(slices=2))) == 128


def test_gpu_nodes_find_each_other_by_name() -> None:
    asked = job(trials=(Trial("trial-0", ()),))
    manifest = jobset.manifest(asked, gke(topology="", gpu="nvidia-h100-80gb", nodes=4), asked.trials[0])
    assert manifest["metadata"]["name"] == "run-trial-0"
    args = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--coordinator_address=run-trial-0-train-0-0.run-trial-0:8476" in args
    assert "--num_processes=4" in args and "--process_id=$(PROCESS_ID)" in args


def test_a_wrong_command_is_not_restarted_and_a_lost_host_is() -> None:
    spec = jobset.manifest(job(), gke())["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    (exit_rule,) = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert exit_rule["action"] == "FailJob" and exit_rule["onExitCodes"]["values"] == [2]
    assert spec["failurePolicy"]["maxRestarts"] == 100


@pytest.mark.parametrize("changes", [{}, {"slices": 4, "queue": "research"}, {"topology": "", "gpu": "nvidia-l4"}])
def test_manifests_fit_the_published_schema(changes) -> None:
    # Models that the Kubeflow project generates from JobSet's and Kubernetes' own OpenAPI definitions.
    models = pytest.importorskip(
        "kubeflow_trainer_api.models.jobset_v1alpha2_job_set", reason="kubeflow-trainer-api is not installed"
    )
    text = jobset.render(job(), gke(**changes, environment=("A=b",)))["train.yaml"]
    manifest = yaml.safe_load(text)
    # What the schema does not know is lost on the way, what is of the wrong type is refused.
    assert models.JobsetV1alpha2JobSet.from_dict(copy.deepcopy(manifest)).to_dict() == manifest
    manifest["spec"]["failurePolicy"]["maxRestart"] = 3
    assert models.JobsetV1alpha2JobSet.from_dict(copy.deepcopy(manifest)).to_dict() != manifest


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"image": ""}, "--gke.image"), ({"claim": ""}, "--gke.claim"), ({"topology": "v9:2x2"}, "v5p"),
     ({"topology": "v5p:3x1x1"}, "hosts"), ({"topology": "v5p:axb"}, "v5p:axb"), ({"topology": "v5p:8x8"}, "v5p:8x8"),
     ({"topology": "v5e:4x4x4"}, "v5e:4x4x4"), ({"topology": "v5p:64x64x64"}, "v5p:64x64x64"),
     ({"topology": "2xv5e:4x4"}, "--gke.slices"), ({"topology": "h100:8"}, "one TPU"),
     ({"gpu": "nvidia-l4"}, "--gke.gpu"), ({"environment": ("A",)}, "NAME=VALUE"),
     ({"mount_path": "/other"}, "/other")],
)  # fmt: skip
def test_an_impossible_cluster_is_refused(changes, says) -> None:
    with pytest.raises(UserError, match=says):
        jobset.render(job(), gke(**changes))


@pytest.mark.parametrize(
    ("name", "trials", "says"),
    [("7b-run", (), "7b-run-train-1-15-abcde"),
     ("a" * 39, sweep(["seed=0,1"]), "a-trial-0-train-1-15-abcde .64 characters.* at most 46")],
)  # fmt: skip
def test_a_job_whose_pods_jobset_cannot_name_is_refused(name, trials, says) -> None:
    # Its webhook asks for DNS labels (RFC 1035), of at most 63 characters; here there are 2 x 16 hosts.
    with pytest.raises(UserError, match=says):
        jobset.render(job(name=name, trials=trials), gke(slices=2))


def test_the_longest_names_that_jobset_takes_are_taken() -> None:
    assert len(jobset.render(job(name="a" * 38, trials=sweep(["seed=0,1"])), gke(slices=2))) == 2


@pytest.mark.parametrize(
    ("changes", "cluster", "axes", "says"),
    [({"corpus": ""}, {}, [], "config.corpus: is not set"),
     ({"corpus": "/home/corpus"}, {}, [], "config.corpus: /home/corpus is not on the volume"),
     ({"corpus": "/data/a=0.5,b=0.5"}, {}, [], "config.corpus: b is not on the volume"),
     ({"init_from": "/home/short-hf"}, {}, [], "config.init_from: /home/short-hf is not on the volume"),
     ({"continue_from": "/home/trunk:500"}, {}, [], "config.continue_from: /home/trunk is not on the volume"),
     ({"continue_from": "gs://bucket/trunk"}, {}, [], "config.continue_from: gs://bucket/trunk is not on the volume"),
     ({"mesh.tensor": 3}, {"topology": "v5e:2x4"}, [], "tensor 3 is 6 devices, and there are 8"),
     ({"mesh.fsdp": 4}, {"topology": "v5e:2x4"}, [], "fsdp 4 x tensor 1 is 4 devices, and there are 8"),
     ({"train.batch_rows": 64}, {"slices": 2, "topology": "v5p:4x4x4"}, [], "the devices form 2; set it to 2"),
     ({"mesh.slices": 2, "mesh.data": 1}, {"slices": 2}, [], "2 slices cannot split data 1"),
     ({"train.batch_rows": 64}, {"topology": "v5p:4x4x8"}, [], "64 rows cannot be split over 128 devices"),
     ({"mesh.slices": 3}, {"topology": "", "gpu": "nvidia-l4", "nodes": 2}, [], "3, and the devices form 2"),
     ({"train.steps": 0}, {}, [], "train.steps"),
     ({}, {}, ["optimizer.learnin_rate=1,2"], "trial-0: .*learnin_rate"),
     ({}, {}, ["optimizer.learning_rate=1e-3,abc"], "trial-1: .*optimizer.learning_rate=abc"),
     ({}, {}, ["train.steps=100,0"], "trial-1: config.train.steps: 0 cannot be used"),
     ({}, {}, ["model.kv_heads=5"], "trial-0: config.model.kv_heads: 5 cannot be used"),
     ({}, {}, ["corpus=/data/a,/b"], "trial-1: config.corpus: /b is not on the volume"),
     ({}, {"topology": "v5e:2x4"}, ["train.batch_rows=16,12"], "trial-1: .*12 rows cannot be split over 8 devices")],
)  # fmt: skip
def test_what_every_node_would_refuse_is_refused_now(changes, cluster, axes, says) -> None:
    config = demo.get_config()
    config.update_from_flattened_dict({"corpus": "/data/corpus", "train.batch_rows": 256} | changes)
    with pytest.raises(UserError, match=says):
        check(config, sweep(axes), jobset.devices(gke(**cluster)), "/data")


def test_what_training_takes_is_not_refused() -> None:
    config = demo.get_config()
    config.update_from_flattened_dict({"train.batch_rows": 64, "mesh.slices": 2, "mesh.data": 2})
    trials = sweep(["corpus=/data/corpus,gs://bucket/corpus", "optimizer.learning_rate=1,2e-3"])
    check(config, trials, jobset.devices(gke(slices=2, topology="v5e:4x4")), "/data")
    nodes = slurm.default_config()
    check(config, trials, slurm.devices(nodes), "")  # nobody knows how many devices
    nodes.update({"nodes": 4, "gpus_per_node": 8})
    config.mesh.slices = 1
    check(config, trials, slurm.devices(nodes), "")
    assert config.corpus == "" and config.optimizer.learning_rate == demo.get_config().optimizer.learning_rate
    for begun_with in ("init_from=/data/short-hf", "continue_from=/data/trunk,/data/trunk:best"):
        check(config, sweep(["corpus=/data/corpus", begun_with]), [], "/data")


@pytest.mark.parametrize(
    ("make", "says"),
    [(lambda: sweep(["seed"]), "--sweep"), (lambda: sweep(["seed=1,,2"]), "--sweep"),
     (lambda: job(name="A_b"), "A_b"), (lambda: job(workdir="runs/a"), "runs/a"),
     (lambda: job(trials=(Trial("a", ()), Trial("a", ()))), "same name")],
)  # fmt: skip
def test_an_impossible_job_is_refused(make, says) -> None:
    with pytest.raises(UserError, match=says):
        make()


def test_a_mistake_is_one_line_and_writes_nothing(tmp_path) -> None:
    done = launch(f"--out={tmp_path / 'launch'}", "--cluster=slurm")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "config.corpus" in done.stderr
    assert not (tmp_path / "launch").exists()


def test_an_existing_folder_is_left_alone(tmp_path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UserError, match="is not an empty folder"):
        write(tmp_path, {"train.sbatch": "#!/bin/bash"})
    assert [path.name for path in pathlib.Path(tmp_path).iterdir()] == ["note"]


def test_a_disk_that_fills_up_leaves_no_part_of_the_files(tmp_path) -> None:
    with pytest.raises(UserError, match="out: cannot be written"):
        write(tmp_path / "out", {"first.yaml": "kind: JobSet", "no/such/folder.yaml": "kind: JobSet"})
    assert not list(tmp_path.iterdir())
