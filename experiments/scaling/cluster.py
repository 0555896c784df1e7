"""Hand trials to a cluster: a Slurm job array, or a JobSet for each, through `experiments.launch`.

Nothing is submitted and nothing is waited for: the files are written, the command that submits them is printed, and the
study goes on when it is started again and finds the trials finished in the shared folder.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from cometjax import workdir as workdirs
from data_pipeline.locations import is_remote
from experiments.configs import from_json
from experiments.launch import checks, jobset, slurm
from experiments.launch.job import Job, Trial
from experiments.scaling import trials
from experiments.scaling.plan import PlannedTrial

LAUNCH = "launch"


def devices(launcher: str, cluster: ml_collections.ConfigDict) -> float:
    """Accelerators that each trial has; 1 where the cluster's files do not say."""
    return float(len((slurm if launcher == "slurm" else jobset).devices(cluster)) or 1)


def write(
    chosen: Sequence[PlannedTrial], stage: str, workdir: pathlib.Path, *, launcher: str,
    cluster: ml_collections.ConfigDict, name: str,
) -> str:  # fmt: skip
    """Write the files that start the chosen trials; returns the line that submits them.

    The stage's folder holds nothing else: a manifest of an earlier call would start a finished trial again.
    Raises UserError for a cluster configuration that cannot be, or trials that it cannot train.
    """
    job = Job(
        name=f"{name}-{stage}",
        config=f"experiments/configs/from_json.py:{(workdir / trials.BASE).absolute()}",
        overrides=(),
        workdir=str((workdir / trials.TRIALS).absolute()),
        trials=tuple(Trial(trial.name, trials.flags(_anywhere(trial.overrides))) for trial in chosen),
    )
    renderer = slurm if launcher == "slurm" else jobset
    files = renderer.render(job, cluster)
    base = from_json.get_config(str(workdir / trials.BASE))
    checks.check(base, job.trials, renderer.devices(cluster), cluster.get("mount_path", ""))
    out = workdir / LAUNCH / stage
    with workdirs.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for old in out.iterdir():
            if old.name not in files:
                old.unlink()
        for file, text in files.items():
            workdirs.write_text(out / file, text)
    return renderer.submit(job, out)


def _anywhere(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A job does not start in the study's folder."""
    corpus = overrides["corpus"]
    return {**overrides, "corpus": corpus if is_remote(corpus) else str(pathlib.Path(corpus).absolute())}
