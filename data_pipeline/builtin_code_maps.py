"""The code maps that come with the program, by name; those of the synthetic world and of MIMIC-IV in MEDS are here."""

from data_pipeline.code_maps import CodeMap, Rule
from data_pipeline.coded_systems import ATC, ICD9CM, ICD9PROC, ICD10CM, ICD10PCS
from data_pipeline.generic_code_map import GENERIC
from data_pipeline.omop_code_map import OMOP
from data_pipeline.synthea_code_map import SYNTHEA

_BIRTH = Rule(r"MEDS_BIRTH", "DEMOGRAPHIC", "BIRTH", "birth")
_DEATH = Rule(r"MEDS_DEATH", "DEATH", "DEATH", "death")

WORLD = CodeMap(
    "world",
    (
        _BIRTH,
        _DEATH,
        Rule(r"OBSERVATION_END", "OTHER", "OBSERVATION", "observation_end"),
        Rule(r"SEX//(?P<p1>.+)", "DEMOGRAPHIC", "SEX", "sex"),
        Rule(r"RACE//(?P<p1>.+)", "DEMOGRAPHIC", "RACE", "race"),
        Rule(r"ENCOUNTER_START//(?P<p1>[^/]+)(?://(?P<p2>.+))?", "ENCOUNTER", "ENCOUNTER_START", "start"),
        Rule(r"ENCOUNTER_END//(?P<p1>[^/]+)(?://(?P<p2>.+))?", "ENCOUNTER", "ENCOUNTER_END", "end"),
        Rule(r"DEPARTMENT//(?P<p1>.+)", "DEPARTMENT", "DEPARTMENT"),
        Rule(r"CHIEF_COMPLAINT//(?P<p1>.+)", "CHIEF_COMPLAINT", "CHIEF_COMPLAINT"),
        Rule(rf"ICD10CM//{ICD10CM}", "DIAGNOSIS", "ICD10CM"),
        Rule(r"LOINC//(?P<p1>.+)", "LAB", "LOINC"),
        Rule(rf"ATC//{ATC}", "MEDICATION", "ATC"),
        Rule(r"CPT//(?P<p1>.+)", "PROCEDURE", "CPT"),
    ),
)

# What the administration record (emar) says was done. A delay, a partial dose or another place does not change it.
_EMAR_ACTION = (
    r"(?:Delayed |Partial )?(?P<p2>(?:Not )?(?:Administered|Given|Flushed|Started|Restarted|Stopped|Confirmed|Applied|"
    r"Removed|Assessed)|Hold Dose|Infusion Reconciliation|Rate Change|Read)(?:[ ,].*)?"
)
# One drug is written in several ways: MetRONIDAZOLE (FLagyl), Metronidazole. Brand, form and strength in brackets are
# the last part.
_DRUG = r"(?P<p1>[^(]+?) *(?:\((?P<p3>.+?)\)?)? *"
# Of one that nothing is done to: a last part needs one before it.
_DRUG_ALONE = r"(?P<p1>[^(]+?) *(?:\(.+)?"


def _drug(pattern: str) -> Rule:
    return Rule(pattern, "MEDICATION", "MIMIC_DRUG", case="lower")


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
        Rule(r"(?P<p1>Blood Pressure)(?: (?P<p2>.+))?", "LAB", "OMR"),
        Rule(r"(?P<p1>(?:Weight|Height|BMI|eGFR)(?: .+)?)", "LAB", "OMR"),
        # Orders start and stop; doses are given or not. Both name the drug first, so that they share its token.
        _drug(rf"MEDICATION//(?P<p2>START|STOP)//{_DRUG}"),
        _drug(r"MEDICATION//(?P<p2>START|STOP)//(?P<p1>.+)"),
        _drug(rf"MEDICATION//{_DRUG}//{_EMAR_ACTION}"),
        _drug(rf"MEDICATION//{_DRUG_ALONE}//(?:UNK|Delayed|in Other Location|\s)*"),
        _drug(rf"MEDICATION//{_DRUG}//(?P<p2>.+)"),
        _drug(r"MEDICATION//(?P<p1>.+)"),
        Rule(r"INFUSION_(?P<p2>START|END)//(?P<p1>\d+)", "MEDICATION", "MIMIC_INFUSION"),
        Rule(rf"DIAGNOSIS//ICD//10//{ICD10CM}", "DIAGNOSIS", "ICD10CM"),
        Rule(rf"DIAGNOSIS//ICD//9//{ICD9CM}", "DIAGNOSIS", "ICD9CM"),
        Rule(rf"PROCEDURE//ICD//10//{ICD10PCS}", "PROCEDURE", "ICD10PCS"),
        Rule(rf"PROCEDURE//ICD//9//{ICD9PROC}", "PROCEDURE", "ICD9PROC"),
        Rule(r"PROCEDURE//(?P<p2>START|END)//(?P<p1>\d+)", "PROCEDURE", "MIMIC_PROCEDURE"),
        Rule(r"HCPCS//(?P<p1>.+)", "PROCEDURE", "HCPCS"),
        # The description differs between years.
        Rule(r"DRG//(?P<p1>[^/]+//\d+)//.+", "OTHER", "DRG"),
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

CODE_MAPS = {code_map.name: code_map for code_map in (WORLD, MIMIC, OMOP, SYNTHEA, GENERIC)}
