"""What the processes of a run must agree on, lest one goes on where another stopped and both wait for ever.

Alone, a process agrees with itself: nothing is exchanged. Call these in all processes at the same places.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipeline.errors import UserError

T = TypeVar("T")


def together(action: Callable[[], T]) -> T:
    """Do `action` in every process. If any ends in a UserError, all raise it: the first such process's.

    For what may go well in one process and fail in another: files, devices.
    """
    if jax.process_count() == 1:
        return action()
    error, result = "", None
    try:
        result = action()
    except UserError as raised:
        error = str(raised)
    failures = [(process, text) for process, text in enumerate(_exchange(error)) if text]
    if len(failures) == jax.process_count():
        raise UserError(error)
    if failures:
        raise UserError(f"process {failures[0][0]}: {failures[0][1]}")
    return result  # type: ignore[return-value]


def from_first(action: Callable[[], T]) -> T:
    """Do `action` in the first process alone; all get its result (anything that JSON holds), or raise its UserError.

    For what one process writes, or must decide for all.
    """
    if jax.process_count() == 1:
        return action()
    told: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            told = {"result": action()}
        except UserError as raised:
            told = {"error": str(raised)}
    told = json.loads(_exchange(json.dumps(told))[0])
    if "error" in told:
        raise UserError(told["error"])
    result: T = told["result"]
    return result


def refuse_difference(what: str, value: Any) -> None:
    """Raise UserError in every process unless `value` (anything that JSON holds) is that of the first."""
    first = from_first(lambda: value)

    def compare() -> None:
        if json.loads(json.dumps(value)) != first:
            raise UserError(
                f"another {what} than in the first process", fix="start all processes with the same command and code"
            )

    together(compare)


def _exchange(text: str) -> list[str]:
    """The texts of all processes."""
    with jax.transfer_guard("allow"):
        mine = np.frombuffer(text.encode(), np.uint8)
        sizes = np.ravel(multihost_utils.process_allgather(np.int32(mine.size)))
        # A power of two, so that few lengths are compiled.
        padded = np.zeros(1 << int(max(sizes.max(), 1) - 1).bit_length(), np.uint8)
        padded[: mine.size] = mine
        everyone = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row[:size]).decode() for row, size in zip(everyone, sizes, strict=True)]
