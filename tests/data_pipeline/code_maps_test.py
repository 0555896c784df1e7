"""Code maps: which concept a code becomes, and how a wrong map of one's own is refused."""

import collections
import dataclasses
import datetime
import json
import pathlib
import re

import hypothesis
import polars as pl
import pytest
from hypothesis import strategies as st

from data_pipeline import code_maps, statistics, vocabulary
from data_pipeline.builtin_code_maps import CODE_MAPS
from data_pipeline.code_maps import NO_RULE, CodeMap, Rule, named
from data_pipeline.columns import to_columns
from data_pipeline.errors import UserError
from data_pipeline.tokenizer import tokenize
from data_pipeline.vocabulary_builder import VocabularyPolicy, build_vocabulary


def spelled(map_name: str, code: str) -> tuple[str, str, tuple[str, ...]]:
    concept = named(map_name).map(code)
    return concept.name, concept.role, concept.parts


def test_every_kind_of_a_rule_is_a_kind_of_the_vocabulary() -> None:
    assert set(code_maps.EVENT_KINDS) == set(vocabulary.KINDS) - {"SPECIAL", "INTERVAL", "VALUE"}


@pytest.mark.parametrize(
    ("map_name", "code"),
    [("world", "ICD10CM//E11.65"), ("mimic", "DIAGNOSIS//ICD//10//E1165"), ("generic", "ICD10CM/E11.65")],
)
def test_one_diagnosis_is_one_concept_in_every_data_set(map_name: str, code: str) -> None:
    parts = ("ICD10CM//E11", "ICD10CM//2//6", "ICD10CM//3//5")
    assert spelled(map_name, code) == ("DIAGNOSIS//ICD10CM//E1165", "", parts)


@pytest.mark.parametrize(
    ("code", "name", "role", "parts"),
    [
        ("SEX//F", "DEMOGRAPHIC//SEX//F", "sex", ("SEX//F",)),
        ("RACE//WHITE", "DEMOGRAPHIC//RACE//WHITE", "race", ("RACE//WHITE",)),
        ("MEDS_BIRTH", "DEMOGRAPHIC//BIRTH//MEDS_BIRTH", "birth", ("BIRTH//MEDS_BIRTH",)),
        ("MEDS_DEATH", "DEATH", "death", ("DEATH",)),
        (
            "ENCOUNTER_END//INPATIENT//HOME",
            "ENCOUNTER//ENCOUNTER_END//INPATIENTHOME",
            "end",
            ("ENCOUNTER_END//INPATIENT", "ENCOUNTER_END//2//HOME"),
        ),
        (
            "ENCOUNTER_START//OUTPATIENT",
            "ENCOUNTER//ENCOUNTER_START//OUTPATIENT",
            "start",
            ("ENCOUNTER_START//OUTPATIENT",),
        ),
        ("DEPARTMENT//CARDIOLOGY", "DEPARTMENT//DEPARTMENT//CARDIOLOGY", "", ("DEPARTMENT//CARDIOLOGY",)),
        ("LOINC//2345-7", "LAB//LOINC//2345-7", "", ("LOINC//2345-7",)),
        ("ATC//A10BA02", "MEDICATION//ATC//A10BA02", "", ("ATC//A10", "ATC//2//BA", "ATC//3//02")),
        ("CPT//99213", "PROCEDURE//CPT//99213", "", ("CPT//99213",)),
        ("ICD10CM//I10", "DIAGNOSIS//ICD10CM//I10", "", ("ICD10CM//I10",)),
    ],
)
def test_codes_of_the_synthetic_world(code: str, name: str, role: str, parts: tuple[str, ...]) -> None:
    assert spelled("world", code) == (name, role, parts)


@pytest.mark.parametrize(
    ("code", "role", "parts"),
    [
        ("LAB//220045//bpm", "", ("MIMIC_ITEM//220045//bpm",)),
        ("LAB//227969//UNK", "", ("MIMIC_ITEM//227969",)),
        ("LAB//51006// ", "", ("MIMIC_ITEM//51006",)),
        ("MEDICATION//START//Insulin", "", ("MIMIC_DRUG//insulin", "MIMIC_DRUG//2//start")),
        ("MEDICATION//Insulin//Administered", "", ("MIMIC_DRUG//insulin", "MIMIC_DRUG//2//administered")),
        (
            "MEDICATION//Insulin//Administered in Other Location",
            "",
            ("MIMIC_DRUG//insulin", "MIMIC_DRUG//2//administered"),
        ),
        (
            "MEDICATION//Sodium Chloride 0.9%  Flush//Delayed Flushed",
            "",
            ("MIMIC_DRUG//sodium chloride 0.9% flush", "MIMIC_DRUG//2//flushed"),
        ),
        (
            "MEDICATION//Insulin//Not Given per Sliding Scale",
            "",
            ("MIMIC_DRUG//insulin", "MIMIC_DRUG//2//not given"),
        ),
        ("MEDICATION//NORepinephrine// in Other Location", "", ("MIMIC_DRUG//norepinephrine",)),
        (
            "MEDICATION//MetRONIDAZOLE (FLagyl)//Administered",
            "",
            ("MIMIC_DRUG//metronidazole", "MIMIC_DRUG//2//administered", "MIMIC_DRUG//3//flagyl"),
        ),
        ("MEDICATION//START//(unnamed)", "", ("MIMIC_DRUG//(unnamed)", "MIMIC_DRUG//2//start")),
        ("DRG//APR//720//SEPTICEMIA & DISSEMINATED INFECTIONS", "", ("DRG//APR//720",)),
        ("MEDICATION//STOP//Docusate ", "", ("MIMIC_DRUG//docusate", "MIMIC_DRUG//2//stop")),
        ("INFUSION_START//225158", "", ("MIMIC_INFUSION//225158", "MIMIC_INFUSION//2//START")),
        ("DIAGNOSIS//ICD//9//42731", "", ("ICD9CM//427", "ICD9CM//2//3", "ICD9CM//3//1")),
        ("DIAGNOSIS//ICD//9//V1582", "", ("ICD9CM//V15", "ICD9CM//2//8", "ICD9CM//3//2")),
        ("DIAGNOSIS//ICD//9//E8786", "", ("ICD9CM//E878", "ICD9CM//2//6")),
        ("PROCEDURE//ICD//10//0DJ08ZZ", "", ("ICD10PCS//0DJ", "ICD10PCS//2//0", "ICD10PCS//3//8ZZ")),
        ("PROCEDURE//ICD//9//9671", "", ("ICD9PROC//96", "ICD9PROC//2//71")),
        ("PROCEDURE//END//225459", "", ("MIMIC_PROCEDURE//225459", "MIMIC_PROCEDURE//2//END")),
        (
            "HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM",
            "start",
            ("ENCOUNTER_START//INPATIENT", "ENCOUNTER_START//2//EW EMER.", "ENCOUNTER_START//3//EMERGENCY ROOM"),
        ),
        ("HOSPITAL_DISCHARGE//DIED", "end", ("ENCOUNTER_END//INPATIENT", "ENCOUNTER_END//2//DIED")),
        ("HOSPITAL_DISCHARGE//UNK", "end", ("ENCOUNTER_END//INPATIENT",)),
        ("ED_REGISTRATION", "start", ("ENCOUNTER_START//EMERGENCY",)),
        ("ED_OUT", "end", ("ENCOUNTER_END//EMERGENCY",)),
        ("ICU_ADMISSION//Neuro Stepdown", "start", ("ENCOUNTER_START//ICU", "ENCOUNTER_START//2//Neuro Stepdown")),
        ("TRANSFER_TO//admit//Medicine", "", ("DEPARTMENT//Medicine",)),
        ("TRANSFER_TO//discharge//UNK", "drop", ("DEPARTMENT//TRANSFER_TO//discharge//UNK",)),
        ("Blood Pressure Standing (1 min)", "", ("OMR//Blood Pressure", "OMR//2//Standing (1 min)")),
        ("BMI (kg/m2)", "", ("OMR//BMI (kg/m2)",)),
        ("GENDER//M", "sex", ("SEX//M",)),
    ],
)
def test_codes_of_mimic(code: str, role: str, parts: tuple[str, ...]) -> None:
    assert spelled("mimic", code)[1:] == (role, parts)


def test_every_code_of_the_mimic_demo_is_taken_by_a_rule(mimic_demo) -> None:
    counts = pl.read_parquet(mimic_demo / "data" / "*" / "*.parquet", columns=["code"])["code"].value_counts()
    concepts = named("mimic").map_codes(counts["code"].to_list())
    assert [concept.rule for concept in concepts].count(NO_RULE) == 0
    events: collections.Counter[str] = collections.Counter()
    for concept, count in zip(concepts, counts["count"], strict=True):
        events[concept.kind] += count
    assert events["OTHER"] / counts["count"].sum() < 0.001
    spellings = {(concept.name, concept.parts) for concept in concepts}
    assert len(spellings) == len({name for name, _ in spellings}), "one name with two spellings"


@pytest.mark.parametrize(
    ("code", "kind", "parts"),
    [
        ("Gender/F", "DEMOGRAPHIC", ("SEX//F",)),
        ("GENDER//Male", "DEMOGRAPHIC", ("SEX//M",)),
        ("SEX//female", "DEMOGRAPHIC", ("SEX//F",)),
        ("Race/5", "DEMOGRAPHIC", ("RACE//5",)),
        ("ICD9CM/427.31", "DIAGNOSIS", ("ICD9CM//427", "ICD9CM//2//3", "ICD9CM//3//1")),
        ("DIAGNOSIS//ICD10CM//E11.65", "DIAGNOSIS", ("ICD10CM//E11", "ICD10CM//2//6", "ICD10CM//3//5")),
        ("PROCEDURE//ICD//10//0DJ08ZZ", "PROCEDURE", ("ICD10PCS//0DJ", "ICD10PCS//2//0", "ICD10PCS//3//8ZZ")),
        ("LOINC/2345-7", "LAB", ("LOINC//2345-7",)),
        ("RxNorm/1740909", "MEDICATION", ("RXNORM//1740909",)),
        ("CPT4/99213", "PROCEDURE", ("CPT//99213",)),
        ("CONDITION//SNOMED/44054006", "DIAGNOSIS", ("SNOMED//44054006",)),
        ("PROCEDURE//SNOMED/44054006", "PROCEDURE", ("SNOMED_PROCEDURE//44054006",)),
        ("NDC//00093-1045", "MEDICATION", ("NDC//00093-1045",)),
        ("CVX//140", "MEDICATION", ("CVX//140",)),
        ("Visit/IP", "ENCOUNTER", ("ENCOUNTER_START//INPATIENT",)),
        ("VISIT_END//IP//HOME", "ENCOUNTER", ("ENCOUNTER_END//INPATIENT", "ENCOUNTER_END//2//HOME")),
        ("ENCOUNTER_START//wellness", "ENCOUNTER", ("ENCOUNTER_START//wellness",)),
        ("ENCOUNTER:START:ambulatory", "ENCOUNTER", ("ENCOUNTER_START//OUTPATIENT",)),
        ("ADMISSION", "ENCOUNTER", ("ENCOUNTER_START//INPATIENT",)),
        ("HOSPITAL_DISCHARGE//HOME", "ENCOUNTER", ("ENCOUNTER_END//INPATIENT", "ENCOUNTER_END//2//HOME")),
        ("ICU_ADMISSION//MICU", "ENCOUNTER", ("ENCOUNTER_START//ICU", "ENCOUNTER_START//2//MICU")),
        ("ED_OUT", "ENCOUNTER", ("ENCOUNTER_END//EMERGENCY",)),
        ("VISIT_START", "ENCOUNTER", ("ENCOUNTER_START//UNSPECIFIED",)),
        ("ICD10CM:E11.9", "DIAGNOSIS", ("ICD10CM//E11", "ICD10CM//2//9")),
        ("ICD10CM_E11.9", "DIAGNOSIS", ("ICD10CM//E11", "ICD10CM//2//9")),
        ("icd10//i10", "OTHER", ("OTHER//icd10//i10",)),
        ("ICD-10-CM|I10", "DIAGNOSIS", ("ICD10CM//I10",)),
        ("http://hl7.org/fhir/sid/icd-10-cm|I10", "DIAGNOSIS", ("ICD10CM//I10",)),
        ("http://loinc.org|2345-7", "LAB", ("LOINC//2345-7",)),
        ("http://snomed.info/sct|44054006", "DIAGNOSIS", ("SNOMED//44054006",)),
        ("LOINC_2345-7", "LAB", ("LOINC//2345-7",)),
        ("LAB_GLUCOSE", "LAB", ("LOCAL_LAB//GLUCOSE",)),
        ("vital_signs:heart_rate", "LAB", ("LOCAL_LAB//heart_rate",)),
        ("MEDICATION//START//Heparin", "MEDICATION", ("LOCAL_MEDICATION//Heparin", "LOCAL_MEDICATION//2//START")),
        ("MEDICATION_STOP//Heparin", "MEDICATION", ("LOCAL_MEDICATION//Heparin", "LOCAL_MEDICATION//2//STOP")),
        ("DX/diabetes", "DIAGNOSIS", ("LOCAL_DIAGNOSIS//diabetes",)),
        ("E11.65", "DIAGNOSIS", ("ICD10CM//E11", "ICD10CM//2//6", "ICD10CM//3//5")),
        ("A10BA02", "MEDICATION", ("ATC//A10", "ATC//2//BA", "ATC//3//02")),
        ("2345-7", "LAB", ("LOINC//2345-7",)),
        ("427.31", "DIAGNOSIS", ("ICD9CM//427", "ICD9CM//2//3", "ICD9CM//3//1")),
        ("ETHNICITY//HISPANIC", "OTHER", ("ETHNICITY//HISPANIC",)),
        ("Death", "DEATH", ("DEATH",)),
        ("LAB//Glucose//mg/dL", "LAB", ("LOCAL_LAB//Glucose//mg/dL",)),
        ("DEATH_DATE", "DEATH", ("DEATH",)),
        ("MEDS_DEATH", "DEATH", ("DEATH",)),
        # What is only named after a sex, a language or a death is what its table says.
        ("SEX_F", "DEMOGRAPHIC", ("SEX//F",)),
        ("PATIENT//SEX//intersex", "DEMOGRAPHIC", ("SEX//intersex",)),
        ("DIAGNOSIS//GENDER_DYSPHORIA", "DIAGNOSIS", ("LOCAL_DIAGNOSIS//GENDER_DYSPHORIA",)),
        ("LAB//SEX_HORMONE_BINDING_GLOBULIN", "LAB", ("LOCAL_LAB//SEX_HORMONE_BINDING_GLOBULIN",)),
        ("SEX_HORMONE_BINDING_GLOBULIN", "OTHER", ("OTHER//SEX_HORMONE_BINDING_GLOBULIN",)),
        ("PROCEDURE//SEX_REASSIGNMENT", "PROCEDURE", ("LOCAL_PROCEDURE//SEX_REASSIGNMENT",)),
        ("LAB//RACE/scale", "LAB", ("LOCAL_LAB//RACE/scale",)),
        ("DIAGNOSIS//LANGUAGE_DISORDER", "DIAGNOSIS", ("LOCAL_DIAGNOSIS//LANGUAGE_DISORDER",)),
        ("DONOR_SEX//F", "OTHER", ("OTHER//DONOR_SEX//F",)),
        ("DECEASED_DONOR_KIDNEY_TRANSPLANT", "OTHER", ("OTHER//DECEASED_DONOR_KIDNEY_TRANSPLANT",)),
        ("DEATH_ANXIETY", "OTHER", ("OTHER//DEATH_ANXIETY",)),
    ],
)
def test_the_generic_map_knows_common_vocabularies(code: str, kind: str, parts: tuple[str, ...]) -> None:
    concept = named("generic").map(code)
    assert (concept.kind, concept.parts) == (kind, parts)


# A row of another table whose name begins with a stay's word, and where it belongs.
ROWS_OF_A_STAY = [
    ("ENCOUNTER_DIAGNOSIS//ICD10CM//E11.9", "DIAGNOSIS//ICD10CM//E119"),
    ("ADMISSION_DIAGNOSIS//ICD10CM//I50.9", "DIAGNOSIS//ICD10CM//I509"),
    ("DISCHARGE_DIAGNOSIS//SNOMED//44054006", "DIAGNOSIS//SNOMED//44054006"),
    ("DISCHARGE_MEDICATION//RXNORM//123", "MEDICATION//RXNORM//123"),
    ("ADMISSION_WEIGHT", "OTHER//OTHER//ADMISSION_WEIGHT"),
    ("VISIT_REASON//CHEST_PAIN", "OTHER//OTHER//VISIT_REASON//CHEST_PAIN"),
    ("VISIT//NOTE", "OTHER//OTHER//VISIT//NOTE"),
]


@pytest.mark.parametrize(
    ("map_name", "code", "name"),
    [
        *(("generic", *row) for row in ROWS_OF_A_STAY),
        *(("synthea", *row) for row in ROWS_OF_A_STAY),
        ("generic", "VISIT//CPT//99213", "PROCEDURE//CPT//99213"),
        ("generic", "DISCHARGE//ICD10CM//I50.9", "DIAGNOSIS//ICD10CM//I509"),
    ],
)
def test_what_happens_in_a_stay_does_not_start_or_end_one(map_name: str, code: str, name: str) -> None:
    concept = named(map_name).map(code)
    assert (concept.name, concept.role) == (name, "")


@pytest.mark.parametrize(
    "code",
    [
        "HOSPITAL_ADMISSION//PROCEDURE SITE",
        "ENCOUNTER//SNOMED//185345009",
        "HOSPITAL_ADMISSION//SNOMED//32485007",
        "ENCOUNTER_START//CPT//99213",
    ],
)
def test_a_stay_may_be_coded_or_begin_where_a_procedure_is_made(code: str) -> None:
    assert named("generic").map(code).role == "start"


@pytest.mark.parametrize(
    ("code", "kind", "role", "parts"),
    [
        # meds_etl: VOCABULARY/CODE of the source concept.
        ("MEDS_BIRTH", "DEMOGRAPHIC", "birth", ("BIRTH//MEDS_BIRTH",)),
        ("SNOMED/419620001", "DEATH", "death", ("DEATH",)),
        ("Gender/F", "DEMOGRAPHIC", "sex", ("SEX//F",)),
        ("Race/5", "DEMOGRAPHIC", "race", ("RACE//5",)),
        ("STANFORD_RACE/Black or African American", "DEMOGRAPHIC", "race", ("RACE//Black or African American",)),
        ("Ethnicity/Not Hispanic", "OTHER", "drop", ("ETHNICITY//Not Hispanic",)),
        ("SNOMED/44054006", "DIAGNOSIS", "", ("SNOMED//44054006",)),
        ("LOINC/2345-7", "LAB", "", ("LOINC//2345-7",)),
        ("RxNorm/314076", "MEDICATION", "", ("RXNORM//314076",)),
        ("RxNorm Extension/OMOP4873903", "MEDICATION", "", ("RXNORM//OMOP4873903",)),
        ("ICD10CM/E11.9", "DIAGNOSIS", "", ("ICD10CM//E11", "ICD10CM//2//9")),
        ("ICD9CM/250.00", "DIAGNOSIS", "", ("ICD9CM//250", "ICD9CM//2//0", "ICD9CM//3//0")),
        ("ICD10PCS/0DJ08ZZ", "PROCEDURE", "", ("ICD10PCS//0DJ", "ICD10PCS//2//0", "ICD10PCS//3//8ZZ")),
        ("ICD9Proc/96.71", "PROCEDURE", "", ("ICD9PROC//96", "ICD9PROC//2//71")),
        ("CPT4/99213", "PROCEDURE", "", ("CPT//99213",)),
        ("HCPCS/J1100", "PROCEDURE", "", ("HCPCS//J1100",)),
        ("CVX/140", "MEDICATION", "", ("CVX//140",)),
        ("NDC/00093104501", "MEDICATION", "", ("NDC//00093104501",)),
        ("ATC/A10BA02", "MEDICATION", "", ("ATC//A10", "ATC//2//BA", "ATC//3//02")),
        ("Visit/IP", "ENCOUNTER", "start", ("ENCOUNTER_START//INPATIENT",)),
        ("Visit/ERIP", "ENCOUNTER", "start", ("ENCOUNTER_START//INPATIENT", "ENCOUNTER_START//2//ERIP")),
        ("Visit/OP", "ENCOUNTER", "start", ("ENCOUNTER_START//OUTPATIENT",)),
        ("CMS Place of Service/19", "DEPARTMENT", "", ("DEPARTMENT//19",)),
        ("Medicare Specialty/06", "DEPARTMENT", "", ("DEPARTMENT//06",)),
        ("Cancer Modifier/c-8th_AJCC/UICC-T2", "LAB", "", ("CANCER_MODIFIER//c-8th_AJCC/UICC-T2",)),
        ("STANFORD_MEAS/AMOXICILLIN/CLAVULANATE", "LAB", "", ("LOCAL_LAB//AMOXICILLIN/CLAVULANATE",)),
        ("STANFORD_PROC/123", "PROCEDURE", "", ("LOCAL_PROCEDURE//123",)),
        ("DRG/470", "OTHER", "", ("DRG//470",)),
        # OMOP_MEDS: TABLE//VOCABULARY//CONCEPT_ID.
        ("GENDER//8507", "DEMOGRAPHIC", "sex", ("SEX//M",)),
        ("RACE//8527", "DEMOGRAPHIC", "race", ("RACE//8527",)),
        ("visit//Visit//9201", "ENCOUNTER", "start", ("ENCOUNTER_START//INPATIENT",)),
        ("visit_end//Visit//ER", "ENCOUNTER", "end", ("ENCOUNTER_END//EMERGENCY",)),
        ("condition_occurrence//SNOMED//201826", "DIAGNOSIS", "", ("OMOP_CONDITION//201826",)),
        ("condition_end//SNOMED//201826", "OTHER", "", ("OMOP_CONDITION_END//201826",)),
        ("drug_exposure_start//RxNorm//19019073", "MEDICATION", "", ("OMOP_DRUG//19019073", "OMOP_DRUG//2//start")),
        ("procedure_occurrence//CPT4//2313814", "PROCEDURE", "", ("OMOP_PROCEDURE//2313814",)),
        ("drug_era_start//RxNorm//19019073", "OTHER", "drop", ("OMOP_ERA//drug_era_start//RxNorm//19019073",)),
        ("LOINC//8867-4", "LAB", "", ("LOINC//8867-4",)),
        ("measurement//3004249", "LAB", "", ("OMOP_MEASUREMENT//3004249",)),
        # Concept ids alone.
        ("201826", "OTHER", "", ("OMOP_CONCEPT//201826",)),
        ("OMOP Extension/OMOP5046443", "OTHER", "", ("OMOP_CONCEPT//OMOP5046443",)),
    ],
)
def test_codes_of_omop(code: str, kind: str, role: str, parts: tuple[str, ...]) -> None:
    concept = named("omop").map(code)
    assert (concept.kind, concept.role, concept.parts) == (kind, role, parts)


def test_a_timeline_of_meds_etl_begins_at_the_first_visit() -> None:
    birth, visit = datetime.datetime(1950, 3, 1), datetime.datetime(2020, 2, 1)
    rows = [(1, birth, code) for code in ("MEDS_BIRTH", "Gender/F", "Race/5", "Ethnicity/Not Hispanic")]
    rows += [(1, visit, "Visit/IP"), (1, visit + datetime.timedelta(days=200), "Visit/OP")]
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}
    events = pl.DataFrame(rows, schema, orient="row").with_columns(numeric_value=pl.lit(None, pl.Float32))
    columns = to_columns(events, named("omop"))
    own = build_vocabulary(statistics.count(columns), named("omop"), {}, VocabularyPolicy())
    tokenized = tokenize(events, own)
    texts = [own.tokens[token].text for token in tokenized.tokens_T]
    assert texts[:4] == ["SEX//F", "RACE//5", "AGE//65-69", "PERIOD//2020-2024"]
    assert texts[4:] == ["ENCOUNTER_START//INPATIENT", "INTERVAL//6mt+", "ENCOUNTER_START//OUTPATIENT", "TIMELINE_END"]
    assert tokenized.row_counts["dropped_by_rule"] == 1


@pytest.mark.parametrize(
    ("code", "kind", "role", "parts"),
    [
        # From the CSV tables.
        ("GENDER//M", "DEMOGRAPHIC", "sex", ("SEX//M",)),
        ("RACE//white", "DEMOGRAPHIC", "race", ("RACE//white",)),
        ("CONDITION//GENDER_DYSPHORIA", "OTHER", "", ("OTHER//CONDITION//GENDER_DYSPHORIA",)),
        ("CONDITION//SNOMED//44054006", "DIAGNOSIS", "", ("SNOMED//44054006",)),
        ("CONDITIONS//44054006", "DIAGNOSIS", "", ("SNOMED//44054006",)),
        ("CONDITION//START//44054006", "DIAGNOSIS", "", ("SNOMED//44054006",)),
        ("CONDITION//44054006//STOP", "OTHER", "", ("CONDITION_END//44054006",)),
        ("CONDITION//STOP//44054006", "OTHER", "", ("CONDITION_END//44054006",)),
        ("SNOMED-CT//44054006", "DIAGNOSIS", "", ("SNOMED//44054006",)),
        ("MEDICATION//RxNorm//314076", "MEDICATION", "", ("RXNORM//314076",)),
        ("medications//314076", "MEDICATION", "", ("RXNORM//314076",)),
        ("MEDICATION_STOP//314076", "OTHER", "", ("MEDICATION_END//314076",)),
        ("OBSERVATION//LOINC//8302-2", "LAB", "", ("LOINC//8302-2",)),
        ("OBSERVATIONS//8302-2//cm", "LAB", "", ("LOINC//8302-2",)),
        ("LOINC/8302-2", "LAB", "", ("LOINC//8302-2",)),
        ("OBSERVATION//QALY", "OTHER", "drop", ("SYNTHEA_SCORE//OBSERVATION//QALY",)),
        ("PROCEDURE//SNOMED//430193006", "PROCEDURE", "", ("SNOMED_PROCEDURE//430193006",)),
        ("PROCEDURES//430193006", "PROCEDURE", "", ("SNOMED_PROCEDURE//430193006",)),
        ("IMMUNIZATION//CVX//140", "MEDICATION", "", ("CVX//140",)),
        ("immunizations//140", "MEDICATION", "", ("CVX//140",)),
        ("ALLERGY//419199007", "DIAGNOSIS", "", ("ALLERGY//419199007",)),
        ("CAREPLAN//SNOMED//698360004", "PROCEDURE", "", ("CAREPLAN//698360004",)),
        (
            "ENCOUNTER//ambulatory//185345009",
            "ENCOUNTER",
            "start",
            ("ENCOUNTER_START//OUTPATIENT", "ENCOUNTER_START//2//185345009"),
        ),
        ("ENCOUNTER_START//wellness", "ENCOUNTER", "start", ("ENCOUNTER_START//wellness",)),
        ("ENCOUNTER//START//inpatient", "ENCOUNTER", "start", ("ENCOUNTER_START//INPATIENT",)),
        ("ENCOUNTER_END//emergency", "ENCOUNTER", "end", ("ENCOUNTER_END//EMERGENCY",)),
        # From FHIR.
        ("Condition//SNOMED//44054006", "DIAGNOSIS", "", ("SNOMED//44054006",)),
        ("Condition//http://snomed.info/sct//44054006", "DIAGNOSIS", "", ("SNOMED//44054006",)),
        ("MedicationRequest//RXNORM//314076", "MEDICATION", "", ("RXNORM//314076",)),
        ("Observation//LOINC//8302-2", "LAB", "", ("LOINC//8302-2",)),
        ("DiagnosticReport//LOINC//51990-0", "LAB", "", ("LOINC//51990-0",)),
        ("Encounter//SNOMED//185345009", "ENCOUNTER", "start", ("ENCOUNTER_START//185345009",)),
        ("Immunization//CVX//140", "MEDICATION", "", ("CVX//140",)),
        ("Claim//whatever", "OTHER", "drop", ("CLAIM//Claim//whatever",)),
    ],
)
def test_codes_of_synthea(code: str, kind: str, role: str, parts: tuple[str, ...]) -> None:
    concept = named("synthea").map(code)
    assert (concept.kind, concept.role, concept.parts) == (kind, role, parts)


@pytest.mark.parametrize("map_name", sorted(CODE_MAPS))
@hypothesis.given(st.text("AEICDMLOB/:_|-. 019x", max_size=24))
def test_any_code_at_all_has_one_concept_soon(map_name: str, code: str) -> None:
    code_map = named(map_name)
    concept = code_map.map(code)
    assert concept == code_map.concept_by_rule(code, concept.rule)
    assert 1 <= len(concept.parts) <= 3 and all(concept.parts)


@pytest.mark.parametrize("map_name", sorted(CODE_MAPS))
def test_a_code_that_no_rule_takes_is_kept_whole(map_name: str) -> None:
    concept = named(map_name).map("something  NEW ")
    assert dataclasses.astuple(concept) == (
        "OTHER//OTHER//something NEW",
        "OTHER",
        "",
        ("OTHER//something NEW",),
        NO_RULE,
    )


@pytest.mark.parametrize("map_name", sorted(CODE_MAPS))
def test_a_map_survives_json_and_maps_many_codes_as_one(map_name: str) -> None:
    code_map = named(map_name)
    assert CodeMap.from_dict(json.loads(json.dumps(code_map.to_dict()))) == code_map
    codes = ["ICD10CM//E11.65", "MEDS_DEATH", "ICD10CM//E11.65"]
    assert code_map.map_codes(codes) == [code_map.map(code) for code in codes]


def test_the_first_rule_that_matches_takes_a_code() -> None:
    rules = (Rule("A.*", "LAB", "FIRST"), Rule("A1", "LAB", "SECOND"), Rule("B(?P<p1>.*)", "LAB", "THIRD"))
    code_map = CodeMap("mine", rules)
    assert [code_map.map(code).rule for code in ("A1", "A", "xA1", "B1")] == [0, 0, NO_RULE, 2]
    # A part must not be empty, and neither may parts follow an empty one.
    assert code_map.map("B").rule == NO_RULE


def test_white_space_in_codes_is_made_single() -> None:
    code_map = CodeMap("mine", (Rule("A//(?P<p1>.+)", "LAB", "MINE"),))
    assert code_map.map("A// two\n words ").parts == ("MINE//two words",)


def test_dropped_codes_need_no_kind_or_system_of_their_own() -> None:
    rules = (Rule("A", "LAB", "MINE"), Rule("B", "OTHER", "MINE", "drop"))
    assert CodeMap("mine", rules).map("B").role == "drop"
    assert Rule("SEX//.*", "DEMOGRAPHIC", "SEX", "drop").parts("SEX//unsaid")


def test_a_map_of_ones_own_is_a_json_file(tmp_path) -> None:
    path = tmp_path / "mine.json"
    rule = {"pattern": "ADMIT\\|(?P<p2>.+)", "first": "INPATIENT", "kind": "ENCOUNTER", "role": "start"}
    path.write_text(json.dumps({"name": "mine", "rules": [rule | {"system": "ENCOUNTER_START"}]}))
    concept = named(str(path)).map("ADMIT|ELECTIVE")
    assert concept.parts == ("ENCOUNTER_START//INPATIENT", "ENCOUNTER_START//2//ELECTIVE")


def test_the_map_in_the_documentation_is_a_map(tmp_path) -> None:
    text = code_maps.__doc__
    path = tmp_path / "documented.json"
    path.write_text(text[text.index('{"name"') :])
    code_map = named(str(path))
    assert code_map.map("DX|E11.65").name == "DIAGNOSIS//ICD10CM//E1165"
    assert code_map.map("NOTE|x").role == "drop"


def write_map(folder: pathlib.Path, **content: object) -> str:
    path = folder / "mine.json"
    path.write_text(json.dumps({"name": "mine", **content}))
    return str(path)


def test_the_example_in_the_manual_is_a_map(tmp_path) -> None:
    manual = (pathlib.Path(__file__).parents[2] / "docs" / "code_maps.md").read_text()
    examples = re.findall(r"```(json|csv)\n(.*?)```", manual, re.DOTALL)
    ((_, own), (_, pairs), (_, mimic)) = examples
    assert own.count("\n") <= 10
    for name, text in (("own.json", own), ("mimic.json", mimic), ("icd9_to_icd10cm.csv", pairs)):
        (tmp_path / name).write_text(text)
    (tmp_path / "gem.csv").write_text("from,to\n4019,I10\n")
    code_map = named(str(tmp_path / "own.json"))
    assert code_map.map("DX|E11.65").parts == ("ICD10CM//E11", "ICD10CM//2//6", "ICD10CM//3//5")
    assert code_map.map("RESULT|2345-7").name == "LAB//LOINC//2345-7"
    assert code_map.map("ADT|A01|ELECTIVE").parts == ("ENCOUNTER_START//INPATIENT", "ENCOUNTER_START//2//ELECTIVE")
    assert code_map.map("ADT|A03").role == "end"
    assert code_map.map("NOTE|x").role == "drop"
    # Translated, then taken by a rule of the map that it extends.
    assert code_map.map("ICD9CM/250.00").name == "DIAGNOSIS//ICD10CM//E119"
    assert code_map.map("ICD9CM/427.31").name == "DIAGNOSIS//ICD9CM//42731"
    assert named(str(tmp_path / "mimic.json")).map("DIAGNOSIS//ICD//9//4019").name == "DIAGNOSIS//ICD10CM//I10"


def test_a_map_carries_its_translations_where_its_files_are_not(tmp_path) -> None:
    (tmp_path / "pairs.csv").write_text("to,note,from\nLOINC//2345-7,x,LAB//GLU\n")
    code_map = named(write_map(tmp_path, extends="generic", mappings=["pairs.csv"]))
    (tmp_path / "pairs.csv").unlink()
    again = CodeMap.from_dict(json.loads(json.dumps(code_map.to_dict())))
    assert again == code_map
    assert again.map("LAB//GLU").name == "LAB//LOINC//2345-7"
    # Once: what a translation gives is not translated again.
    assert CodeMap("mine", (), (("A", "B"), ("B", "C"))).map("A").parts == ("OTHER//B",)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"from,to\n", "no rows"),
        (b"", "its header"),
        (b"old,new\nA,B\n", "its header"),
        (b"from,to,to\nA,B,C\n", "its header"),
        (b"from,to\nA,B\nA,C\n", "row 2: a 'from' that stands in an earlier row"),
        (b"from,to\nA,B\nC\n", "row 2: too few cells"),
        (b"from,to\nA, \n", "row 1: an empty cell"),
        (b'from,to\n"A,B\n', "not a CSV file"),
        (b"from,to\n\xff,B\n", "not a CSV file"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_file_of_translations_is_refused_by_name(tmp_path, content: bytes | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(UserError) as caught:
        named(write_map(tmp_path, rules=[GOOD], mappings=["pairs.csv"]))
    assert "pairs.csv" in str(caught.value) and complaint in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"mappings": "pairs.csv"}, "'mappings' must be a list"),
        ({"mappings": [{"path": "pairs.csv"}]}, "mappings[0]: a path, or an object"),
        ({"mappings": [{"file": 1}]}, "must be text"),
        ({"mappings": ["pairs.csv", "pairs.csv"]}, "mappings[1]: a code that another mapping translates too"),
        ({"extends": 1}, "'extends' must be"),
        ({"extends": "mimc"}, "no code map 'mimc'"),
        ({"extends": "mine.json"}, "extends itself"),
        ({"translations": {"A": 1}}, "'translations' must be"),
        ({"extends": "mimic", "rules": [{"pattern": "A", "kind": "LAB", "system": "ICD10CM"}]}, "'ICD10CM' has kind"),
    ],
)
def test_a_map_that_extends_or_translates_wrongly_is_refused(tmp_path, content, complaint: str) -> None:
    (tmp_path / "pairs.csv").write_text("from,to\nA,B\n")
    with pytest.raises(UserError) as caught:
        named(write_map(tmp_path, **{"rules": [GOOD], **content}))
    assert complaint in str(caught.value) and "mine.json" in str(caught.value)


GOOD = {"pattern": "A", "kind": "LAB", "system": "MINE"}


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        (GOOD | {"pattern": "("}, "not a regular expression"),
        (GOOD | {"kind": "LABS"}, "unknown kind 'LABS'"),
        (GOOD | {"kind": "INTERVAL"}, "unknown kind 'INTERVAL'"),
        (GOOD | {"role": "begin"}, "unknown role 'begin'"),
        (GOOD | {"role": "death"}, "goes with kind DEATH"),
        (GOOD | {"kind": "DEATH"}, "goes with role 'death'"),
        (GOOD | {"kind": "DEMOGRAPHIC"}, "kind DEMOGRAPHIC goes with role birth, sex, race or drop; use kind OTHER"),
        *((GOOD | {"system": own}, f"system '{own}' is the program's own") for own in ("SEX", "AGE", "UNKNOWN")),
        (GOOD | {"pattern": "(?P<p1>A)(?P<p3>B)"}, "p3 needs p2"),
        (GOOD | {"role": "sex"}, "goes with kind DEMOGRAPHIC and system SEX"),
        (GOOD | {"system": "A//B"}, "one word"),
        (GOOD | {"system": ""}, "one word"),
        (GOOD | {"pattern": "(?P<code>.*)"}, "p1, p2 or p3"),
        (GOOD | {"pattern": "(?P<p2>.*)"}, "need p1"),
        (GOOD | {"pattern": "(?P<p1>A)", "first": "B"}, "not both"),
        (GOOD | {"pattern": 1}, "pattern must be text"),
        (GOOD | {"patern": "A"}, "nothing else"),
        (GOOD | {"case": "upper"}, "unknown case 'upper'"),
        ({"pattern": "A"}, "a rule holds"),
        ("A", "a rule holds"),
        (GOOD | {"kind": "MEDICATION"}, "system 'MINE' has kind MEDICATION here and LAB elsewhere"),
    ],
)
def test_a_wrong_rule_is_refused_by_number(tmp_path, rule, complaint: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", "rules": [GOOD, rule]}))
    with pytest.raises(UserError) as caught:
        named(str(path))
    assert "rules[1]" in str(caught.value) and complaint in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "x"}', '{"name": "x", "rules": {}}', "\x00"])
def test_a_file_that_holds_no_map_is_refused_by_name(tmp_path, text: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"mine\.json"):
        named(str(path))


def test_an_unknown_map_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="no code map 'mimc'; give world, mimic, omop, synthea, generic or the path"):
        named("mimc")
