"""The map for MEDS made from Synthea: from its CSV tables, or from its FHIR bundles.

Each table has one coding system, so a code may come without it (`CONDITIONS//44054006` is SNOMED CT). FHIR resources
(`MedicationRequest//RXNORM//314076`) count as their tables. START and STOP may stand before or after a code.
"""

from data_pipeline.code_maps import CodeMap, Rule
from data_pipeline.coded_systems import (
    BIRTH_AND_DEATH,
    DEMOGRAPHICS,
    NO_STAY,
    SEPARATOR,
    SNOMED,
    SNOMED_CT,
    SYSTEMS,
    encounters,
)

_CONDITION = r"CONDITIONS?|DIAGNOS[IE]S|PROBLEMS?"
_MEDICATION = r"MEDICATIONS?(?:_?(?:REQUEST|ADMINISTRATION|DISPENSE|STATEMENT))?|DRUGS?|PRESCRIPTIONS?"
_OBSERVATION = r"OBSERVATIONS?|LABS?|VITALS?|VITAL_SIGNS?|MEASUREMENTS?|SURVEYS?|DIAGNOSTIC_?REPORTS?"
_PROCEDURE = r"PROCEDURES?"
_IMMUNIZATION = r"IMMUNI[SZ]ATIONS?|VACCINES?|VACCINATIONS?"
_RXNORM = r"RXNORM|https?://www\.nlm\.nih\.gov/research/umls/rxnorm"
_START, _END = r"(?:START|ADMIT|BEGIN)", r"(?:STOP|END|DISCHARGE|FINISH)"


def _under(tables: str, systems: str, code: str, words: str = "") -> str:
    """Pattern of `TABLE//[SYSTEM//]CODE`, with a word such as STOP after the table or the code if `words` are given."""
    middle = rf"(?i:{SEPARATOR}(?:{words}))" if words else rf"(?i:(?:{SEPARATOR}{_START})?)"
    return rf"(?i:{tables}){middle}{SEPARATOR}(?:(?i:{systems}){SEPARATOR})?{code}(?i:(?:{SEPARATOR}{_START})?)"


def _ends(tables: str) -> str:
    """Pattern of the end of something: STOP after its table or its code."""
    return rf"(?i:{tables})(?i:{SEPARATOR}{_END}{SEPARATOR})(?P<p1>.+)|(?i:{tables}){SEPARATOR}.+(?i:{SEPARATOR}{_END})"


_SCTID = r"(?P<p1>\d{6,18})"
SYNTHEA = CodeMap(
    "synthea",
    (
        *BIRTH_AND_DEATH,
        *DEMOGRAPHICS,
        # Synthea computes these from its own state of the disease, and claims repeat what the other tables say.
        Rule(r"(?i:.*\b(?:QALY|DALY|QOLS))", "OTHER", "SYNTHEA_SCORE", "drop"),
        Rule(
            rf"(?i:CLAIMS?(?:_?TRANSACTIONS?)?|EXPLANATION_?OF_?BENEFIT|PAYER_?TRANSITIONS?|PROVENANCE){SEPARATOR}.+",
            "OTHER",
            "CLAIM",
            "drop",
        ),
        *encounters(rf"(?i:ENCOUNTERS?|VISITS?)(?i:{SEPARATOR}{_END}){NO_STAY}{SEPARATOR}", "end"),
        *encounters(
            rf"(?i:ENCOUNTERS?|VISITS?)(?i:{SEPARATOR}{_START})?{NO_STAY}{SEPARATOR}(?:(?i:{SNOMED}){SEPARATOR})?",
            "start",
        ),
        # Ends before starts, whose patterns would take them.
        Rule(_under(_CONDITION, SNOMED, _SCTID, _END), "OTHER", "CONDITION_END"),
        Rule(_under(_CONDITION, SNOMED, _SCTID) + rf"(?i:{SEPARATOR}{_END})", "OTHER", "CONDITION_END"),
        Rule(_under(_CONDITION, SNOMED, _SCTID), "DIAGNOSIS", "SNOMED"),
        Rule(_under(_MEDICATION, _RXNORM, r"(?P<p1>\d+)", _END), "OTHER", "MEDICATION_END"),
        Rule(_under(_MEDICATION, _RXNORM, r"(?P<p1>\d+)") + rf"(?i:{SEPARATOR}{_END})", "OTHER", "MEDICATION_END"),
        Rule(_under(_MEDICATION, _RXNORM, r"(?P<p1>\d+)"), "MEDICATION", "RXNORM"),
        Rule(_under(_OBSERVATION, "LOINC", r"(?P<p1>\d{1,5}-\d)(?:/{1,2}.*)?"), "LAB", "LOINC"),
        Rule(_under(_OBSERVATION, SNOMED, _SCTID), "LAB", "SNOMED_LAB"),
        Rule(_under(_PROCEDURE, SNOMED, _SCTID), "PROCEDURE", "SNOMED_PROCEDURE"),
        Rule(_under(_IMMUNIZATION, "CVX", r"(?P<p1>\d{1,3})"), "MEDICATION", "CVX"),
        Rule(rf"(?i:ALLERG(?:Y|IES)(?:_?INTOLERANCE)?){SEPARATOR}(?P<p1>.+)", "DIAGNOSIS", "ALLERGY"),
        Rule(_under(r"CARE_?PLANS?", SNOMED, _SCTID), "PROCEDURE", "CAREPLAN"),
        Rule(_under(r"DEVICES?|SUPPL(?:Y|IES)", SNOMED, _SCTID), "PROCEDURE", "DEVICE"),
        Rule(rf"(?i:IMAGING(?:_?STUD(?:Y|IES))?){SEPARATOR}(?P<p1>.+)", "PROCEDURE", "IMAGING"),
        *SYSTEMS,
        *SNOMED_CT,
    ),
)
