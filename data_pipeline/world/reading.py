"""Read given tokens by the world's rules: the exact probability of each, and what the subject may be after all of them.

A subject is a handful of weighted rows of the State: one for each phenotype (and sex, where the vocabulary hides it). A
token's probability is the rows' weight after it over their weight before it. Where tokens fit several codes (UNKNOWN,
or a shortened code), each row splits into one for each code, and rows that nothing tells apart afterwards are joined:
a filter over everything hidden, by enumeration.

S subjects of a block   T tokens of the block, end to end   P rows of the State   n rows in hand   W codes of an element
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import threadpoolctl

from data_pipeline.errors import UserError
from data_pipeline.vocabulary import DECILES, PREFIX_LENGTH, TIMELINE_END, Vocabulary
from data_pipeline.world import catalogue, conditions, instants, lab_deciles, rules, simulation, walk
from data_pipeline.world.code_nodes import LONGEST, CodeNodes, element_nodes, keys_at, require_world
from data_pipeline.world.instants import OVER
from data_pipeline.world.observation import Prefixes
from data_pipeline.world.state import State, initial_state

# Rows of less than this share of their subject's weight are dropped, where codes are ambiguous and rows many.
NEGLIGIBLE = 1e-13
MOST_ROWS_PER_SUBJECT = 20_000
# Nearest to 1 that a probability of leaving a code out can tell from it.
_NEARLY_CERTAIN = 1 - 2.0**-53


@dataclasses.dataclass(frozen=True)
class Reading:
    """What reading S token sequences gave.

    Attributes:
        log_T: float64, natural log-probability of each token given those before it; -inf for the first that the world
            cannot write, NaN after it.
        offsets_S1: sequence s has log_T[offsets[s] : offsets[s + 1]].
        state: rows as they are after the last token, before time passes.
        subject_P: the sequence of each row; log_weight_P: unnormalized.
    """

    log_T: np.ndarray
    offsets_S1: np.ndarray
    state: State
    subject_P: np.ndarray
    log_weight_P: np.ndarray

    def log_probabilities(self, sequence: int) -> np.ndarray:
        """log_T of one sequence."""
        return self.log_T[self.offsets_S1[sequence] : self.offsets_S1[sequence + 1]]


class Reader:
    """Reads token sequences of one vocabulary; raises UserError when the vocabulary is not one of the world's."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        require_world(vocabulary)
        self.vocabulary = vocabulary
        self.nodes = element_nodes(vocabulary)
        self.thresholds = lab_deciles.thresholds(vocabulary)
        grammar = np.array(vocabulary.grammar_of)
        self.is_first_V, self.is_part_V = grammar == "first", grammar == "part"
        self.bin_V = np.full(len(grammar), -1)
        self.bin_V[list(vocabulary.interval_ids)] = np.arange(len(vocabulary.interval_ids))
        self.decile_V = np.zeros(len(grammar), np.int64)
        for decile in range(1, DECILES + 1):
            self.decile_V[vocabulary.ids[f"VALUE//{decile}"]] = decile
        self.end = vocabulary.ids[TIMELINE_END]
        self.is_death = [np.array(codes) == catalogue.DEATH_CODE for codes in catalogue.ELEMENT_CODES]

    def read(self, sequences: Sequence[np.ndarray]) -> Reading:
        """Read whole or unfinished timelines, each with its static prefix, together."""
        # The products are small: threads within them cost far more than they save.
        with threadpoolctl.threadpool_limits(1), np.errstate(divide="ignore"):
            return _Block(self, sequences).read()


class _Block:
    """A walk.Chooser that reads; the rows' places in the tokens, and their weights, stand beside the State."""

    skips: frozenset[int] = frozenset()

    def __init__(self, reader: Reader, sequences: Sequence[np.ndarray]) -> None:
        self._reader = reader
        self._offsets_S1 = np.cumsum([0, *map(len, sequences)])
        # Padded, so that one may look a few tokens ahead anywhere.
        self._tokens = np.concatenate([*sequences, np.zeros(LONGEST + 1, np.uint16)]).astype(np.int64)
        self._end_S = self._offsets_S1[1:]
        self._log_T = np.full(self._offsets_S1[-1], np.nan)
        self._log_total_S = np.zeros(len(sequences))
        self._parse_events()
        self._prefixes = Prefixes(self._prefix_tokens(), reader.vocabulary)
        self._begin()

    def read(self) -> Reading:
        """The whole of it."""
        walk.begin(self.state, self)
        self._join()
        while (self.state.instant_P != OVER).any():
            walk.pass_instant(self.state, self)
            self._join()
        # What no row could take is impossible.
        for stop in self._end_S[np.isnan(self._log_T[self._end_S - 1])]:
            start = self._offsets_S1[np.searchsorted(self._offsets_S1, stop) - 1]
            missing = start + np.flatnonzero(np.isnan(self._log_T[start:stop]))[0]
            if missing == start or self._log_T[missing - 1] > -np.inf:
                self._log_T[missing] = -np.inf
        self.state.instant_P = self._reached_P
        kept = np.flatnonzero(self._log_weight_P > -np.inf)
        return Reading(
            self._log_T,
            self._offsets_S1,
            self.state.take(kept),
            self._subject_P[kept],
            self._log_weight_P[kept],
        )

    def _parse_events(self) -> None:
        reader, tokens = self._reader, self._tokens
        event_start = np.flatnonzero(reader.is_first_V[tokens])
        self._event_T = np.full(len(tokens), -1)
        self._event_T[event_start] = np.arange(len(event_start))
        is_part = [reader.is_part_V[tokens[np.minimum(event_start + place, len(tokens) - 1)]] for place in (1, 2)]
        self._parts_n = 1 + is_part[0] + (is_part[0] & is_part[1])
        self._decile_n = reader.decile_V[tokens[event_start + self._parts_n]]
        keys = keys_at(tokens, event_start)
        # [element][place]: the node of an event's first, first two, first three tokens.
        self._node = [np.stack([nodes.nodes(key_n) for key_n in keys]) for nodes in reader.nodes]
        bin_T = reader.bin_V[tokens]
        # How many equal tokens follow from here on, itself included.
        last_T = np.append(tokens[1:] != tokens[:-1], True)
        ends = np.flatnonzero(last_T)
        self._run_T = ends[np.searchsorted(ends, np.arange(len(tokens)))] - np.arange(len(tokens)) + 1
        self._bin_T = bin_T

    def _prefix_tokens(self) -> np.ndarray:
        starts_S = self._offsets_S1[:-1]
        tokens_SxF = self._tokens[np.minimum(starts_S[:, None] + np.arange(PREFIX_LENGTH), len(self._tokens) - 1)]
        # An unfinished prefix: its missing tokens fit nothing.
        return np.where(starts_S[:, None] + np.arange(PREFIX_LENGTH) < self._end_S[:, None], tokens_SxF, -1)

    def _begin(self) -> None:
        prefixes = self._prefixes
        for place in range(PREFIX_LENGTH):
            has = np.flatnonzero(self._offsets_S1[:-1] + place < self._end_S)
            self._log_T[self._offsets_S1[has] + place] = prefixes.log_SxF[has, place]
        # Of several impossible tokens, the first is.
        possible_S = (prefixes.log_SxF > -np.inf).all(axis=1)
        shape = (len(self._end_S), 2, len(conditions.PHENOTYPES))
        subject, sex, phenotype = np.nonzero(
            np.broadcast_to((prefixes.sex_Sx2 & possible_S[:, None])[:, :, None], shape)
        )
        weights = prefixes.sex_shares[sex] * np.array(conditions.PHENOTYPE_SHARES)[phenotype]
        totals_S = np.bincount(subject, weights, minlength=len(self._end_S))
        self.state = initial_state(sex == 0, phenotype, simulation.middle_age(prefixes.bucket_S[subject]))
        self._subject_P = subject
        self._log_weight_P = np.log(weights / totals_S[subject])
        self._pos_P = self._offsets_S1[subject] + PREFIX_LENGTH
        self._reached_P = self.state.instant_P.copy()
        self._is_split = False

    # What a walk asks.

    def time(self, s: State, rows_n: np.ndarray, weights_nxG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        going_n = self._pos_P[rows_n] < self._end_S[self._subject_P[rows_n]]
        done = rows_n[~going_n]
        self._reached_P[done] = s.instant_P[done]
        s.instant_P[done] = OVER
        rows_n, weights_nxG = rows_n[going_n], weights_nxG[going_n]
        pos_n, subject_n = self._pos_P[rows_n], self._subject_P[rows_n]
        event_nxG, silence_nxG = self._time_masses(subject_n, s.clock_P[rows_n], weights_nxG)
        if not self._reader.vocabulary.knows_follow_up:
            ending = np.flatnonzero(self._tokens[pos_n] == self._reader.end)
            self._finish(s, rows_n[ending], np.log(silence_nxG[ending].sum(axis=1)))
            passing = np.flatnonzero(self._tokens[pos_n] != self._reader.end)
            rows_n, pos_n, event_nxG = rows_n[passing], pos_n[passing], event_nxG[passing]
            silence_nxG = np.zeros_like(event_nxG)
        gap_n, log_n, is_silent_n = self._read_gap(rows_n, pos_n, event_nxG, silence_nxG)
        self._pos_P[rows_n] += np.where(gap_n < rules.FIRST_REPEAT, 1, gap_n - rules.FIRST_REPEAT + 1)
        self._log_weight_P[rows_n] += log_n
        silent = rows_n[is_silent_n]
        self._finish(s, silent, np.zeros(len(silent)))
        rows_n, gap_n = rows_n[~is_silent_n], gap_n[~is_silent_n]
        alive_n = self._drop_dead(s, rows_n)
        return rows_n[alive_n], gap_n[alive_n]

    def _time_masses(
        self, subject_n: np.ndarray, clock_n: np.ndarray, weights_nxG: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(probability of a gap of each column before another event, of a silence of it before observation ends)."""
        minutes = (rules.CLOCK_MINUTES, rules.LOW_MINUTES - 1, rules.HIGH_MINUTES - 1)
        observed_nxM = self._prefixes.observed(subject_n, clock_n, np.concatenate(minutes))
        to_event_nxG, from_low_nxG, from_high_nxG = np.split(observed_nxM, 3, axis=1)
        # What is left is a gap past the longest one.
        left_nx1 = np.maximum(1 - weights_nxG.sum(axis=1, keepdims=True), 0.0)
        longer_nxG = np.cumsum(np.concatenate([weights_nxG, left_nx1], axis=1)[:, ::-1], axis=1)[:, -2::-1]
        # A longer gap is cut anywhere in the column's range, one of the column's own before its event.
        silence_nxG = longer_nxG * (from_low_nxG - from_high_nxG)
        silence_nxG += weights_nxG * np.maximum(from_low_nxG - to_event_nxG, 0)
        return weights_nxG * to_event_nxG, silence_nxG

    def _finish(self, s: State, rows_n: np.ndarray, log_mass_n: np.ndarray) -> None:
        """Rows whose next token is TIMELINE_END."""
        self._log_weight_P[rows_n] += log_mass_n
        self._record(rows_n, self._pos_P[rows_n], self._log_weight_P[rows_n])
        self._pos_P[rows_n] += 1
        s.instant_P[rows_n] = OVER
        self._reached_P[rows_n] = OVER

    def _read_gap(
        self, rows_n: np.ndarray, pos_n: np.ndarray, event_nxG: np.ndarray, silence_nxG: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(column of the gap, its log-probability, is it the silence before TIMELINE_END?) of rows whose next token
        should be an interval."""
        mass_nxG = event_nxG + silence_nxG
        bin_n = self._bin_T[pos_n]
        length_n = self._end_S[self._subject_P[rows_n]] - pos_n
        is_open_n = bin_n == rules.FIRST_REPEAT
        repeats_n = np.where(is_open_n, np.minimum(self._run_T[pos_n], length_n), 1)
        known_n = (bin_n >= 0) & (repeats_n <= rules.MOST_REPEATS)
        gap_n = np.where(known_n, bin_n + repeats_n - 1, 0)
        # Of the open bin, the k-th token says: k repeats or more.
        at_least_nxR = np.cumsum(mass_nxG[:, : rules.FIRST_REPEAT - 1 : -1], axis=1)[:, ::-1]
        for place in range(int(repeats_n.max(initial=0))):
            having = np.flatnonzero(known_n & (repeats_n > place))
            mass_m = np.where(
                is_open_n[having],
                at_least_nxR[having, place % rules.MOST_REPEATS],
                mass_nxG[having, gap_n[having]],
            )
            self._record(rows_n[having], pos_n[having] + place, self._log_weight_P[rows_n[having]] + np.log(mass_m))
        is_silent_n = known_n & (repeats_n < length_n) & (self._tokens[pos_n + repeats_n] == self._reader.end)
        own_nxG = np.where(is_silent_n[:, None], silence_nxG, event_nxG)
        log_n = np.where(known_n, np.log(own_nxG[np.arange(len(rows_n)), gap_n]), -np.inf)
        return gap_n, log_n, is_silent_n

    def one(self, s: State, element: int, rows_n: np.ndarray, weights_nxW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nodes = self._reader.nodes[element]
        event_n = self._event_at(element, rows_n)
        self._kill(s, rows_n[event_n < 0])
        rows_n, weights_nxW, event_n = rows_n[event_n >= 0], weights_nxW[event_n >= 0], event_n[event_n >= 0]
        p_nxW = weights_nxW / weights_nxW.sum(axis=1, keepdims=True)
        below_nxW1 = np.concatenate((np.zeros((len(p_nxW), 1)), np.cumsum(p_nxW, axis=1)), axis=1)
        for place, m, node_m in self._places(element, event_n):
            mass_m = np.zeros(len(m))
            for run in _runs_of(nodes, node_m):
                mass_m += below_nxW1[m, run[1]] - below_nxW1[m, run[0]]
            # Differences of sums: below 1e-16 they are rounding.
            mass_m = np.maximum(mass_m, 0.0)
            self._record(rows_n[m], self._pos_P[rows_n[m]] + place, self._log_weight_P[rows_n[m]] + np.log(mass_m))
        parent_k, code_k = self._exact_codes(element, event_n)
        is_read = np.zeros(len(rows_n), bool)
        is_read[parent_k] = True
        self._kill(s, rows_n[~is_read])
        rows_k = self._split(s, rows_n, parent_k)
        self._log_weight_P[rows_k] += np.log(p_nxW[parent_k, code_k])
        self._pos_P[rows_k] += self._parts_n[event_n[parent_k]]
        # A value where there can be none.
        self._log_weight_P[rows_k[self._decile_n[event_n[parent_k]] > 0]] = -np.inf
        self._end_the_dead(s, rows_k[self._reader.is_death[element][code_k]])
        alive_k = self._drop_dead(s, rows_k)
        return rows_k[alive_k], code_k[alive_k]

    def _end_the_dead(self, s: State, rows_n: np.ndarray) -> None:
        """After a death, TIMELINE_END is certain."""
        self._reached_P[rows_n] = OVER
        pos_n = self._pos_P[rows_n]
        more_n = pos_n < self._end_S[self._subject_P[rows_n]]
        ending_n = more_n & (self._tokens[pos_n] == self._reader.end)
        self._log_weight_P[rows_n[more_n & ~ending_n]] = -np.inf
        self._finish(s, rows_n[ending_n], np.zeros(ending_n.sum()))

    def some(
        self, s: State, element: int, rows_n: np.ndarray, probabilities_nxW: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._read_set(s, element, rows_n, probabilities_nxW, None)

    def tests(self, s: State, rows_n: np.ndarray, probabilities_nxL: np.ndarray, means_nxL: np.ndarray) -> None:
        self._read_set(s, instants.TESTS, rows_n, probabilities_nxL, means_nxL)

    def _read_set(
        self, s: State, element: int, rows_n: np.ndarray, p_nxW: np.ndarray, means_nxW: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The events of an element, one by one in their order; parent_n: whose probabilities a row has."""
        nodes = self._reader.nodes[element]
        kept_nxW = np.log1p(-np.minimum(p_nxW, _NEARLY_CERTAIN))
        # Log-probability that none of the codes before happens.
        none_nxW1 = np.concatenate((np.zeros((len(p_nxW), 1)), np.cumsum(kept_nxW, axis=1)), axis=1)
        log_p_nxW = np.log(p_nxW)
        parent_n, next_n = np.arange(len(rows_n)), np.zeros(len(rows_n), np.int64)
        happens_nxW = np.zeros(p_nxW.shape, bool)
        open_n = np.arange(len(rows_n))
        while len(open_n):
            event_m = self._event_at(element, rows_n[open_n])
            open_n, event_m = open_n[event_m >= 0], event_m[event_m >= 0]
            for place, m, node_m in self._places(element, event_m):
                of = open_n[m]
                mass_m = _first_within(none_nxW1, parent_n[of], next_n[of], _runs_of(nodes, node_m))
                pos_m = self._pos_P[rows_n[of]] + place
                self._record(rows_n[of], pos_m, self._log_weight_P[rows_n[of]] + np.log(mass_m))
            chosen_k, code_k = self._exact_codes(element, event_m)
            source_k = open_n[chosen_k]
            after = code_k >= next_n[source_k]
            chosen_k, code_k, source_k = chosen_k[after], code_k[after], source_k[after]
            is_read = np.zeros(len(rows_n), bool)
            is_read[source_k] = True
            self._kill(s, rows_n[open_n[~is_read[open_n]]])
            # The first copy takes its source's place, the others come after all.
            is_copy = np.zeros(len(source_k), bool)
            is_copy[1:] = source_k[1:] == source_k[:-1]
            rows_k = self._split(s, rows_n, source_k)
            place_k = np.where(is_copy, len(rows_n) + np.cumsum(is_copy) - 1, source_k)
            copied = source_k[is_copy]
            rows_n = np.concatenate((rows_n, rows_k[is_copy]))
            parent_n = np.concatenate((parent_n, parent_n[copied]))
            next_n = np.concatenate((next_n, next_n[copied]))
            happens_nxW = np.concatenate((happens_nxW, happens_nxW[copied]))
            parent_k = parent_n[place_k]
            skipped_k = none_nxW1[parent_k, code_k] - none_nxW1[parent_k, next_n[place_k]]
            self._log_weight_P[rows_k] += skipped_k + log_p_nxW[parent_k, code_k]
            next_n[place_k] = code_k + 1
            happens_nxW[place_k, code_k] = True
            event_k = event_m[chosen_k]
            self._pos_P[rows_k] += self._parts_n[event_k]
            self._read_values(rows_k, event_k, code_k, None if means_nxW is None else means_nxW[parent_k, code_k])
            open_n = place_k
        self._log_weight_P[rows_n] += none_nxW1[parent_n, -1] - none_nxW1[parent_n, next_n]
        alive_n = self._drop_dead(s, rows_n)
        return rows_n[alive_n], happens_nxW[alive_n]

    def _read_values(
        self, rows_k: np.ndarray, event_k: np.ndarray, code_k: np.ndarray, mean_k: np.ndarray | None
    ) -> None:
        """The decile after a code, where the vocabulary gives it one."""
        decile_k = self._decile_n[event_k]
        has = np.flatnonzero(decile_k > 0)
        # Tokens end before the value: nothing is wrong yet.
        ended_k = self._pos_P[rows_k] >= self._end_S[self._subject_P[rows_k]]
        has = has[~ended_k[has]]
        wants_k = np.zeros(len(rows_k), bool) if mean_k is None else self._reader.thresholds.valued_L[code_k]
        self._log_weight_P[rows_k[~ended_k & (wants_k != (decile_k > 0))]] = -np.inf
        if not len(has) or mean_k is None:
            return
        mass = self._reader.thresholds.probability(code_k[has], decile_k[has], mean_k[has])
        rows = rows_k[has]
        self._log_weight_P[rows] += np.log(mass)
        self._record(rows, self._pos_P[rows], self._log_weight_P[rows])
        self._pos_P[rows] += 1

    # Places, weights and rows.

    def _event_at(self, element: int, rows_n: np.ndarray) -> np.ndarray:
        """The event that stands next, if it may be one of this element; else -1."""
        pos_n = self._pos_P[rows_n]
        event_n = np.where(pos_n < self._end_S[self._subject_P[rows_n]], self._event_T[pos_n], -1)
        return np.where((event_n >= 0) & (self._node[element][0, event_n] >= 0), event_n, -1)

    def _places(self, element: int, event_n: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """(place of the token in its event, which of the events have one there, their nodes)."""
        out = []
        for place in range(LONGEST):
            having = np.flatnonzero((self._parts_n[event_n] > place) & (self._node[element][place, event_n] >= 0))
            if len(having):
                out.append((place, having, self._node[element][place, event_n[having]]))
        return out

    def _exact_codes(self, element: int, event_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index into event_n, code) for each code that is spelt so."""
        nodes = self._reader.nodes[element]
        node_n = self._node[element][self._parts_n[event_n] - 1, event_n]
        count_n = np.where(node_n >= 0, np.diff(nodes.exact_offsets)[node_n], 0)
        which_k = np.repeat(np.arange(len(event_n)), count_n)
        within_k = np.arange(len(which_k)) - np.repeat(np.cumsum(count_n) - count_n, count_n)
        return which_k, nodes.exact[nodes.exact_offsets[node_n[which_k]] + within_k]

    def _split(self, s: State, rows_n: np.ndarray, parent_k: np.ndarray) -> np.ndarray:
        """A row for each entry of `parent_k` (rising indices into rows_n): the row itself, then copies of it."""
        is_copy = np.zeros(len(parent_k), bool)
        is_copy[1:] = parent_k[1:] == parent_k[:-1]
        rows_k = rows_n[parent_k]
        if is_copy.any():
            self._is_split = True
            copied = rows_k[is_copy]
            self._refuse_too_many(rows_k)
            rows_k = np.where(is_copy, len(s) + np.cumsum(is_copy) - 1, rows_k)
            s.append_copies(copied)
            for name in ("_subject_P", "_log_weight_P", "_pos_P", "_reached_P"):
                column = getattr(self, name)
                setattr(self, name, np.concatenate((column, column[copied])))
        return rows_k

    def _record(self, rows_n: np.ndarray, pos_n: np.ndarray, log_mass_n: np.ndarray) -> None:
        """Tokens at `pos_n`: every row of their subjects that can take them is here, with its weight after them."""
        if not len(rows_n):
            return
        subject_n = self._subject_P[rows_n]
        share_n = np.exp(log_mass_n - self._log_total_S[subject_n])
        total_S = np.bincount(subject_n, share_n, minlength=len(self._end_S))
        log_n = np.log(total_S[subject_n])
        self._log_T[pos_n] = log_n
        self._log_total_S += np.where(total_S > 0, np.log(np.where(total_S > 0, total_S, 1.0)), 0.0)

    def _kill(self, s: State, rows_n: np.ndarray) -> None:
        """Rows whose next token can't be: unless there is none, for an unfinished timeline ends anywhere."""
        ended_n = self._pos_P[rows_n] >= self._end_S[self._subject_P[rows_n]]
        self._log_weight_P[rows_n[~ended_n]] = -np.inf
        s.instant_P[rows_n] = OVER

    def _drop_dead(self, s: State, rows_n: np.ndarray) -> np.ndarray:
        """bool [n]: which rows are still possible; the others are over."""
        alive_n = self._log_weight_P[rows_n] > -np.inf
        s.instant_P[rows_n[~alive_n]] = OVER
        return alive_n

    def _join(self) -> None:
        """Make one row of those that nothing tells apart, and drop what is negligible."""
        if not self._is_split or not (self._log_weight_P > -np.inf).any():
            return
        self._is_split = False
        # Not over what was recorded last: what did not happen since has no token yet.
        most_S = np.full(len(self._end_S), -np.inf)
        np.maximum.at(most_S, self._subject_P, self._log_weight_P)
        live = np.flatnonzero(self._log_weight_P > most_S[self._subject_P] + np.log(NEGLIGIBLE))
        log_share = self._log_weight_P[live] - most_S[self._subject_P[live]]
        places = np.stack([self._subject_P[live], self._reached_P[live], self._pos_P[live]], axis=1)
        key = np.concatenate((places.view(np.uint8).reshape(len(live), -1), self.state.row_bytes(live)), axis=1)
        whole = np.ascontiguousarray(key).view(np.dtype((np.void, key.shape[1])))[:, 0]
        _, first, group = np.unique(whole, return_index=True, return_inverse=True)
        kept = live[first]
        self._refuse_too_many(kept)
        self._log_weight_P = np.log(np.bincount(group, np.exp(log_share))) + most_S[self._subject_P[kept]]
        self.state = self.state.take(kept)
        self._subject_P, self._pos_P = self._subject_P[kept], self._pos_P[kept]
        self._reached_P = self._reached_P[kept]

    def _refuse_too_many(self, kept: np.ndarray) -> None:
        if np.bincount(self._subject_P[kept]).max(initial=0) > MOST_ROWS_PER_SUBJECT:
            raise UserError(
                "too many of the codes are UNKNOWN: what they may stand for cannot be enumerated",
                where="the corpus's vocabulary",
                fix="build it with a lower --config.min_subjects_per_code, or of more patients",
            )


def _runs_of(nodes: CodeNodes, node_m: np.ndarray) -> list[np.ndarray]:
    """[begin, end) of the nodes' codes as arrays [2, m], run by run."""
    runs_mxKx2 = nodes.runs_NxKx2[node_m]
    used = int((runs_mxKx2[:, :, 1] > 0).sum(axis=1).max(initial=0))
    return [runs_mxKx2[:, run].T for run in range(used)]


def _first_within(
    none_nxW1: np.ndarray, parent_m: np.ndarray, next_m: np.ndarray, runs: Sequence[np.ndarray]
) -> np.ndarray:
    """P(the first code to happen from `next_m` on lies within the runs)."""
    mass_m = np.zeros(len(parent_m))
    before_m = none_nxW1[parent_m, next_m]
    for begin_m, end_m in runs:
        begin_m = np.maximum(begin_m, next_m)
        end_m = np.maximum(end_m, begin_m)
        skipped_m = none_nxW1[parent_m, begin_m] - before_m
        mass_m += np.exp(skipped_m) * -np.expm1(none_nxW1[parent_m, end_m] - none_nxW1[parent_m, begin_m])
    return mass_m
