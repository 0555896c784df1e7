"""What every node would refuse after hours in the queue, refused before anything is written."""

import pathlib
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from cometjax import config as configs
from cometjax import continuation, pod_run, sharding
from data_pipeline import flag_mistakes, mixture
from data_pipeline.errors import UserError
from data_pipeline.locations import is_remote
from experiments.launch.job import Trial


def check(
    config: ml_collections.ConfigDict, trials: Sequence[Trial], devices: Sequence[pod_run.PlannedDevice], volume: str
) -> None:
    """Raise UserError for a configuration, or any trial of it, that training would refuse.

    `devices` are the job's accelerators, none where they are not known; `volume` is the only folder that its machines
    share, "" where that is not known.
    """
    if not trials:
        _check_run(config, devices, volume)
    for trial in trials:
        try:
            _check_run(_with_overrides(config, trial.overrides), devices, volume)
        except UserError as error:
            raise UserError(str(error), where=trial.name) from error


def _with_overrides(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """A copy with flags such as "--config.seed=1", read by what reads them when training starts."""
    values, argv, copy = flags.FlagValues(), ["", *overrides], config.copy_and_resolve_references()
    try:
        config_flags.DEFINE_config_dict("config", copy, flag_values=values, sys_argv=argv)
        values(argv)
    # As in data_pipeline.command_line: an unknown key comes as any of these.
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"cannot be read: {flag_mistakes.one_line(error)}", where=" ".join(overrides)) from error
    return values["config"].value


def _check_run(config: ml_collections.ConfigDict, devices: Sequence[pod_run.PlannedDevice], volume: str) -> None:
    configs.validate(config)
    if not config.corpus:
        raise UserError(
            "is not set", where="config.corpus", fix="give it with --config.corpus=DIR, as the nodes see it"
        )
    for folder, _ in mixture.parse(config.corpus):
        if not is_remote(folder):
            _check_volume(folder, "config.corpus", volume, fix="give a folder below --gke.mount_path, or a URL")
    _check_volume(config.init_from, "config.init_from", volume)
    _check_volume(continuation.parse(config.continue_from)[0], "config.continue_from", volume)
    if devices:
        sizes = sharding.axis_sizes(config.mesh, len(devices))
        sharding.check_slices(config.mesh.slices, sizes[0], devices)
        mesh = pod_run.abstract_mesh(dict(zip(sharding.AXES, sizes, strict=True)))
        sharding.check_batch_rows(mesh, config.train.batch_rows, config.train.microbatches)


def _check_volume(folder: str, key: str, volume: str, *, fix: str = "give a folder below --gke.mount_path") -> None:
    if folder and volume and not pathlib.PurePosixPath(folder).is_relative_to(volume):
        raise UserError(f"{folder} is not on the volume, which is mounted at {volume}", where=key, fix=fix)
