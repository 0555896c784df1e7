"""Futures that outgrow the context window: the next window, and a future put together from several.

A model attends to as many tokens as its training rows had. A future that fills them and is not over goes on in a new
window: the static prefix of that time (age and calendar period move on), the latest whole entries, and from there as
before, with the clock, the grammar's state and what is still asked. So were the windows of long records in training;
what lies before the window is forgotten.

T tokens of a future   K outcomes
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from cometjax.batches import Drawn, Request
from cometjax.futures import Future, Start, clock
from data_pipeline import grammar
from data_pipeline.vocabulary import PREFIX_LENGTH, Vocabulary

_KEYS_AT_ONCE = 256
_FIRST_WORD = 2**31  # of the words that keys are folded with; a window's steps have those below


def next_request(
    begun: Request, future: Future, last: Drawn, sample: int, vocabulary: Vocabulary, max_prompt_tokens: int
) -> Request:
    """The request that goes on with a cut future, with the keys of the last window still.

    Args:
        begun: the request of the future's prompt.
        future: all of it so far.
        last: what its last window gave.
        sample: its place there.
        vocabulary: the model's.
        max_prompt_tokens: how many tokens the new window begins with, at most.
    """
    base_T = begun.start.tokens_T
    whole_T = np.concatenate([base_T, future.tokens_T])
    clock_T = clock(future, vocabulary)
    earliest = max(PREFIX_LENGTH, len(whole_T) - (max_prompt_tokens - PREFIX_LENGTH))
    fitting = np.flatnonzero(grammar.entry_starts(whole_T, vocabulary)[earliest:])
    start = earliest + int(fitting[0]) if len(fitting) else earliest
    history = len(base_T) - begun.start.gap
    if start < history:
        prefix = begun.prompt.prefix_before(history - start)
    else:
        # A window that begins with an interval has the prefix of the time after it.
        kinds = [vocabulary.grammar_of[token] for token in whole_T[start:].tolist()]
        first = start + next((i for i, kind in enumerate(kinds) if kind != "interval"), len(kinds))
        drawn = max(0, first - len(base_T))
        prefix = begun.prompt.prefix_after(int(clock_T[drawn - 1]) if drawn else 0, vocabulary)
    tokens_T = np.concatenate([prefix, whole_T[start:]]).astype(np.int32)
    at = Start(tokens_T, int(clock_T[-1]), -1, int(last.state_S[sample]), excess=int(last.excess_S[sample]))
    watches = {0: last.request.watches[sample]} if sample in last.request.watches else {}
    key_Sx2 = last.request.key_Sx2[sample : sample + 1]
    return dataclasses.replace(last.request, start=at, key_Sx2=key_Sx2, watches=watches)


def with_keys(requests: Sequence[Request], window: int) -> list[Request]:
    """The requests of a window (0 is a future's first) with keys of its own: of the window before and its number."""
    keyed = []
    for at in range(0, len(requests), _KEYS_AT_ONCE):  # one shape, whatever the number of requests
        part = requests[at : at + _KEYS_AT_ONCE]
        key_Nx2 = np.zeros((_KEYS_AT_ONCE, 2), np.uint32)
        key_Nx2[: len(part)] = [request.key_Sx2[0] for request in part]
        folded_Nx2 = np.asarray(_fold(key_Nx2, np.uint32(_FIRST_WORD + window)))
        keyed += [dataclasses.replace(own, key_Sx2=key_2[None]) for own, key_2 in zip(part, folded_Nx2, strict=False)]
    return keyed


@jax.jit
def _fold(key_Nx2: jax.Array, word: jax.Array) -> jax.Array:
    one = lambda key: jax.random.key_data(  # noqa: E731
        jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), word)
    )
    return jax.vmap(one)(key_Nx2)


def joined(earlier: Future, later: Future) -> Future:
    """A future and what its next window brought."""
    hazard_TxK, decided_TxK, clock_T = earlier.hazard_TxK, earlier.decided_TxK, earlier.drawn_clock_T
    if later.hazard_TxK is not None:
        hazard_TxK = np.concatenate([hazard_TxK, later.hazard_TxK])
        decided_TxK = np.concatenate([decided_TxK, later.decided_TxK])
    if later.drawn_clock_T is not None:
        clock_T = np.concatenate([clock_T, later.drawn_clock_T])
    return dataclasses.replace(
        earlier,
        tokens_T=np.concatenate([earlier.tokens_T, later.tokens_T]),
        stop=later.stop,
        drawn_clock_T=clock_T,
        hazard_TxK=hazard_TxK,
        decided_TxK=decided_TxK,
    )


def first_tokens(future: Future, number: int) -> Future:
    """Its first tokens alone."""
    return dataclasses.replace(
        future,
        tokens_T=future.tokens_T[:number],
        hazard_TxK=None if future.hazard_TxK is None else future.hazard_TxK[:number],
        decided_TxK=None if future.decided_TxK is None else future.decided_TxK[:number],
        drawn_clock_T=None if future.drawn_clock_T is None else future.drawn_clock_T[:number],
    )
