"""Coding systems as rules: how ICD, LOINC, SNOMED CT, RxNorm and others are written, whoever writes them.

The maps for OMOP, Synthea and unseen data share these. A system's name may be that of OMOP's vocabulary table
(`RxNorm Extension`), of FHIR (`http://loinc.org`) or plain; a table's name may stand before it
(`CONDITION//SNOMED//44054006`); the separators are `//`, `/`, `:`, `|` and `_`. What tells of the patient is read
narrowly, since `LAB//SEX_HORMONE_BINDING_GLOBULIN` is nobody's sex: there `_` only joins words.
"""

from collections.abc import Iterable

from data_pipeline.code_maps import Rule

# Parts of codes that mean the same wherever they occur.
ICD10CM = r"(?P<p1>[A-Z]\d[0-9A-Z])\.?(?P<p2>[0-9A-Z])?(?P<p3>[0-9A-Z]*)"
# External causes (E800-E999) have a category of four characters.
ICD9CM = r"(?P<p1>E\d{3}|[V\d]\d{2})\.?(?P<p2>\d)?(?P<p3>\d*)"
ICD9PROC = r"(?P<p1>\d{2})\.?(?P<p2>\d*)"
ICD10PCS = r"(?P<p1>[0-9A-HJ-NP-Z]{3})(?P<p2>[0-9A-HJ-NP-Z])(?P<p3>[0-9A-HJ-NP-Z]{3})"
ATC = r"(?P<p1>[A-Z]\d{2})(?P<p2>[A-Z]{1,2})?(?P<p3>\d*)"
WHOLE = r"(?P<p1>.+)"

SEPARATOR = r"(?:/{1,2}|[:|_])"
# A separator that never stands within a name.
BREAK = r"(?:/{1,2}|[:|])"
# A table's name before that of the vocabulary: CONDITION//, drug_exposure/. In any case, and mostly not there.
_TABLE = rf"(?i:(?:[A-Z]+(?:_[A-Z]+)*{SEPARATOR})??)"
# Tables that tell of the patient.
_PATIENT = rf"(?:PERSON|PATIENT|DEMOGRAPHIC|OBSERVATION|ADMISSION|ENCOUNTER|VISIT)S?{SEPARATOR}"
# What, next after a stay's word, makes a row of another table of it: ENCOUNTER_DIAGNOSIS, DISCHARGE//MEDICATION//...
NO_STAY = (
    rf"(?!{SEPARATOR}(?i:DIAGNOS[IE]S|DX|PROBLEMS?|REASONS?|COMPLAINTS?|NOTES?|ORDERS?|RX|MEDICATIONS?|MEDS?|DRUGS?|"
    rf"PRESCRIPTIONS?|LABS?|VITALS?|WEIGHT|HEIGHT|PROCEDURES?|INSTRUCTIONS?|SUMMAR(?:Y|IES)|PROVIDERS?)"
    rf"(?:{SEPARATOR}|\Z))"
)
_FHIR = r"https?://hl7\.org/fhir/sid/"
SNOMED = r"SNOMED(?:[-_ ]?CT)?(?:[-_ ]?(?:US|INT))?|https?://snomed\.info/sct|SCT"
_SNOMED_UNDER = {
    "PROCEDURE": r"(?:PROCEDURE|PROC|CARE_?PLAN|SERVICE_?REQUEST|DEVICE)(?:S|_OCCURRENCE)?",
    "LAB": r"(?:MEASUREMENT|OBSERVATION|LAB|VITAL|DIAGNOSTIC_?REPORT)(?:S|_SIGNS?|_RESULTS?)?",
}

# Types of encounter, by OMOP's code and concept id, HL7's class (v3-ActCode), Synthea's class, and in words.
_ENCOUNTER_TYPES = {
    "INPATIENT": r"IP|IMP|ACUTE|NONAC|INPATIENT|INPATIENT[ _](?:VISIT|HOSPITAL|STAY)|HOSPITALI[SZ]ATION|9201|8717",
    "EMERGENCY": r"ER|ED|EMER|EMERGENCY|EMERGENCY[ _](?:ROOM|DEPARTMENT)(?:[ _]VISIT)?|9203|8870",
    "OUTPATIENT": r"OP|AMB|AMBULATORY|OUTPATIENT|(?:OUTPATIENT|OFFICE|AMBULATORY)[ _]VISIT|OFFICE|9202",
    "ICU": r"ICU|INTENSIVE[ _]CARE(?:[ _]UNIT)?|32037",
    "VIRTUAL": r"VR|VIRTUAL|TELE[-_ ]?(?:HEALTH|MEDICINE)(?:[ _]VISIT)?|5083",
    "HOME": r"HH|HOME|HOME[ _](?:HEALTH|VISIT)|581476",
}


def vocabulary(names: str, parts: str = WHOLE, tables: str = _TABLE) -> str:
    """Pattern of codes `NAME//...` or `NAME/...`, names in any case, by default with any table's name or none first."""
    return rf"{tables}(?i:{names}){SEPARATOR}{parts}"


def _of_patient(names: str, parts: str = WHOLE, end: str = BREAK) -> str:
    """Pattern of codes that tell of the patient: `NAME//...`, maybe with a table that does so before it.

    A vocabulary of a site's own has the site's name before it, and one slash after it (meds_etl's `STANFORD_RACE/...`).
    """
    return rf"(?i:(?:{_PATIENT})?(?:{names}){end}|(?:[A-Z0-9]+_)+(?:{names})/(?!/)){parts}"


def encounters(pattern: str, role: str, rest: str = rf"(?:{SEPARATOR}(?P<p2>.+))?") -> Iterable[Rule]:
    """Rules for codes that begin with `pattern` and go on with an encounter's type, which may be spelt in many ways.

    Inpatient stays, emergencies and so on get one name each, so that a task reads alike on every data set.
    """
    system = {"start": "ENCOUNTER_START", "end": "ENCOUNTER_END"}[role]
    for name, spellings in _ENCOUNTER_TYPES.items():
        yield Rule(rf"{pattern}(?i:{spellings}){rest}", "ENCOUNTER", system, role, first=name)
    # An emergency that became an inpatient stay.
    yield Rule(rf"{pattern}(?P<p2>(?i:ERIP|262)){rest.replace('p2', 'p3')}", "ENCOUNTER", system, role, "INPATIENT")
    yield Rule(rf"{pattern}(?P<p1>[^/|:]+){rest}", "ENCOUNTER", system, role)


# SNOMED/3950001 and SNOMED/419620001 are birth and death before MEDS had codes for them.
BIRTH_AND_DEATH = (
    Rule(r"MEDS_BIRTH(?://.*)?|SNOMED/3950001", "DEMOGRAPHIC", "BIRTH", "birth"),
    Rule(r"MEDS_DEATH(?://.*)?|SNOMED/419620001", "DEATH", "DEATH", "death"),
)
DEMOGRAPHICS = (
    # 8507 and 8532 are OMOP's concepts for male and female. Here the whole value is known, whatever stands before it.
    Rule(_of_patient("GENDER|SEX", r"(?i:F|FEMALE|8532)", SEPARATOR), "DEMOGRAPHIC", "SEX", "sex", first="F"),
    Rule(_of_patient("GENDER|SEX", r"(?i:M|MALE|8507)", SEPARATOR), "DEMOGRAPHIC", "SEX", "sex", first="M"),
    Rule(_of_patient("GENDER|SEX"), "DEMOGRAPHIC", "SEX", "sex"),
    Rule(_of_patient("RACE"), "DEMOGRAPHIC", "RACE", "race"),
    # Neither an event (meds_etl dates it at birth, where the timeline would then begin) nor a second race, which would
    # hide the first.
    Rule(_of_patient("ETHNICITY"), "OTHER", "ETHNICITY", "drop"),
    Rule(_of_patient("MARITAL(?:_STATUS)?|INSURANCE|PAYER|LANGUAGE"), "OTHER", "SOCIAL"),
)
SYSTEMS = (
    # Procedures first: their codes may look like diagnoses where the vocabulary is only called ICD.
    Rule(vocabulary("ICD-?10-?PCS|http://www\\.cms\\.gov/Medicare/Coding/ICD10", ICD10PCS), "PROCEDURE", "ICD10PCS"),
    Rule(vocabulary("ICD-?9-?PROC(?:CN)?", ICD9PROC), "PROCEDURE", "ICD9PROC"),
    Rule(rf"(?i:PROCEDURES?){SEPARATOR}ICD{SEPARATOR}?10{SEPARATOR}{ICD10PCS}", "PROCEDURE", "ICD10PCS"),
    Rule(rf"(?i:PROCEDURES?){SEPARATOR}ICD{SEPARATOR}?9{SEPARATOR}{ICD9PROC}", "PROCEDURE", "ICD9PROC"),
    Rule(rf"(?i:PROCEDURES?){SEPARATOR}(?P<p1>ICD.*)", "PROCEDURE", "LOCAL_PROCEDURE"),
    Rule(
        vocabulary(rf"ICD-?10(?:-?(?:CM|GM|CN|WHO))?|ICD(?:/{{1,2}}|_)10(?:[-_]?CM)?|{_FHIR}icd-10(?:-cm)?", ICD10CM),
        "DIAGNOSIS",
        "ICD10CM",
    ),
    Rule(
        vocabulary(rf"ICD-?9(?:-?(?:CM|CN))?|ICD(?:/{{1,2}}|_)9(?:[-_]?CM)?|{_FHIR}icd-9(?:-cm)?", ICD9CM),
        "DIAGNOSIS",
        "ICD9CM",
    ),
    Rule(vocabulary("ICDO3|ICD-?O-?3"), "DIAGNOSIS", "ICDO3"),
    Rule(vocabulary("READ[-_ ]?(?:V[23]|CODES?)"), "DIAGNOSIS", "READ"),
    Rule(vocabulary(r"LOINC|https?://loinc\.org"), "LAB", "LOINC"),
    Rule(vocabulary(r"ATC|https?://www\.whocc\.no/atc", ATC), "MEDICATION", "ATC"),
    Rule(
        vocabulary(r"RXNORM(?:[ _]EXTENSION)?|https?://www\.nlm\.nih\.gov/research/umls/rxnorm"),
        "MEDICATION",
        "RXNORM",
    ),
    Rule(vocabulary(rf"NDC|{_FHIR}ndc"), "MEDICATION", "NDC"),
    Rule(vocabulary(r"DM\+D"), "MEDICATION", "DMD"),
    Rule(vocabulary(rf"CVX|{_FHIR}cvx"), "MEDICATION", "CVX"),
    Rule(vocabulary(r"CPT-?4?|https?://www\.ama-assn\.org/go/cpt"), "PROCEDURE", "CPT"),
    Rule(vocabulary(r"HCPCS|urn:oid:2\.16\.840\.1\.113883\.6\.285"), "PROCEDURE", "HCPCS"),
    Rule(vocabulary("OPCS-?4"), "PROCEDURE", "OPCS4"),
    Rule(vocabulary("(?:MS-|APR-)?DRG"), "OTHER", "DRG"),
)
# SNOMED CT covers everything; without a table's name, most of what is coded with it are conditions.
SNOMED_CT = (
    *(
        Rule(vocabulary(SNOMED, tables=rf"(?i:{tables}){SEPARATOR}"), kind, f"SNOMED_{kind}")
        for kind, tables in _SNOMED_UNDER.items()
    ),
    Rule(vocabulary(SNOMED), "DIAGNOSIS", "SNOMED"),
)
