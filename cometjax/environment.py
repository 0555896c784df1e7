"""With what a run was computed: WORKDIR/environment.json, for each start whose surroundings are not those before it.

    {"starts": [{"step": 0, "python": "3.11.7", "packages": {"jax": "0.10.2", ...}, "commit": "...", "devices": {...}}]}

`step`: the last one before that start's first. `commit`: of cometjax's git checkout, with "-dirty" where tracked files
differ from it; null where it is none, or git is not there. No names of hosts, users or folders.
"""

import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

import jax

from cometjax import workdir as workdirs

FILE = "environment.json"
# Of those that are not installed nothing is said.
_PACKAGES = (
    *("cometjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "grain", "array-record"),
    *("numpy", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)
_GIT_SECONDS = 10


def record(workdir: pathlib.Path, step: int) -> None:
    """Add this start, which goes on from `step`, to the workdir's file, if anything is other than at the one before.

    Raises UserError when the file cannot be read or written.
    """
    path = workdir / FILE
    starts = workdirs.read_json(path)["starts"] if path.exists() else []
    now = describe()
    if starts and {key: value for key, value in starts[-1].items() if key != "step"} == now:
        return
    with workdirs.writing(path):
        workdirs.write_json(path, {"starts": [*starts, {"step": step, **now}]})


def describe() -> dict[str, Any]:
    """Versions, commit and devices of this process's run."""
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "devices": {
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    package = pathlib.Path(__file__).parent
    # Installed into an environment within somebody's checkout, the package is no part of that.
    if _git(package, "rev-parse", "--show-prefix") != f"{package.name}/":
        return None
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: pathlib.Path, *arguments: str) -> str | None:
    # Without optional locks the checkout, which may be many runs', is only read.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
