"""A scaling study: pilot, plan, trials, fits, gates, family, the test that counts, and a report.

    python -m experiments.scaling_sweep \\
        --config experiments/configs/scaling_world.py --workdir runs/scaling
    python -m experiments.scaling_sweep --config FILE --workdir DIR --dry_run
    python -m experiments.scaling_sweep --config FILE --workdir DIR --report
    python -m experiments.scaling_sweep --config FILE --workdir /shared/study \\
        --launcher slurm --slurm.gpus_per_node=8

--dry_run ends with plan.json; --report tells what there is so far. Started again with the same workdir it goes on,
after Ctrl-C or a kill too; a finished trial is never run again. With --launcher slurm or jobset it writes the batch
script or manifests, says how to submit them, and takes up their results when it is started again. Ends with
WORKDIR/report.html, fit.json, family.json (unless a gate is closed) and a table.
docs/scaling.md explains every number, docs/config.md lists every key of --config.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from data_pipeline import command_line, interrupts
from experiments.launch import jobset, slurm
from experiments.scaling import study


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "folder of the study; an interrupted one is continued", required=True)
    flags.DEFINE_enum("launcher", "local", ("local", "slurm", "jobset"), "what runs the trials")
    flags.DEFINE_boolean("dry_run", False, "stop at the plan; the pilot is run for it, where the study has one")
    flags.DEFINE_boolean("report", False, "run nothing: fit and report what is finished")
    flags.DEFINE_boolean("yes", False, "do not ask, whatever the plan costs")
    config_flags.DEFINE_config_file("config", None, "study configuration file; single keys by --config.key=value")
    config_flags.DEFINE_config_dict("slurm", slurm.default_config(), "the Slurm cluster")
    config_flags.DEFINE_config_dict("gke", jobset.default_config(), "the GKE cluster")
    flags.mark_flag_as_required("config")


def main() -> None:
    """Run the study as the flags say."""
    values = flags.FLAGS
    cluster = {"local": None, "slurm": values.slurm, "jobset": values.gke}[values.launcher]
    try:
        with interrupts.resumable(lambda: "the same command goes on with the trials that are not finished"):
            study.run(
                values.config,
                pathlib.Path(values.workdir),
                study.Launch(values.launcher, cluster),
                yes=values.yes,
                dry_run=values.dry_run,
                report_only=values.report,
                say=lambda text: print(text, flush=True),
            )
    except study.Waiting as waiting:
        print(waiting)


if __name__ == "__main__":
    command_line.run(main, _define_flags)
