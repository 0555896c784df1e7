"""The map for MEDS made from an OMOP database.

meds_etl writes VOCABULARY/CODE of the source concept (`ICD10CM/E11.9`, `RxNorm/314076`, `Visit/IP`). OMOP_MEDS writes
VOCABULARY//CODE for measurements and observations, and TABLE//VOCABULARY//CONCEPT_ID for the rest
(`condition_occurrence//SNOMED//201826`): an OMOP concept id is no SNOMED code, so these have systems of their own.
"""

from data_pipeline.code_maps import CodeMap, Rule
from data_pipeline.coded_systems import BIRTH_AND_DEATH, DEMOGRAPHICS, SNOMED_CT, SYSTEMS, encounters, vocabulary

# TABLE//VOCABULARY//CONCEPT_ID, or TABLE//CONCEPT_ID.
_ID = r"/{1,2}(?:[^/]+/{1,2})?(?P<p1>\d+)"
_LOCAL = r"(?:[A-Z0-9]+_)+"

OMOP = CodeMap(
    "omop",
    (
        *BIRTH_AND_DEATH,
        *DEMOGRAPHICS,
        # Spans that OMOP derives from the other tables would be told twice.
        Rule(r"(?i:(?:drug|dose|condition)_era_(?:start|end)(?:_date)?/.+)", "OTHER", "OMOP_ERA", "drop"),
        Rule(r"(?i:observation_period_end(?:_date)?/.+)", "OTHER", "OMOP_OBSERVATION_PERIOD", "observation_end"),
        Rule(r"(?i:observation_period(?:_start(?:_date)?)?/.+)", "OTHER", "OMOP_OBSERVATION_PERIOD", "drop"),
        *encounters(r"(?i:visit(?:_occurrence)?_end)/{1,2}(?:(?i:Visit(?: Type)?)/{1,2})?", "end"),
        *encounters(
            r"(?i:visit(?:_occurrence|_detail)?(?:_start)?)/{1,2}(?:(?i:Visit(?: Type)?)/{1,2})?",
            "start",
        ),
        Rule(r"(?i:drug_exposure)_(?P<p2>(?i:start|end))" + _ID, "MEDICATION", "OMOP_DRUG"),
        Rule(r"(?i:drug(?:_exposure)?)" + _ID, "MEDICATION", "OMOP_DRUG"),
        Rule(r"(?i:condition(?:_occurrence)?)" + _ID, "DIAGNOSIS", "OMOP_CONDITION"),
        # No diagnosis: an incident disease must not be found in its end.
        Rule(r"(?i:condition(?:_occurrence)?_end)" + _ID, "OTHER", "OMOP_CONDITION_END"),
        Rule(r"(?i:procedure(?:_occurrence)?)" + _ID, "PROCEDURE", "OMOP_PROCEDURE"),
        Rule(r"(?i:device_exposure)_(?P<p2>(?i:start|end))" + _ID, "PROCEDURE", "OMOP_DEVICE"),
        Rule(r"(?i:device(?:_exposure)?)" + _ID, "PROCEDURE", "OMOP_DEVICE"),
        Rule(r"(?i:measurement)" + _ID, "LAB", "OMOP_MEASUREMENT"),
        Rule(r"(?i:observation)" + _ID, "OTHER", "OMOP_OBSERVATION"),
        Rule(r"(?i:specimen)" + _ID, "OTHER", "OMOP_SPECIMEN"),
        Rule(r"(?i:note(?: type|_class|_nlp)?)/{1,2}.+", "OTHER", "NOTE", "drop"),
        *SYSTEMS,
        *SNOMED_CT,
        Rule(r"Read/(?P<p1>.+)", "DIAGNOSIS", "READ"),
        Rule(vocabulary("Nebraska Lexicon"), "DIAGNOSIS", "NEBRASKA_LEXICON"),
        Rule(vocabulary("Cancer Modifier|NAACCR|OMOP Genomic"), "LAB", "CANCER_MODIFIER"),
        Rule(
            vocabulary("GPI|VA Product|VA Class|Multum|SPL|Gemscript|BDPM|AMT|GGR|JMDC"), "MEDICATION", "OMOP_PRODUCT"
        ),
        Rule(
            vocabulary("CMS Place of Service|Place of Service|Medicare Specialty|ABMS|NUCC|CARE_SITE|Provider"),
            "DEPARTMENT",
            "DEPARTMENT",
        ),
        # A site's own vocabularies (concept ids above two billion), named after their table: STANFORD_MEAS/...
        Rule(rf"{_LOCAL}(?:CONDITION|DIAGNOSIS|DX|PROBLEM)S?/(?P<p1>.+)", "DIAGNOSIS", "LOCAL_DIAGNOSIS"),
        Rule(rf"{_LOCAL}(?:MEAS|MEASUREMENT|LAB|VITAL|FLOWSHEET)S?/(?P<p1>.+)", "LAB", "LOCAL_LAB"),
        Rule(rf"{_LOCAL}(?:DRUG|MED|MEDICATION|RX)S?/(?P<p1>.+)", "MEDICATION", "LOCAL_MEDICATION"),
        Rule(rf"{_LOCAL}(?:PROC|PROCEDURE|ORDER)S?/(?P<p1>.+)", "PROCEDURE", "LOCAL_PROCEDURE"),
        # Whatever else has a concept id: alone, or called OMOP.
        Rule(
            r"(?:(?i:OMOP(?:_CONCEPT)?(?:_ID)?|concept_id|OMOP Extension)/{1,2})?(?P<p1>(?:OMOP)?\d+)",
            "OTHER",
            "OMOP_CONCEPT",
        ),
        Rule(r"SOURCE_CODE/(?P<p1>.+)", "OTHER", "SOURCE_CODE"),
    ),
)
