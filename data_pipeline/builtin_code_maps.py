"""The code maps that come with the program: the synthetic world, MIMIC-IV in MEDS, and data never seen."""

from data_pipeline.code_maps import CodeMap, Rule

# Parts of codes that mean the same wherever they occur.
_ICD10CM = r"(?P<p1>[A-Z]\d[0-9A-Z])\.?(?P<p2>[0-9A-Z])?(?P<p3>[0-9A-Z]*)"
# External causes (E800-E999) have a category of four characters.
_ICD9CM = r"(?P<p1>E\d{3}|[V\d]\d{2})\.?(?P<p2>\d)?(?P<p3>\d*)"
_ICD9PROC = r"(?P<p1>\d{2})\.?(?P<p2>\d*)"
_ICD10PCS = r"(?P<p1>[0-9A-HJ-NP-Z]{3})(?P<p2>[0-9A-HJ-NP-Z])(?P<p3>[0-9A-HJ-NP-Z]{3})"
_ATC = r"(?P<p1>[A-Z]\d{2})(?P<p2>[A-Z]{1,2})?(?P<p3>\d*)"

_BIRTH = Rule(r"MEDS_BIRTH", "DEMOGRAPHIC", "BIRTH", "birth")
_DEATH = Rule(r"MEDS_DEATH", "DEATH", "DEATH", "death")

WORLD = CodeMap(
    "world",
    (
        _BIRTH,
        _DEATH,
        Rule(r"SEX//(?P<p1>.+)", "DEMOGRAPHIC", "SEX", "sex"),
        Rule(r"RACE//(?P<p1>.+)", "DEMOGRAPHIC", "RACE", "race"),
        Rule(r"ENCOUNTER_START//(?P<p1>[^/]+)(?://(?P<p2>.+))?", "ENCOUNTER", "ENCOUNTER_START", "start"),
        Rule(r"ENCOUNTER_END//(?P<p1>[^/]+)(?://(?P<p2>.+))?", "ENCOUNTER", "ENCOUNTER_END", "end"),
        Rule(r"DEPARTMENT//(?P<p1>.+)", "DEPARTMENT", "DEPARTMENT"),
        Rule(r"CHIEF_COMPLAINT//(?P<p1>.+)", "CHIEF_COMPLAINT", "CHIEF_COMPLAINT"),
        Rule(rf"ICD10CM//{_ICD10CM}", "DIAGNOSIS", "ICD10CM"),
        Rule(r"LOINC//(?P<p1>.+)", "LAB", "LOINC"),
        Rule(rf"ATC//{_ATC}", "MEDICATION", "ATC"),
        Rule(r"CPT//(?P<p1>.+)", "PROCEDURE", "CPT"),
    ),
)

# What the administration record (emar) says was done. A delay, a partial dose or another place does not change it.
_EMAR_ACTION = (
    r"(?:Delayed |Partial )?(?P<p2>(?:Not )?(?:Administered|Given|Flushed|Started|Restarted|Stopped|Confirmed|Applied|"
    r"Removed|Assessed)|Hold Dose|Infusion Reconciliation|Rate Change|Read)(?:[ ,].*)?"
)
# MIMIC-IV as MEDS_transforms writes it (its `MIMIC-IV_Example` event configuration).
MIMIC = CodeMap(
    "mimic",
    (
        _BIRTH,
        _DEATH,
        Rule(r"GENDER//(?P<p1>[FM])", "DEMOGRAPHIC", "SEX", "sex"),
        Rule(r"RACE//(?P<p1>.+)", "DEMOGRAPHIC", "RACE", "race"),
        # Laboratory results and charted observations alike, by item and unit; a unit that says nothing is left out.
        Rule(r"LAB//(?P<p1>\d+)//(?:UNK|N/A|\s*)", "LAB", "MIMIC_ITEM"),
        Rule(r"LAB//(?P<p1>\d+//.+)", "LAB", "MIMIC_ITEM"),
        Rule(r"SUBJECT_FLUID_OUTPUT//(?P<p1>.+)", "LAB", "FLUID_OUTPUT"),
        Rule(r"SUBJECT_WEIGHT_AT_INFUSION//(?P<p1>.+)", "LAB", "WEIGHT_AT_INFUSION"),
        # The outpatient record (omr): results are text.
        Rule(
            r"(?P<p1>(?:Blood Pressure|Weight|Height|BMI|eGFR)(?: .+)?)",
            "LAB",
            "OMR",
        ),
        # Orders start and stop; doses are given or not. Both name the drug first, so that they share its token.
        Rule(r"MEDICATION//(?P<p2>START|STOP)//(?P<p1>.+)", "MEDICATION", "MIMIC_DRUG"),
        Rule(rf"MEDICATION//(?P<p1>.+)//{_EMAR_ACTION}", "MEDICATION", "MIMIC_DRUG"),
        Rule(r"MEDICATION//(?P<p1>.+)//(?:UNK|Delayed|in Other Location|\s)*", "MEDICATION", "MIMIC_DRUG"),
        Rule(r"MEDICATION//(?P<p1>.+)//(?P<p2>.+)", "MEDICATION", "MIMIC_DRUG"),
        Rule(r"INFUSION_(?P<p2>START|END)//(?P<p1>\d+)", "MEDICATION", "MIMIC_INFUSION"),
        Rule(rf"DIAGNOSIS//ICD//10//{_ICD10CM}", "DIAGNOSIS", "ICD10CM"),
        Rule(rf"DIAGNOSIS//ICD//9//{_ICD9CM}", "DIAGNOSIS", "ICD9CM"),
        Rule(rf"PROCEDURE//ICD//10//{_ICD10PCS}", "PROCEDURE", "ICD10PCS"),
        Rule(rf"PROCEDURE//ICD//9//{_ICD9PROC}", "PROCEDURE", "ICD9PROC"),
        Rule(r"PROCEDURE//(?P<p2>START|END)//(?P<p1>\d+)", "PROCEDURE", "MIMIC_PROCEDURE"),
        Rule(r"HCPCS//(?P<p1>.+)", "PROCEDURE", "HCPCS"),
        Rule(r"DRG//(?P<p1>[^/]+//\d+//.+)", "OTHER", "DRG"),
        Rule(
            r"HOSPITAL_ADMISSION//(?P<p2>.+?)//(?P<p3>.+)", "ENCOUNTER", "ENCOUNTER_START", "start", first="INPATIENT"
        ),
        Rule(r"HOSPITAL_DISCHARGE//(?:UNK|(?P<p2>.+))", "ENCOUNTER", "ENCOUNTER_END", "end", first="INPATIENT"),
        Rule(r"ED_REGISTRATION", "ENCOUNTER", "ENCOUNTER_START", "start", first="EMERGENCY"),
        Rule(r"ED_OUT", "ENCOUNTER", "ENCOUNTER_END", "end", first="EMERGENCY"),
        Rule(r"ICU_ADMISSION//(?P<p2>.+)", "ENCOUNTER", "ENCOUNTER_START", "start", first="ICU"),
        Rule(r"ICU_DISCHARGE//(?P<p2>.+)", "ENCOUNTER", "ENCOUNTER_END", "end", first="ICU"),
        # HOSPITAL_DISCHARGE says it already, and more.
        Rule(r"TRANSFER_TO//discharge//.*", "DEPARTMENT", "DEPARTMENT", "drop"),
        Rule(r"TRANSFER_TO//[^/]+//(?P<p1>.+)", "DEPARTMENT", "DEPARTMENT"),
        Rule(r"(?P<p1>(?:INSURANCE|LANGUAGE|MARITAL_STATUS)//.+)", "OTHER", "SOCIAL"),
    ),
)

# A table's name may stand before the vocabulary's: CONDITION//SNOMED//..., DIAGNOSIS//ICD10CM/...
_TABLE = r"(?i:(?:[A-Z_ ]+/{1,2})??)"
_SEP = r"(?:/{1,2}|:)"
_SNOMED = r"SNOMED(?:[-_ ]?CT)?"


def _vocabulary(names: str, parts: str = r"(?P<p1>.+)") -> str:
    """Pattern of codes `NAME//...` or `NAME/...`, names in any case, with or without a table's name before them."""
    return rf"{_TABLE}(?i:{names}){_SEP}{parts}"


GENERIC = CodeMap(
    "generic",
    (
        _BIRTH,
        _DEATH,
        # 8507 and 8532 are OMOP's concepts for male and female.
        Rule(_vocabulary("GENDER|SEX", r"(?i:F|FEMALE|8532)"), "DEMOGRAPHIC", "SEX", "sex", first="F"),
        Rule(_vocabulary("GENDER|SEX", r"(?i:M|MALE|8507)"), "DEMOGRAPHIC", "SEX", "sex", first="M"),
        Rule(_vocabulary("GENDER|SEX"), "DEMOGRAPHIC", "SEX", "sex"),
        Rule(_vocabulary("RACE"), "DEMOGRAPHIC", "RACE", "race"),
        # Procedures first: their codes may look like diagnoses where the vocabulary is only called ICD.
        Rule(_vocabulary("ICD10PCS|ICD-10-PCS", _ICD10PCS), "PROCEDURE", "ICD10PCS"),
        Rule(_vocabulary("ICD9PROC", _ICD9PROC), "PROCEDURE", "ICD9PROC"),
        Rule(rf"(?i:PROCEDURES?){_SEP}ICD{_SEP}?10{_SEP}{_ICD10PCS}", "PROCEDURE", "ICD10PCS"),
        Rule(rf"(?i:PROCEDURES?){_SEP}ICD{_SEP}?9{_SEP}{_ICD9PROC}", "PROCEDURE", "ICD9PROC"),
        Rule(rf"(?i:PROCEDURES?){_SEP}(?P<p1>ICD.*)", "PROCEDURE", "LOCAL_PROCEDURE"),
        Rule(_vocabulary("ICD-?10(?:-?CM)?|ICD/{1,2}10(?:CM)?", _ICD10CM), "DIAGNOSIS", "ICD10CM"),
        Rule(_vocabulary("ICD-?9(?:-?CM)?|ICD/{1,2}9(?:CM)?", _ICD9CM), "DIAGNOSIS", "ICD9CM"),
        Rule(_vocabulary("LOINC"), "LAB", "LOINC"),
        Rule(_vocabulary("ATC", _ATC), "MEDICATION", "ATC"),
        Rule(_vocabulary("RXNORM(?: EXTENSION)?"), "MEDICATION", "RXNORM"),
        Rule(_vocabulary("NDC"), "MEDICATION", "NDC"),
        Rule(_vocabulary("CVX"), "MEDICATION", "CVX"),
        Rule(_vocabulary("CPT4?"), "PROCEDURE", "CPT"),
        Rule(_vocabulary("HCPCS"), "PROCEDURE", "HCPCS"),
        # SNOMED CT covers everything; without a table's name, most of what is coded with it are conditions.
        Rule(rf"(?i:PROCEDURES?{_SEP}{_SNOMED}){_SEP}(?P<p1>.+)", "PROCEDURE", "SNOMED_PROCEDURE"),
        Rule(rf"(?i:(?:MEASUREMENT|OBSERVATION|LAB)S?{_SEP}{_SNOMED}){_SEP}(?P<p1>.+)", "LAB", "SNOMED_MEASUREMENT"),
        Rule(_vocabulary(_SNOMED), "DIAGNOSIS", "SNOMED"),
        Rule(
            rf"(?i:(?:ENCOUNTER|VISIT|ADMISSION)_?(?:START|ADMIT)){_SEP}(?P<p1>[^/]+)(?:{_SEP}(?P<p2>.+))?",
            "ENCOUNTER",
            "ENCOUNTER_START",
            "start",
        ),
        Rule(
            rf"(?i:(?:ENCOUNTER|VISIT|ADMISSION)_?(?:END|DISCHARGE)){_SEP}(?P<p1>[^/]+)(?:{_SEP}(?P<p2>.+))?",
            "ENCOUNTER",
            "ENCOUNTER_END",
            "end",
        ),
        Rule(
            rf"(?i:(?:HOSPITAL|INPATIENT)_ADMISSION|ADMISSION)(?:{_SEP}(?P<p2>.+))?",
            "ENCOUNTER",
            "ENCOUNTER_START",
            "start",
            first="INPATIENT",
        ),
        Rule(
            rf"(?i:(?:HOSPITAL|INPATIENT)_DISCHARGE|DISCHARGE)(?:{_SEP}(?P<p2>.+))?",
            "ENCOUNTER",
            "ENCOUNTER_END",
            "end",
            first="INPATIENT",
        ),
        Rule(rf"(?i:ICU_ADMISSION)(?:{_SEP}(?P<p2>.+))?", "ENCOUNTER", "ENCOUNTER_START", "start", first="ICU"),
        Rule(rf"(?i:ICU_DISCHARGE)(?:{_SEP}(?P<p2>.+))?", "ENCOUNTER", "ENCOUNTER_END", "end", first="ICU"),
        Rule(r"(?i:ED_(?:REGISTRATION|ADMISSION))", "ENCOUNTER", "ENCOUNTER_START", "start", first="EMERGENCY"),
        Rule(r"(?i:ED_(?:OUT|DISCHARGE))", "ENCOUNTER", "ENCOUNTER_END", "end", first="EMERGENCY"),
        # A visit without a word on its end (OMOP's Visit/IP) is its start.
        Rule(rf"(?i:VISIT|ENCOUNTER){_SEP}(?P<p1>[^/]+)", "ENCOUNTER", "ENCOUNTER_START", "start"),
        Rule(rf"(?i:DEPARTMENT|CARE_SITE|TRANSFER_TO){_SEP}(?P<p1>.+)", "DEPARTMENT", "DEPARTMENT"),
        Rule(rf"(?i:CHIEF_COMPLAINT){_SEP}(?P<p1>.+)", "CHIEF_COMPLAINT", "CHIEF_COMPLAINT"),
        # Local codes under a table's name.
        Rule(rf"(?i:DIAGNOS[IE]S|CONDITIONS?|PROBLEMS?){_SEP}(?P<p1>.+)", "DIAGNOSIS", "LOCAL_DIAGNOSIS"),
        Rule(rf"(?i:(?:LAB|VITAL|MEASUREMENT)(?:S|_SIGN|_SIGNS)?){_SEP}(?P<p1>.+)", "LAB", "LOCAL_LAB"),
        Rule(
            rf"(?i:MEDICATIONS?|DRUGS?|PRESCRIPTIONS?|IMMUNIZATIONS?|INFUSION(?:_START|_END)?){_SEP}(?P<p1>.+)",
            "MEDICATION",
            "LOCAL_MEDICATION",
        ),
        Rule(rf"(?i:PROCEDURES?){_SEP}(?P<p1>.+)", "PROCEDURE", "LOCAL_PROCEDURE"),
    ),
)

CODE_MAPS = {code_map.name: code_map for code_map in (WORLD, MIMIC, GENERIC)}
