"""Who a subject is and how long it is observed, as far as the static prefix and the clock tell."""

import dataclasses

import numpy as np

from data_pipeline import static_prefix
from data_pipeline.vocabulary import PREFIX_LENGTH, PREFIX_SYSTEMS, Vocabulary
from data_pipeline.world import catalogue, simulation
from data_pipeline.world.simulation import DAY_END, DAY_MINUTES, DAY_START, END, FIRST, LAST_FIRST

_EPOCH_YEAR = 1970


@dataclasses.dataclass(frozen=True)
class _Choice:
    """One place of the prefix: what is drawn there, how likely each is, and the token that tells it."""

    shares_W: np.ndarray
    token_W: np.ndarray

    def possible(self, tokens_S: np.ndarray) -> np.ndarray:
        """bool [S, W]: what the token may stand for."""
        return tokens_S[:, None] == self.token_W


def _choice(texts: list[str], shares: np.ndarray, system: str, vocabulary: Vocabulary) -> _Choice:
    unknown = vocabulary.ids[f"{system}//UNKNOWN"]
    return _Choice(shares / shares.sum(), np.array([vocabulary.ids.get(text, unknown) for text in texts]))


def _periods() -> tuple[list[str], np.ndarray]:
    """Calendar periods in which subjects may enter, and their [first, last) days since 1970."""
    starts = np.arange(FIRST // DAY_MINUTES, LAST_FIRST // DAY_MINUTES)
    years = starts.astype("datetime64[D]").astype("datetime64[Y]").astype(int) + _EPOCH_YEAR
    buckets = years // static_prefix.PERIOD_BUCKET_YEARS * static_prefix.PERIOD_BUCKET_YEARS
    texts, bounds = [], []
    for bucket in np.unique(buckets):
        days = starts[buckets == bucket]
        texts.append(static_prefix.period_token(int(bucket)))
        bounds.append((days[0], days[-1] + 1))
    return texts, np.array(bounds)


class Prefixes:
    """The static prefixes of S subjects, read with a vocabulary.

    Attributes:
        log_SxF: log-probability of each of the prefix's tokens given those before it; -inf where it can't be.
        female_Sx2: bool, may it be female, may it be male. bucket_S: the age bucket, index into AGE_SHARES.
        period_SxB: bool, the calendar periods in which the first event may lie.
    """

    def __init__(self, tokens_SxF: np.ndarray, vocabulary: Vocabulary) -> None:
        period_texts, self._days_Bx2 = _periods()
        first = simulation.FIRST_AGE // simulation.AGE_BUCKET
        buckets = len(simulation.AGE_SHARES)
        female = simulation.FEMALE_SHARE
        choices = [
            _choice([f"SEX//{sex}" for sex in catalogue.SEXES], np.array([female, 1 - female]), "SEX", vocabulary),
            _choice([f"RACE//{race}" for race in catalogue.RACES], np.array(catalogue.RACE_SHARES), "RACE", vocabulary),
            _choice(
                list(static_prefix.AGE_TOKENS[first : first + buckets]),
                np.array(simulation.AGE_SHARES),
                "AGE",
                vocabulary,
            ),
            _choice(period_texts, np.diff(self._days_Bx2)[:, 0].astype(float), "PERIOD", vocabulary),
        ]
        assert len(choices) == PREFIX_LENGTH == len(PREFIX_SYSTEMS)
        possible = [choice.possible(tokens_SxF[:, place]) for place, choice in enumerate(choices)]
        with np.errstate(divide="ignore"):
            mass = [may_SxW @ choice.shares_W for may_SxW, choice in zip(possible, choices, strict=True)]
            self.log_SxF = np.log(np.stack(mass, axis=1))
        self.sex_Sx2, self.sex_shares = possible[0], choices[0].shares_W
        self.bucket_S = possible[2].argmax(axis=1)
        self.period_SxB = possible[3]

    def starts_before(self, subject_n: np.ndarray, bound_n: np.ndarray) -> np.ndarray:
        """How many of the minutes at which a subject's first event may lie come before `bound_n` (minutes since 1970).

        `bound_n` may have any shape [n, ...] that begins as `subject_n`.
        """
        shape = (len(subject_n),) + (1,) * (bound_n.ndim - 1)
        day_n, minute_n = np.divmod(bound_n, DAY_MINUTES)
        hours = DAY_END - DAY_START
        total_n = np.zeros(bound_n.shape)
        for period, (first, last) in enumerate(self._days_Bx2):
            whole_n = np.clip(day_n - first, 0, last - first) * hours
            part_n = np.where((day_n >= first) & (day_n < last), np.clip(minute_n - DAY_START, 0, hours), 0)
            total_n += self.period_SxB[subject_n, period].reshape(shape) * (whole_n + part_n)
        return total_n

    def observed(self, subject_n: np.ndarray, clock_n: np.ndarray, minutes_G: np.ndarray) -> np.ndarray:
        """[n, G]: P(still observed when `minutes_G` more have passed | observed at `clock_n` minutes by the clock)."""
        now_n = self.starts_before(subject_n, END - clock_n)
        later_nxG = self.starts_before(subject_n, END - clock_n[:, None] - minutes_G)
        return np.divide(later_nxG, now_n[:, None], out=np.zeros(later_nxG.shape), where=now_n[:, None] > 0)
