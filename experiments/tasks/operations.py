"""What a health system plans by: encounters to come, lengths of stay, readmissions, where stays end, deaths."""

from experiments.tasks.concepts import (
    ADMISSION,
    ADMISSIONS,
    ANY_START,
    DEATH,
    DISCHARGE,
    EMERGENCIES,
    EMERGENCY_END,
    EMERGENCY_HOME,
    EMERGENCY_START,
    OFFICE_VISITS,
    STAY_END,
    WENT_HOME,
)
from experiments.tasks.question import Concept, Question

_ICU = Concept("admission to intensive care", "ENCOUNTER//ENCOUNTER_START//ICU.*")
# Some record a death before the end of its stay, some no death but how the stay ended; no future goes on after a death.
_DIED_IN_HOSPITAL = Concept("death in hospital", f"{DEATH.pattern}|ENCOUNTER//ENCOUNTER_END//INPATIENT.*DIED.*")
_STAY_OVER = Concept(STAY_END.words, f"{DEATH.pattern}|{STAY_END.pattern}")
_EMERGENCY_OVER = Concept(EMERGENCY_END.words, f"{DEATH.pattern}|{EMERGENCY_END.pattern}")
_ANOTHER_EMERGENCY = Concept("another emergency visit", EMERGENCIES.pattern)
_READMISSION = Concept("another admission", ADMISSIONS.pattern)

QUESTIONS = (
    Question("count_encounters_1y", ANY_START, 365, WENT_HOME, kind="count"),
    Question("count_office_visits_1y", OFFICE_VISITS, 365, WENT_HOME, kind="count"),
    Question("count_emergencies_1y", EMERGENCIES, 365, WENT_HOME, kind="count"),
    Question("count_admissions_1y", ADMISSIONS, 365, WENT_HOME, kind="count"),
    Question("length_of_stay", _STAY_OVER, 60, ADMISSION, kind="duration"),
    Question("length_of_emergency", _EMERGENCY_OVER, 3, EMERGENCY_START, kind="duration"),
    Question("readmission_30d", _READMISSION, 30, DISCHARGE),
    Question("emergency_return_30d", _ANOTHER_EMERGENCY, 30, EMERGENCY_HOME),
    Question("emergency_admission", ADMISSION, 1, EMERGENCY_START),
    Question("emergency_intensive_care", _ICU, 3, EMERGENCY_START),
    Question("death_in_hospital", _DIED_IN_HOSPITAL, 60, ADMISSION, until=STAY_END),
    Question("death_1y_after_discharge", DEATH, 365, DISCHARGE),
)
