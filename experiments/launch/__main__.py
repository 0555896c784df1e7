"""Write what starts a training run, or a sweep of them, on a Slurm or GKE cluster.

    python -m experiments.launch --cluster slurm \\
        --config experiments/configs/comet_l.py --workdir /shared/runs/l \\
        --out launch/l --config.corpus=/shared/corpus --slurm.nodes=8 \\
        --slurm.gpus_per_node=8
    python -m experiments.launch --cluster gke \\
        --config experiments/configs/comet_l.py --workdir /data/runs/l \\
        --out launch/l --config.corpus=/data/corpus --gke.image=IMAGE \\
        --gke.claim=CLAIM --gke.topology=v5p:4x4x4
    ... --sweep optimizer.learning_rate=1e-4,3e-4 --sweep seed=0,1  # 4 trials

Nothing is submitted: OUT holds the files, a sweep's as one array or a JobSet for each trial, and the last line says how
to. A job that is preempted, reaches its time limit or loses a node is started again and goes on from its last
checkpoint; one whose command is wrong (exit code 2) is not. Every key of --config, --slurm and --gke can be given as a
flag: docs/config.md.
"""

import pathlib
import re

import ml_collections
from absl import flags
from ml_collections import config_flags

from cometjax import output_folder
from data_pipeline import command_line
from experiments.launch import checks, jobset, slurm
from experiments.launch.job import Job, sweep

CLUSTERS = ("slurm", "gke")


def write(out: pathlib.Path, files: dict[str, str]) -> None:
    """Write text files into a new folder, all or none; raises UserError when there is something already."""
    output_folder.refuse_taken(out)
    with output_folder.whole(out) as partial:
        for name, text in files.items():
            (partial / name).write_text(text)


def _define_flags() -> None:
    flags.DEFINE_enum("cluster", None, CLUSTERS, "what runs the job", required=True)
    flags.DEFINE_string("workdir", None, "folder of the run, as every node sees it", required=True)
    flags.DEFINE_string("out", None, "folder to write; must be missing or empty", required=True)
    flags.DEFINE_string("name", "", "of the job (default: the configuration file's)")
    flags.DEFINE_multi_string("sweep", [], "KEY=VALUE,VALUE of the configuration: a trial for each combination")
    config_flags.DEFINE_config_file("config", None, "training configuration file")
    config_flags.DEFINE_config_dict("slurm", slurm.default_config(), "the Slurm cluster")
    config_flags.DEFINE_config_dict("gke", jobset.default_config(), "the GKE cluster")
    flags.mark_flag_as_required("config")


def main() -> None:
    """Render what the flags say."""
    values = flags.FLAGS
    file = str(config_flags.get_config_filename(values["config"]))
    given = config_flags.get_override_values(values["config"])
    job = Job(
        name=values.name or re.sub(r"[^a-z0-9]+", "-", pathlib.Path(file.partition(":")[0]).stem.lower()).strip("-"),
        config=file,
        overrides=tuple(f"--config.{key}={value}" for key, value in given.items()),
        workdir=values.workdir,
        trials=sweep(values.sweep),
    )
    cluster: ml_collections.ConfigDict = values[values.cluster].value
    out = pathlib.Path(values.out)
    renderer = slurm if values.cluster == "slurm" else jobset
    files = renderer.render(job, cluster)
    checks.check(values.config, job.trials, renderer.devices(cluster), cluster.get("mount_path", ""))
    write(out, files)
    runs = f"{len(job.trials)} trials" if job.trials else "1 run"
    print(f"{out}: {runs} of {file}, {len(files)} file(s)")
    print(f"submit: {renderer.submit(job, out)}")


if __name__ == "__main__":
    command_line.run(main, _define_flags)
