"""What becomes of those who have a disease, within a year: complications, progression, acute episodes.

Complications that stay are asked of those without them; acute episodes of all, first and repeated ones scored apart.
"""

import functools

from experiments.tasks import concepts
from experiments.tasks.concepts import (
    ACUTE_HEART_FAILURE,
    ADMISSION,
    COPD,
    CORONARY_DISEASE,
    DIABETES,
    FIBRILLATION,
    HEART_FAILURE,
    HYPERTENSION,
    KIDNEY_DISEASE,
    WENT_HOME,
)
from experiments.tasks.question import Concept, Question, diagnosis

_NEUROPATHY = diagnosis("diabetic neuropathy", "E114", "2506([02]|$)")
# MIMIC-IV names drugs by their names.
_INSULIN = Concept("insulin", "MEDICATION//(ATC//A10A|MIMIC_DRUG//insulin).*")
_ADVANCED_KIDNEY = diagnosis("chronic kidney disease of stage 4 or more", "N18[456]", "585[456]")
_HYPERTENSIVE_CRISIS = diagnosis("a hypertensive crisis", "I16", "4010")
_RESPIRATORY_FAILURE = diagnosis("respiratory failure", "J96", "5188[1-4]")
_within_a_year = functools.partial(Question, days=365, at=WENT_HOME)

QUESTIONS = (
    _within_a_year("diabetes_kidney_disease", KIDNEY_DISEASE, cohort=DIABETES, first_only=True),
    _within_a_year("diabetes_coronary_disease", CORONARY_DISEASE, cohort=DIABETES, first_only=True),
    _within_a_year("diabetes_neuropathy", _NEUROPATHY, cohort=DIABETES, first_only=True),
    _within_a_year("diabetes_insulin", _INSULIN, cohort=DIABETES, first_only=True),
    _within_a_year("diabetes_admission", ADMISSION, cohort=DIABETES),
    _within_a_year("hypertension_heart_failure", HEART_FAILURE, cohort=HYPERTENSION, first_only=True),
    _within_a_year("hypertension_fibrillation", FIBRILLATION, cohort=HYPERTENSION, first_only=True),
    _within_a_year("hypertension_crisis", _HYPERTENSIVE_CRISIS, cohort=HYPERTENSION),
    _within_a_year("coronary_infarction", concepts.INFARCTION, cohort=CORONARY_DISEASE),
    _within_a_year("heart_failure_acute", ACUTE_HEART_FAILURE, cohort=HEART_FAILURE, washout_days=30),
    _within_a_year("heart_failure_death", concepts.DEATH, cohort=HEART_FAILURE),
    _within_a_year("copd_exacerbation", concepts.COPD_EXACERBATION, cohort=COPD, washout_days=30),
    _within_a_year("copd_respiratory_failure", _RESPIRATORY_FAILURE, cohort=COPD),
    _within_a_year("kidney_progression", _ADVANCED_KIDNEY, cohort=KIDNEY_DISEASE, first_only=True),
)
