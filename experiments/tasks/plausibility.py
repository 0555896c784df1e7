"""Are generated futures as busy as recorded ones? Events by kind, and the time to the next encounter."""

from experiments.tasks.concepts import (
    DIAGNOSES,
    DISCHARGE,
    DRUGS,
    EMERGENCY_HOME,
    NEXT_ENCOUNTER,
    PROCEDURES,
    TESTS,
    WENT_HOME,
)
from experiments.tasks.question import Concept, Question

_NEXT_TEST = Concept("the next laboratory result", TESTS.pattern)

QUESTIONS = (
    Question("count_diagnoses_180d", DIAGNOSES, 180, WENT_HOME, kind="count"),
    Question("count_tests_180d", TESTS, 180, WENT_HOME, kind="count"),
    Question("count_medications_180d", DRUGS, 180, WENT_HOME, kind="count"),
    Question("count_procedures_180d", PROCEDURES, 180, WENT_HOME, kind="count"),
    Question("time_to_encounter", NEXT_ENCOUNTER, 365, WENT_HOME, kind="duration"),
    Question("time_to_encounter_after_emergency", NEXT_ENCOUNTER, 365, EMERGENCY_HOME, kind="duration"),
    Question("time_to_encounter_after_discharge", NEXT_ENCOUNTER, 365, DISCHARGE, kind="duration"),
    Question("time_to_test", _NEXT_TEST, 365, WENT_HOME, kind="duration"),
)
