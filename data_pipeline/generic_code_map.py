"""The map for data never seen: coding systems by name, tables by name, encounters by their words, codes by shape.

What it cannot tell stays whole, kind OTHER; `data_pipeline.show` lists the most frequent of these, and a map of one's
own (docs/code_maps.md) may add rules for them and leave the rest to this one.
"""

from data_pipeline.code_maps import CodeMap, Rule
from data_pipeline.coded_systems import (
    BIRTH_AND_DEATH,
    BREAK,
    DEMOGRAPHICS,
    NO_STAY,
    SEPARATOR,
    SNOMED_CT,
    SYSTEMS,
    WHOLE,
    encounters,
)

_STAY = r"(?:ENCOUNTER|VISIT|ADMISSION|STAY|EPISODE)S?"
_START = r"(?:START|BEGIN|ADMIT|ADMISSION)"
_END = r"(?:END|STOP|DISCHARGE|FINISH)"
_MORE = rf"{NO_STAY}(?:{SEPARATOR}(?P<p2>.+))?"
_DRUG = r"MEDICATIONS?|MEDS?|DRUGS?|PRESCRIPTIONS?|PHARMACY|IMMUNI[SZ]ATIONS?|VACCINES?|INFUSIONS?"
_LAB = r"(?:LAB|VITAL|MEASUREMENT|OBSERVATION|TEST|CHART|FLOWSHEET)S?(?:_?(?:SIGNS?|RESULTS?|EVENTS?))?"


def _under(tables: str, parts: str = WHOLE) -> str:
    """Pattern of local codes under a table's name."""
    return rf"(?i:{tables}){SEPARATOR}{parts}"


def _stay(first: str, start: str, end: str) -> tuple[Rule, Rule]:
    """Rules for the start and end of one type of encounter that has words of its own."""
    return (
        Rule(rf"(?i:{start}){_MORE}", "ENCOUNTER", "ENCOUNTER_START", "start", first=first),
        Rule(rf"(?i:{end}){_MORE}", "ENCOUNTER", "ENCOUNTER_END", "end", first=first),
    )


GENERIC = CodeMap(
    "generic",
    (
        *BIRTH_AND_DEATH,
        Rule(r"(?i:BIRTH|DATE_OF_BIRTH|DOB)", "DEMOGRAPHIC", "BIRTH", "birth"),
        Rule(r"(?i:OBSERVATION_(?:PERIOD_)?END)", "OTHER", "OBSERVATION_END", "observation_end"),
        Rule(
            rf"(?i:(?:DEATH|DECEASED)(?:_DATE|_TIME|_DATETIME)?|DIED|DATE_OF_DEATH|DOD)(?:{BREAK}.+)?",
            "DEATH",
            "DEATH",
            "death",
        ),
        *DEMOGRAPHICS,
        *encounters(rf"(?i:{_STAY}_?{_END}|{_STAY}{SEPARATOR}{_END}){NO_STAY}{SEPARATOR}", "end"),
        *encounters(rf"(?i:{_STAY}_?{_START}|{_STAY}{SEPARATOR}{_START}){NO_STAY}{SEPARATOR}", "start"),
        *_stay("UNSPECIFIED", rf"{_STAY}_?{_START}", rf"{_STAY}_?{_END}"),
        # Before what is less sure to be an encounter: VISIT//CPT//99213 is what was done in one. Not SNOMED CT, which
        # has codes for encounters too.
        *SYSTEMS,
        *_stay("ICU", rf"ICU_?{_START}|ICU_?INTIME", rf"ICU_?{_END}|ICU_?OUTTIME"),
        *_stay("EMERGENCY", rf"(?:ED|ER)_?(?:{_START}|REGISTRATION|IN)", rf"(?:ED|ER)_?(?:{_END}|OUT)"),
        *_stay("INPATIENT", r"(?:(?:HOSPITAL|INPATIENT)_)?ADMISSION", r"(?:(?:HOSPITAL|INPATIENT)_)?DISCHARGE"),
        # A visit without a word on its end (OMOP's Visit/IP) is its start.
        *encounters(rf"(?i:VISIT|ENCOUNTER){NO_STAY}{SEPARATOR}", "start"),
        *SNOMED_CT,
        Rule(
            _under(r"DEPARTMENT|DEPT|CARE_?SITE|CARE_?UNIT|SPECIALTY|WARD|UNIT|SERVICE|TRANSFER(?:_TO)?"),
            "DEPARTMENT",
            "DEPARTMENT",
        ),
        Rule(_under(r"CHIEF_?COMPLAINT|REASON_?FOR_?VISIT|CC"), "CHIEF_COMPLAINT", "CHIEF_COMPLAINT"),
        Rule(
            _under(r"DIAGNOS[IE]S|DX|CONDITIONS?|PROBLEMS?(?:_LIST)?|COMORBIDIT(?:Y|IES)"),
            "DIAGNOSIS",
            "LOCAL_DIAGNOSIS",
        ),
        Rule(_under(r"ALLERG(?:Y|IES)"), "DIAGNOSIS", "ALLERGY"),
        Rule(_under(_LAB), "LAB", "LOCAL_LAB"),
        # The drug first, so that starting and stopping it share its token.
        Rule(_under(_DRUG, rf"(?P<p2>(?i:START|STOP|END)){SEPARATOR}(?P<p1>.+)"), "MEDICATION", "LOCAL_MEDICATION"),
        Rule(_under(rf"(?:{_DRUG})_(?P<p2>START|STOP|END)", "(?P<p1>.+)"), "MEDICATION", "LOCAL_MEDICATION"),
        Rule(_under(_DRUG), "MEDICATION", "LOCAL_MEDICATION"),
        Rule(
            _under(r"PROCEDURES?|PROC|SURGER(?:Y|IES)|OPERATIONS?|IMAGING|RADIOLOGY|DEVICES?"),
            "PROCEDURE",
            "LOCAL_PROCEDURE",
        ),
        # Codes alone, where their shape is that of one system and of no other in use.
        Rule(r"(?P<p1>[A-Z]\d{2})(?P<p2>[A-Z]{2})(?P<p3>\d{2})", "MEDICATION", "ATC"),
        Rule(r"(?P<p1>[A-TV-Z]\d[0-9A-Z])\.(?P<p2>[0-9A-Z])(?P<p3>[0-9A-Z]{0,3})", "DIAGNOSIS", "ICD10CM"),
        Rule(r"(?P<p1>\d{3})\.(?P<p2>\d)(?P<p3>\d?)", "DIAGNOSIS", "ICD9CM"),
        Rule(r"(?P<p1>\d{3,5}-\d)", "LAB", "LOINC"),
        Rule(r"(?P<p1>\d{4,5}-\d{3,4}-\d{1,2})", "MEDICATION", "NDC"),
    ),
)
