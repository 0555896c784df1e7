"""Whether all processes of a run see one workdir, or a folder each of the same name.

Unnoticed, each host would write its part of a checkpoint where the others never look for it.
"""

import pathlib
import time
import uuid

import jax

from cometjax import agreement
from cometjax import workdir as workdirs
from data_pipeline.errors import UserError

_MARK = "shared.mark"
# How long a host may take to see what another has written: over NFS it answers up to half a minute from memory.
_SECONDS = 40.0


def refuse_unshared(workdir: pathlib.Path) -> None:
    """Raise UserError in every process unless all see the workdir that the first one has opened."""
    if jax.process_count() == 1:
        return
    mark = agreement.from_first(lambda: _leave_mark(workdir))
    agreement.together(lambda: _find(workdir, mark))
    agreement.from_first(lambda: (workdir / _MARK).unlink())


def _leave_mark(workdir: pathlib.Path) -> str:
    mark = uuid.uuid4().hex
    workdirs.write_text(workdir / _MARK, mark)
    return mark


def _find(workdir: pathlib.Path, mark: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not _holds(workdir / _MARK, mark):
        if time.monotonic() > deadline:
            raise UserError(
                "is not the folder that the first process writes to",
                where=str(workdir),
                fix="give a --workdir that all hosts mount",
            )
        time.sleep(0.2)


def _holds(path: pathlib.Path, mark: str) -> bool:
    try:
        return path.read_text() == mark
    except OSError:
        return False
