"""How events and their values are spelt in tokens, as numpy tables that a whole column looks up at once.

V events   W values: the ten deciles, the text values that one event can have, and none   R spellings, of 1 to 4 tokens
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

LONGEST_SPELLING = 4


@dataclasses.dataclass(frozen=True)
class SpellingTable:
    """Every spelling of a vocabulary.

    Attributes:
        num_values: W. Values are numbered in the order in which events of one code stand at an instant: decile d is
            d - 1, the event's text values follow, and the last, W - 1, is none.
        row_VxW: the spelling of an event with a value; -1 where it has none, as the event never or always has a value.
        length_R: tokens of a spelling.
        tokens_4xR: uint16, the first, second, ... token of each spelling; 0 beyond its length.
        edges_9xV: float64 decile cuts; NaN where the event takes no number.
        text_value_of: (event, text) → number of the value.
    """

    num_values: int
    row_VxW: np.ndarray
    length_R: np.ndarray
    tokens_4xR: np.ndarray
    edges_9xV: np.ndarray
    text_value_of: Mapping[tuple[int, str], int]

    def value_codes(
        self, event_n: np.ndarray, value_n: np.ndarray, text_n: np.ndarray | None, texts: Sequence[str]
    ) -> np.ndarray:
        """The number of each event's value, given its vocabulary event, its number (NaN: none) and its text.

        `text_n` indexes `texts`, -1 where there is none; it is None where texts were not read.
        """
        code_n = np.full(len(event_n), self.num_values - 1)
        valued = np.flatnonzero(~np.isnan(value_n) & ~np.isnan(self.edges_9xV[0])[event_n])
        event_v, value_v = event_n[valued], value_n[valued].astype(np.float64)
        decile_v = np.zeros(len(valued), np.int64)
        for edge_V in self.edges_9xV:
            decile_v += value_v > edge_V[event_v]
        code_n[valued] = decile_v
        if text_n is not None and self.text_value_of:
            worded = np.flatnonzero(text_n >= 0)
            pairs, pair_w = np.unique(event_n[worded] * len(texts) + text_n[worded], return_inverse=True)
            found = [divmod(int(pair), len(texts)) for pair in pairs]
            codes = [self.text_value_of.get((event, texts[text]), self.num_values - 1) for event, text in found]
            code_n[worded] = np.array(codes, np.int64)[pair_w]
        return code_n


def build_table(
    spellings_V: Sequence[Mapping[int, tuple[int, ...]]],
    edges_V: Sequence[tuple[float, ...]],
    text_value_of: Mapping[tuple[int, str], int],
    num_values: int,
) -> SpellingTable:
    """Make the table from each event's spellings (value number → tokens) and deciles' edges (() where it has none)."""
    rows: list[tuple[int, ...]] = []
    row_VxW = np.full((len(spellings_V), num_values), -1, np.int32)
    none = num_values - 1
    for event, spellings in enumerate(spellings_V):
        if none in spellings:
            row_VxW[event] = len(rows)
            rows.append(spellings[none])
        for value in sorted(spellings.keys() - {none}):
            row_VxW[event, value] = len(rows)
            rows.append(spellings[value])
    tokens_Rx4 = np.zeros((len(rows), LONGEST_SPELLING), np.uint16)
    for row, tokens in enumerate(rows):
        tokens_Rx4[row, : len(tokens)] = tokens
    edges_9xV = np.array([edges or (np.nan,) * 9 for edges in edges_V]).reshape(-1, 9).T.copy()
    length_R = np.array([len(tokens) for tokens in rows], np.int32)
    return SpellingTable(num_values, row_VxW, length_R, tokens_Rx4.T.copy(), edges_9xV, text_value_of)
