"""The engine of a Ray cluster: jobs run wherever the cluster has a free core, and again elsewhere when a node is lost.

Only paths and keys travel; the data set and the build's folder lie on a file system that every node mounts at the same
place, and every node has this package installed.
"""

import collections
import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from data_pipeline.engines import MAX_ATTEMPTS, Engine, Job
from data_pipeline.errors import UserError
from data_pipeline.progress_bar import progress_bar

# Tasks that wait in the cluster for a free core, for each core: enough that none is idle, few enough to stop soon.
_QUEUED_PER_CORE = 2
# One process per core, so one thread each.
_ENVIRONMENT = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}


class RayCluster:
    """Runs jobs as Ray tasks; `cluster` connects and disconnects."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def run(self, title: str, jobs: Sequence[Job]) -> None:
        """See engines.Engine."""
        waiting = collections.deque(range(len(jobs)))
        running: dict[Any, int] = {}
        faults: dict[int, Exception] = {}
        with progress_bar(total=len(jobs), desc=title, unit="shard") as bar:
            while waiting or running:
                while waiting and len(running) < self._most_running():
                    index = waiting.popleft()
                    running[self._submit(jobs[index])] = index
                for done in self._ray.wait(list(running), num_returns=1)[0]:
                    index = running.pop(done)
                    error = self._outcome(done, jobs[index])
                    bar.update()
                    if error is not None:
                        # Jobs before it may still be running: the first fault in order is the one to report.
                        faults[index] = error
                        waiting.clear()
        if faults:
            raise faults[min(faults)]

    def _most_running(self) -> int:
        # Asked each time: nodes come and go.
        return _QUEUED_PER_CORE * max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def _submit(self, job: Job) -> Any:
        # A lost process or node is Ray's to make good; what a job raises is ours.
        remote = self._ray.remote(num_cpus=1, max_retries=MAX_ATTEMPTS - 1, retry_exceptions=False)(job.function)
        return remote.options(runtime_env={"env_vars": _ENVIRONMENT}).remote(*job.arguments)

    def _outcome(self, reference: Any, job: Job) -> Exception | None:
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            return error.cause if isinstance(error.cause, UserError) else error
        except self._ray.exceptions.RayError as error:
            return UserError(
                f"{MAX_ATTEMPTS} Ray workers were lost while they had it in hand ({type(error).__name__})",
                where=job.name,
                fix="they may need more memory: use smaller files, or nodes with more memory per core",
            )
        return None


def require_ray() -> Any:
    """The module `ray`; raises UserError where it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            "Ray is not installed", where="--engine=ray", fix="pip install -e '.[ray]', or use --engine=local"
        ) from error


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[Engine]:
    """The engine of the Ray cluster at `address`; by default at $RAY_ADDRESS, or one of this machine alone.

    Raises UserError where Ray is not installed or the cluster cannot be reached.
    """
    ray = require_ray()
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    # Ray reports to its makers by default; a health system's cluster should not.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray says by a warning that a later version will leave accelerators visible to tasks that ask for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options["include_dashboard"] = False
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"no Ray cluster can be reached there ({type(error).__name__})",
            where=f"--ray_address={address}",
            fix="give the address that ray start has printed",
        ) from error
    try:
        yield RayCluster(ray)
    finally:
        ray.shutdown()
