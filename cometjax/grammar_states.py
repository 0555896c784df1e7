"""The vocabulary's grammar as tables of states: what may come next, and when an outcome has become certain.

`data_pipeline.grammar` reads whole sequences; a simulation must know token by token. Its state is all that matters of
the tokens so far: between events, after an interval, or inside an event, at a node of the tree of all spellings
(`Vocabulary.readings`).

An outcome is a set of events, and an event has up to three tokens of code and perhaps one of value. It *becomes
certain* with the first token after which every valid continuation is of the set: usually an event's first token, or
the part that tells the code apart; where a code of the set is itself the beginning of longer codes outside it, the
token that begins what comes next. So the probability of the outcome is summed over tokens at which it is decided, once
for each event, whatever the number of tokens.

U states   D children of a state   E deciding children of a state   V vocabulary   K outcomes   R rows
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.vocabulary import Vocabulary

# States that are not inside an event; nodes of the spelling tree come after them.
BETWEEN, AFTER_INTERVAL, AFTER_LONGEST = 0, 1, 2


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["class_VxC", "may_UxC", "child_UxD", "child_state_UxD", "start_V"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class States:
    """The tables.

    `class_VxC` (bool): is a token the first of an event, an interval but the longest, the longest interval, the end?
    `may_UxC`: which of these may come in a state. `child_UxD`: tokens that continue a state's event (V: none), and
    `child_state_UxD` where they lead. `start_V`: the state after a token that continues nothing.
    """

    class_VxC: Any
    may_UxC: Any
    child_UxD: Any
    child_state_UxD: Any
    start_V: Any

    def possible(self, state_R: jax.Array) -> jax.Array:
        """bool [R, V]: the tokens that obey the grammar."""
        may_RxC = self.may_UxC[state_R]
        starts_RxV = (may_RxC[:, None, :] & self.class_VxC).any(-1)
        return _mark(starts_RxV, self.child_UxD[state_R])

    def after(self, state_R: jax.Array, token_R: jax.Array) -> jax.Array:
        """The state after a token."""
        is_child_RxD = self.child_UxD[state_R] == token_R[:, None]
        child_R = jnp.where(is_child_RxD, self.child_state_UxD[state_R], 0).max(-1)
        return jnp.where(is_child_RxD.any(-1), child_R, self.start_V[token_R])


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["first_VxK", "closing_UxK", "deciding_UxE", "decides_UxE", "edge_outcomes_AxK"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Outcomes:
    """When each of K outcomes becomes certain.

    `first_VxK` (float32): by drawing a token as an event's first. `closing_UxK` (bool): by leaving a state for
    anything but its children. `deciding_UxE`: the children of a state that decide some outcome (V: none),
    `decides_UxE` their rows of `edge_outcomes_AxK` (float32; row 0 has none).
    """

    first_VxK: Any
    closing_UxK: Any
    deciding_UxE: Any
    decides_UxE: Any
    edge_outcomes_AxK: Any

    def hazard(self, states: States, probability_RxV: jax.Array, state_R: jax.Array) -> jax.Array:
        """float32 [R, K]: the probability that the next token makes an outcome certain."""
        hazard_RxK = probability_RxV @ self.first_VxK
        child_RxD = _take(probability_RxV, states.child_UxD[state_R])
        closing_RxK = self.closing_UxK[state_R]
        hazard_RxK = jnp.where(closing_RxK, jnp.maximum(0, 1 - child_RxD.sum(-1, keepdims=True)), hazard_RxK)
        deciding_RxE = _take(probability_RxV, self.deciding_UxE[state_R])
        return hazard_RxK + jnp.einsum("re,rek->rk", deciding_RxE, self.edge_outcomes_AxK[self.decides_UxE[state_R]])

    def decided(self, states: States, state_R: jax.Array, token_R: jax.Array) -> jax.Array:
        """bool [R, K]: does drawing this token make an outcome certain?"""
        is_child_R = (states.child_UxD[state_R] == token_R[:, None]).any(-1)
        by_start_RxK = self.closing_UxK[state_R] | (self.first_VxK[token_R] > 0)
        is_deciding_RxE = self.deciding_UxE[state_R] == token_R[:, None]
        edge_R = jnp.where(is_deciding_RxE, self.decides_UxE[state_R], 0).max(-1)
        return jnp.where(is_child_R[:, None], self.edge_outcomes_AxK[edge_R] > 0, by_start_RxK)

    def deciding(self, states: States, state_R: jax.Array, outcome: int) -> jax.Array:
        """bool [R, V]: the tokens that make this outcome certain."""
        size = self.first_VxK.shape[0]
        none_RxV = jnp.zeros((len(state_R), size), bool)
        closes_RxV = self.closing_UxK[state_R, outcome][:, None] & ~_mark(none_RxV, states.child_UxD[state_R])
        edges_RxE = self.edge_outcomes_AxK[self.decides_UxE[state_R], outcome] > 0
        deciding_RxE = jnp.where(edges_RxE, self.deciding_UxE[state_R], size)
        return _mark(closes_RxV | (self.first_VxK[:, outcome] > 0), deciding_RxE)


def _mark(mask_RxV: jax.Array, tokens_RxD: jax.Array) -> jax.Array:
    return mask_RxV.at[jnp.arange(len(mask_RxV))[:, None], tokens_RxD].set(True, mode="drop")


def _take(values_RxV: jax.Array, tokens_RxD: jax.Array) -> jax.Array:
    # Where there is no token, 0.
    return jnp.take_along_axis(values_RxV, tokens_RxD, 1, mode="fill", fill_value=0)


@dataclasses.dataclass
class _Node:
    prefix: tuple[int, ...]
    children: dict[int, int]


def build_states(vocabulary: Vocabulary) -> States:
    """The tables of a vocabulary's grammar.

    Raises UserError: the vocabulary has no events, so there is no grammar to obey.
    """
    if not vocabulary.readings:
        raise UserError("the vocabulary has no events to spell", where="grammar", fix="simulate without the grammar")
    size = len(vocabulary)
    nodes, state_of = _tree(vocabulary)
    grammar = vocabulary.grammar_of
    longest = vocabulary.interval_ids[-1]
    class_VxC = np.zeros((size, 4), bool)
    class_VxC[[prefix[0] for prefix in state_of if len(prefix) == 1], 0] = True
    class_VxC[list(vocabulary.interval_ids[:-1]), 1] = True
    class_VxC[longest, 2] = True
    class_VxC[[kind == "end" for kind in grammar], 3] = True
    start_V = np.full(size, BETWEEN, np.int32)
    start_V[list(vocabulary.interval_ids)] = AFTER_INTERVAL
    start_V[longest] = AFTER_LONGEST
    may_UxC = np.zeros((len(nodes), 4), bool)
    may_UxC[[AFTER_INTERVAL, AFTER_LONGEST], 0] = True
    may_UxC[AFTER_LONGEST, 2] = True
    may_UxC[[AFTER_INTERVAL, AFTER_LONGEST], 3] = vocabulary.knows_follow_up
    for prefix, state in state_of.items():
        may_UxC[state] = prefix in vocabulary.readings
        if len(prefix) == 1:
            start_V[prefix[0]] = state
    may_UxC[BETWEEN] = True
    child_UxD = _padded([list(node.children) for node in nodes], size)
    child_state_UxD = _padded([list(node.children.values()) for node in nodes], BETWEEN)
    tables = States(class_VxC, may_UxC, child_UxD, child_state_UxD, start_V)
    return jax.tree.map(jnp.asarray, tables)


def build_outcomes(vocabulary: Vocabulary, concepts: Sequence[frozenset[str]]) -> Outcomes:
    """When outcomes become certain, each given as the concepts of its events."""
    nodes, state_of = _tree(vocabulary)
    size, count = len(vocabulary), len(concepts)
    is_outcome_KxN = np.array([[event.concept in wanted for event in vocabulary.events] for wanted in concepts])
    is_outcome_KxN = is_outcome_KxN.reshape(count, len(vocabulary.events))
    certain_UxK = np.zeros((len(nodes), count), bool)
    itself_UxK = np.zeros((len(nodes), count), bool)
    for state in sorted(state_of.values(), key=lambda state: -len(nodes[state].prefix)):
        node = nodes[state]
        below = [certain_UxK[child] for child in node.children.values()]
        if node.prefix in vocabulary.readings:
            itself_UxK[state] = is_outcome_KxN[:, vocabulary.readings[node.prefix][0]]
            below.append(itself_UxK[state])
        certain_UxK[state] = np.all(below, axis=0)
    first_VxK = np.zeros((size, count), np.float32)
    for prefix, state in state_of.items():
        if len(prefix) == 1:
            first_VxK[prefix[0]] = certain_UxK[state]
    edges: list[np.ndarray] = [np.zeros(count, bool)]
    tokens: list[list[int]] = [[] for _ in nodes]
    rows: list[list[int]] = [[] for _ in nodes]
    for state, node in enumerate(nodes):
        for token, child in node.children.items():
            decided_K = certain_UxK[child] & ~certain_UxK[state]
            if decided_K.any():
                tokens[state].append(token)
                rows[state].append(len(edges))
                edges.append(decided_K)
    tables = Outcomes(
        first_VxK=first_VxK,
        closing_UxK=itself_UxK & ~certain_UxK,
        deciding_UxE=_padded(tokens, size),
        decides_UxE=_padded(rows, 0),
        edge_outcomes_AxK=np.array(edges, np.float32),
    )
    return jax.tree.map(jnp.asarray, tables)


def whole_events(tokens_T: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """A future that was cut short, less the tokens of an event that the cut left unfinished."""
    grammar = [vocabulary.grammar_of[token] for token in tokens_T.tolist()]
    last = max((index for index, kind in enumerate(grammar) if kind == "first"), default=None)
    if last is None or "interval" in grammar[last:] or tuple(tokens_T[last:].tolist()) in vocabulary.readings:
        return tokens_T
    return tokens_T[:last]


def _tree(vocabulary: Vocabulary) -> tuple[list[_Node], Mapping[tuple[int, ...], int]]:
    # The states in order, and where each beginning of a spelling has its own.
    nodes = [_Node((), {}) for _ in (BETWEEN, AFTER_INTERVAL, AFTER_LONGEST)]
    state_of: dict[tuple[int, ...], int] = {}
    for reading in sorted(vocabulary.readings):
        for length in range(1, len(reading) + 1):
            prefix = reading[:length]
            if prefix in state_of:
                continue
            state_of[prefix] = len(nodes)
            nodes.append(_Node(prefix, {}))
            if length > 1:
                nodes[state_of[prefix[:-1]]].children[prefix[-1]] = state_of[prefix]
    return nodes, state_of


def _padded(lists: Sequence[Sequence[int]], padding: int) -> np.ndarray:
    table = np.full((len(lists), max(1, max(map(len, lists)))), padding, np.int32)
    for row, values in enumerate(lists):
        table[row, : len(values)] = values
    return table
