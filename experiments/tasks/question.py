"""How the suite's tasks are written down: concepts with words for them, and questions made of these.

A question's words and its patterns come from the same concepts, so that what a task is said to ask is what it asks.
"""

import dataclasses

from cometjax.tasks import Task


@dataclasses.dataclass(frozen=True)
class Concept:
    """Something recorded: words for it, and the regex that its concepts' names match in full.

    `outside`: as an index it counts outside of this only: the patterns of its start and of its end.
    """

    words: str
    pattern: str
    outside: tuple[str, str] = ("", "")


def diagnosis(words: str, icd10: str, icd9: str = "") -> Concept:
    """A diagnosis by the beginnings (regex, no dot) of its ICD-10-CM and, for older data, ICD-9-CM codes."""
    older = f"|ICD9CM//({icd9})" if icd9 else ""
    return Concept(words, f"DIAGNOSIS//(ICD10CM//({icd10}){older}).*")


@dataclasses.dataclass(frozen=True)
class Question:
    """One task of the suite.

    Attributes:
        name: of the task.
        outcome: what is asked for; of kind "count" in the plural.
        days: the horizon.
        at: the index event, which is the prediction time.
        kind: "binary", "count" or "duration".
        until: closes the window before the horizon.
        cohort: only subjects who have had this by the prediction time are asked.
        cohort_days: and at most so many days before; 0: at its very instant; None: ever.
        exclude: subjects who have had this are out.
        first_only: subjects who have had the outcome are out.
        washout_days: subjects who had the outcome in the so many days before are out.
        history_days: subjects known for less are out.
    """

    name: str
    outcome: Concept
    days: float
    at: Concept
    kind: str = "binary"
    until: Concept | None = None
    cohort: Concept | None = None
    cohort_days: float | None = None
    exclude: Concept | None = None
    first_only: bool = False
    washout_days: float = 0.0
    history_days: float = 0.0

    def task(self, family: str, censoring: str) -> Task:
        """The task, with a sentence that says all of it (`tasks.described`)."""
        return Task(
            name=self.name,
            family=family,
            description=self.sentence(),
            kind=self.kind,
            index=self.at.pattern,
            horizon_days=float(self.days),
            outcome=self.outcome.pattern,
            until=self.until.pattern if self.until else "",
            cohort=self.cohort.pattern if self.cohort else "",
            cohort_days=self.cohort_days,
            exclude=self.exclude.pattern if self.exclude else "",
            exclude_prior=self.first_only,
            outside_start=self.at.outside[0],
            outside_end=self.at.outside[1],
            washout_days=self.washout_days,
            history_days=self.history_days,
            censoring=censoring,
        )

    def sentence(self) -> str:
        """Outcome, window, index, cohort and who is left out, in words; fields of days are named in braces."""
        what = f"number of {self.outcome.words}" if self.kind == "count" else self.outcome.words
        window = f"within {{horizon_days}} of {self.at.words}"
        if self.until:
            window = f"from {self.at.words} until {self.until.words}, at most {{horizon_days}}"
        if self.kind == "duration":
            what, window = f"days from {self.at.words} until {what},", "at most {horizon_days}"
        clauses = [f"{what[0].upper()}{what[1:]} {window}"]
        if self.cohort:
            lately = " within {cohort_days} before" if self.cohort_days else ""
            clauses.append(f"{'for' if self.cohort_days == 0 else 'of those with'} {self.cohort.words}{lately}")
        out = [f"have had {self.exclude.words}"] if self.exclude else []
        out += ["have had it before"] if self.first_only else []
        out += ["had it within {washout_days} before"] if self.washout_days else []
        out += ["are known for less than {history_days}"] if self.history_days else []
        return "; ".join([*clauses, *([f"without those who {' or '.join(out)}"] if out else [])])
