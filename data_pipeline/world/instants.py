"""The course of a timeline: instants, each with its elements in the order of its tokens, and what may follow what.

    BEGIN ─▶ OFFICE ─▶ OFFICE_END ─▶ gap                       gap ─▶ OFFICE | EMERGENCY | STAY (elective) | death
    EMERGENCY ─▶ EMERGENCY_TESTS ─▶ EMERGENCY_TREATMENT ─▶ EMERGENCY_END ─▶ gap | transfer ─▶ STAY | death
    STAY ─▶ STAY_DAY ─▶ ... ─▶ STAY_END ─▶ gap | transfer ─▶ STAY | death

Time passes between instants, at least five minutes, so that each instant follows an interval token; and each instant
has an event for certain, so that none is missing from the tokens.
"""

import numpy as np

(
    BEGIN,
    OFFICE,
    OFFICE_END,
    EMERGENCY,
    EMERGENCY_TESTS,
    EMERGENCY_TREATMENT,
    EMERGENCY_END,
    STAY,
    STAY_DAY,
    STAY_END,
    ARRIVAL,  # an encounter starts; which, its first token says
    OVER,  # dead, or observed no longer
) = range(12)
COUNT = 12

# Elements in the order of the tokens of one instant.
START, DEPARTMENT, COMPLAINT, DIAGNOSES, TESTS, DRUGS, PROCEDURES, END, DEATH = range(9)
ELEMENTS = ("START", "DEPARTMENT", "COMPLAINT", "DIAGNOSES", "TESTS", "DRUGS", "PROCEDURES", "END", "DEATH")

_ELEMENTS_OF = {
    OFFICE: (DEPARTMENT, COMPLAINT, DIAGNOSES, TESTS, DRUGS, PROCEDURES),
    OFFICE_END: (END,),
    EMERGENCY: (DEPARTMENT, COMPLAINT),
    EMERGENCY_TESTS: (TESTS,),
    EMERGENCY_TREATMENT: (DIAGNOSES, DRUGS, PROCEDURES),
    EMERGENCY_END: (END,),
    STAY: (DEPARTMENT, DIAGNOSES, TESTS, DRUGS, PROCEDURES),
    STAY_DAY: (TESTS, DRUGS, PROCEDURES),
    STAY_END: (END,),
    ARRIVAL: (START,),
}
HAS_ELEMENT = np.zeros((len(ELEMENTS), COUNT), bool)
for _instant, _elements in _ELEMENTS_OF.items():
    HAS_ELEMENT[list(_elements), _instant] = True
