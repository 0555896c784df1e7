"""What tokens say about which of an element's codes happened: the codes behind each beginning of a spelling.

Several codes may be spelt alike, where a vocabulary shortens rare codes or calls them UNKNOWN//<kind>; and all codes of
a category begin alike. N nodes, each a sequence of one to three tokens   W codes of the element, in token order
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import find_event, instant_rank
from data_pipeline.vocabulary import Vocabulary
from data_pipeline.world import catalogue

LONGEST = 3
_BITS = 16


@dataclasses.dataclass(frozen=True)
class CodeNodes:
    """The nodes of one element.

    Attributes:
        node_of_key: key of a token sequence (`key_of`) → node.
        runs_NxKx2: [begin, end) of each run of codes whose spelling begins with the node's tokens; padded with (0, 0).
        exact_offsets, exact: node n's tokens spell in full each of the codes exact[offsets[n] : offsets[n + 1]].
    """

    node_of_key: dict[int, int]
    runs_NxKx2: np.ndarray
    exact_offsets: np.ndarray
    exact: np.ndarray

    @classmethod
    def build(cls, codes: Sequence[str], vocabulary: Vocabulary) -> "CodeNodes":
        """The nodes of the codes of an element, as this vocabulary spells them."""
        spellings = _spellings(codes, vocabulary)
        keys = sorted({key_of(tokens[: end + 1]) for tokens in spellings for end in range(len(tokens))})
        node_of_key = {key: node for node, key in enumerate(keys)}
        begins: list[list[int]] = [[] for _ in keys]
        exact: list[list[int]] = [[] for _ in keys]
        for code, tokens in enumerate(spellings):
            for end in range(len(tokens)):
                begins[node_of_key[key_of(tokens[: end + 1])]].append(code)
            exact[node_of_key[key_of(tokens)]].append(code)
        runs = [_runs(members) for members in begins]
        runs_NxKx2 = np.zeros((len(keys), max(map(len, runs)), 2), np.int64)
        for node, own in enumerate(runs):
            runs_NxKx2[node, : len(own)] = own
        return cls(
            node_of_key,
            runs_NxKx2,
            np.cumsum([0, *map(len, exact)]),
            np.array(list(itertools.chain.from_iterable(exact)), np.int64),
        )

    def nodes(self, key_n: np.ndarray) -> np.ndarray:
        """The node of each key, -1 where no code's spelling begins so."""
        distinct, inverse = np.unique(key_n, return_inverse=True)
        return np.array([self.node_of_key.get(int(key), -1) for key in distinct], np.int64)[inverse]


def key_of(tokens: Sequence[int]) -> int:
    """One number for a sequence of up to three token ids."""
    return sum(token << (_BITS * place) for place, token in enumerate(tokens))


def keys_at(tokens_T: np.ndarray, start_n: np.ndarray) -> np.ndarray:
    """[LONGEST, n]: the key of the first one, two, three tokens from each start on."""
    wide_T = tokens_T.astype(np.int64)
    parts = [wide_T[start_n + place] << (_BITS * place) for place in range(LONGEST)]
    return np.cumsum(parts, axis=0)


def _spellings(codes: Sequence[str], vocabulary: Vocabulary) -> list[tuple[int, ...]]:
    concepts = vocabulary.code_map.map_codes(codes)
    ranks = [(instant_rank(concept), concept.name) for concept in concepts]
    if ranks != sorted(set(ranks)):
        raise ValueError("an element's codes are not in the order of their tokens")
    return [vocabulary.events[find_event(concept, vocabulary)].tokens for concept in concepts]


def _runs(members: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for member in members:
        if runs and runs[-1][1] == member:
            runs[-1] = (runs[-1][0], member + 1)
        else:
            runs.append((member, member + 1))
    return runs


def element_nodes(vocabulary: Vocabulary) -> tuple[CodeNodes, ...]:
    """The nodes of every element (instants.ELEMENTS)."""
    return tuple(CodeNodes.build(codes, vocabulary) for codes in catalogue.ELEMENT_CODES)


def require_world(vocabulary: Vocabulary) -> None:
    """Raise a UserError unless the vocabulary keeps the world's events one to one, but for shortened codes."""
    from data_pipeline.builtin_code_maps import WORLD
    from data_pipeline.intervals import COMET13

    reasons = {
        "its code map is not `world`": vocabulary.code_map != WORLD,
        "its interval tokens are not those of comet13": vocabulary.interval_preset != COMET13,
        "its values are fused with their codes": vocabulary.value_encoding != "split",
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(
                f"the world's true probabilities are not known for this vocabulary: {reason}",
                fix="build the corpus with --config.code_map=world and the default intervals and values",
            )
