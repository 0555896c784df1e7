"""What the processes of a run must agree on, lest one goes on where another stopped and both wait for ever.

Alone, a process agrees with itself: nothing is exchanged. Call these in all processes at the same places.
"""

import functools
import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cometjax import hosts
from data_pipeline.errors import UserError

T = TypeVar("T")
# A day: a process that is gone is noticed by the watch over all of them, and one that is slow is waited for.
_TIMEOUT_MILLISECONDS = 24 * 3600 * 1000
_beside = itertools.count()


class Poll:
    """Whether something is so in any process, asked at every step.

    With several processes the answer is that of the question before, `first` for the first one, so that no process
    waits for another: it was computed on the devices behind the step that they have finished since.
    """

    def __init__(self, *, first: bool) -> None:
        self._first = first
        self._answer: jax.Array | None = None

    def ask(self, here: bool) -> bool:
        """Whether it was so anywhere; `here`: whether it is so in this process now."""
        if jax.process_count() == 1:
            return here
        before, self._answer = self._answer, _any_process(here)
        return self._first if before is None else bool(jax.device_get(before))


def first_error_beside_the_steps(error: str) -> str:
    """The error of the first process that comes with one, and which that is; "" where none does.

    For a thread of each process: it goes through the coordination service, since on the devices it would meet what the
    main threads exchange. Called in all processes equally often; each waits for the others.
    """
    if jax.process_count() == 1:
        return error
    number, client = next(_beside), hosts.coordination_client()
    folder = f"cometjax/beside/{number}"
    client.key_value_set(f"{folder}/{jax.process_index()}", error)
    if jax.process_index() == 0:
        everyone = range(jax.process_count())
        errors = [client.blocking_key_value_get(f"{folder}/{process}", _TIMEOUT_MILLISECONDS) for process in everyone]
        told = next((f"process {process}: {text}" for process, text in enumerate(errors) if text), "")
        client.key_value_set(f"{folder}/all", told)
        # Whoever is here has read the answer before.
        client.key_value_delete(f"cometjax/beside/{number - 1}/")
    return str(client.blocking_key_value_get(f"{folder}/all", _TIMEOUT_MILLISECONDS))


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


def _any_process(flag: bool) -> jax.Array:
    """A global scalar, not yet computed: whether `flag` is set in any process."""
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    everywhere = NamedSharding(mesh, PartitionSpec("devices"))
    with jax.transfer_guard_host_to_device("allow"):
        flags_D = jax.make_array_from_process_local_data(everywhere, np.full(jax.local_device_count(), flag))
    return _any(mesh)(flags_D)


@functools.lru_cache(maxsize=1)
def _any(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
