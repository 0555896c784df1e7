"""What one encounter brings, asked as it begins: how much is done, and what."""

import functools

from experiments.tasks.concepts import (
    ADMISSION,
    DIAGNOSES,
    DRUGS,
    EMERGENCY_END,
    EMERGENCY_START,
    PROCEDURES,
    STAY_END,
    TESTS,
)
from experiments.tasks.question import Concept, Question

_emergency = functools.partial(Question, days=3, at=EMERGENCY_START, until=EMERGENCY_END)
_stay = functools.partial(Question, days=60, at=ADMISSION, until=STAY_END)
_HIGH_SEVERITY = Concept("what is coded for visits of high severity", "PROCEDURE//CPT//(99285|9929[12])")
_ECG = Concept("an electrocardiogram", "PROCEDURE//CPT//93000")
_CHEST_IMAGING = Concept("chest imaging", "PROCEDURE//CPT//(7104[5-8]|712[5-7]\\d)")
_HEAD_CT = Concept("computed tomography of the head", "PROCEDURE//CPT//704[5-9]\\d")
_ABDOMEN_CT = Concept("computed tomography of the abdomen", "PROCEDURE//CPT//7417[4-8]")
# MIMIC-IV names drugs in words.
_ANTIBIOTIC_NAMES = (
    "vancomycin|cef|piperacillin|ampicillin|meropenem|levofloxacin|ciprofloxacin|metronidazole|azithromycin"
)
_ANTIBIOTIC = Concept("a systemic antibiotic", f"MEDICATION//(ATC//J01|MIMIC_DRUG//({_ANTIBIOTIC_NAMES})).*")

QUESTIONS = (
    _emergency("emergency_count_tests", TESTS, kind="count"),
    _emergency("emergency_count_diagnoses", DIAGNOSES, kind="count"),
    _emergency("emergency_count_procedures", PROCEDURES, kind="count"),
    _emergency("emergency_count_medications", DRUGS, kind="count"),
    _emergency("emergency_high_severity", _HIGH_SEVERITY),
    _emergency("emergency_ecg", _ECG),
    _emergency("emergency_chest_imaging", _CHEST_IMAGING),
    _emergency("emergency_head_ct", _HEAD_CT),
    _emergency("emergency_abdomen_ct", _ABDOMEN_CT),
    _emergency("emergency_antibiotic", _ANTIBIOTIC),
    _stay("stay_count_tests", TESTS, kind="count"),
    _stay("stay_count_medications", DRUGS, kind="count"),
)
