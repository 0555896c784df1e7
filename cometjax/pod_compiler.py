"""Compile the step that training runs by a TPU pod's own compiler, on a machine that has no TPU.

libtpu (extra `plan`) holds the compiler; jax.experimental.topologies makes devices that exist for it alone.
The program is written to a temporary folder as text, because the executable itself gives its text only for programs
without collectives that run beside other work.
"""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from cometjax import sharding
from cometjax.chips import Topology
from cometjax.collectives import Collective, read_collectives
from cometjax.compiled_step import make_compiled_steps
from cometjax.pod_run import PodRun
from cometjax.train_step import TokenTables
from data_pipeline.errors import UserError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
# "... memory required for HLO temporaries (29.38G) exceeds available HBM (15.75G)", "Used 35.2G of 15.75G hbm"
_TOO_LARGE = re.compile(
    r"(?:required for HLO temporaries \(|Used )([\d.]+)([KMG]?)\)?.{1,40}?([\d.]+)([KMG]?)\)? ?(?:hbm)?"
)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The compiler's word on a step: bytes and FLOPs of one chip.

    `argument_bytes` are state and batch, `temporary_bytes` all that is alive beside them at the peak; `flops` and
    `bytes_accessed` count a loop's body once. `needed_bytes` is what a program that does not fit would need, by the
    compiler; then there are no other figures of memory. `collectives` is None where the program could not be read.
    """

    seconds: float
    argument_bytes: int | None = None
    temporary_bytes: int | None = None
    output_bytes: int | None = None
    code_bytes: int | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    needed_bytes: int | None = None
    collectives: tuple[Collective, ...] | None = None

    @property
    def fits(self) -> bool:
        """Whether the compiler found room."""
        return self.needed_bytes is None

    @property
    def total_bytes(self) -> int:
        """The peak, or what would be needed."""
        if self.needed_bytes is not None:
            return self.needed_bytes
        return (self.argument_bytes or 0) + (self.temporary_bytes or 0) + (self.output_bytes or 0)


def require_libtpu() -> None:
    """Raise UserError unless libtpu is installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for a TPU needs its compiler, libtpu",
            fix="pip install -e '.[plan]', or give --nocompile for the analytic plan alone",
        )


def compile_step(run: PodRun) -> CompiledStep:
    """Compile the train step of a run on a TPU topology; takes a minute or two.

    Raises UserError without libtpu, or for a topology that the compiler does not know.
    """
    require_libtpu()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="cometjax-plan-") as folder, _quiet_libtpu() as log:
        mesh = sharding.make_mesh(run.config.mesh, pod_devices(run.topology))
        try:
            compiled = _compile(run, mesh, folder)
        except jax.errors.JaxRuntimeError as error:
            needed = _needed_bytes(str(error))
            if needed is None:
                sys.stderr.write(pathlib.Path(log).read_text(errors="replace")[-2000:])
                raise
            program = _read_program(folder)
            return CompiledStep(time.perf_counter() - began, needed_bytes=needed, collectives=program)
        return _figures(compiled, time.perf_counter() - began, _read_program(folder))


def pod_devices(topology: Topology) -> list[Any]:
    """Devices that can be compiled for, and nothing else."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or libtpu asks a cloud's metadata server where it is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is taken, so others may hold libtpu's lock
    several = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(topology.slice_name, platform="tpu", **several).devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise UserError(
            f"the compiler does not know {topology.name} ({str(error).splitlines()[0][:200]})",
            where="--topology",
            fix="use a shape that is sold: v5e and v6e 2x2 to 16x16, v5p in cubes from 2x2x1",
        ) from error


def _compile(run: PodRun, mesh: Mesh, folder: str) -> Any:
    vocabulary = run.model.vocab_size
    # What the tables hold changes no shape: a corpus need not be there.
    tables = TokenTables(np.zeros(vocabulary, np.int32), np.zeros(vocabulary, bool))
    with jax.set_mesh(mesh):
        steps = make_compiled_steps(run.config, run.model, tables, mesh)
        lowered = steps.train.lower(steps.abstract_state, steps.abstract_batch)
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True, "xla_dump_hlo_module_re": ".*train_step.*"}
        return lowered.compile(compiler_options=dump)


def _figures(compiled: Any, seconds: float, collectives: tuple[Collective, ...] | None) -> CompiledStep:
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return CompiledStep(
        seconds=seconds,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=cost.get("flops"),
        bytes_accessed=cost.get("bytes accessed"),
        collectives=collectives,
    )


def _read_program(folder: str) -> tuple[Collective, ...] | None:
    files = sorted(pathlib.Path(folder).glob("*after_optimizations.txt"), key=lambda file: file.stat().st_size)
    if not files:
        return None
    try:
        return read_collectives(files[-1].read_text())
    except ValueError:
        return None


def _needed_bytes(message: str) -> int | None:
    """Bytes that the compiler says a program needs, in its error for one that is too large."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    match = _TOO_LARGE.search(message)
    return round(float(match[1]) * _UNITS[match[2]]) if match else None


@contextlib.contextmanager
def _quiet_libtpu() -> Iterator[str]:
    """Send what libtpu's C++ writes to stderr (warnings about a cloud that is not there) to a file; gives its path."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.NamedTemporaryFile(prefix="cometjax-plan-", suffix=".log") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield log.name
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
