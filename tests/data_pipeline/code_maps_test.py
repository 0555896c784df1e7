"""Code maps: which concept a code becomes, and how a wrong map of one's own is refused."""

import collections
import dataclasses
import json

import polars as pl
import pytest

from data_pipeline import code_maps, vocabulary
from data_pipeline.builtin_code_maps import CODE_MAPS
from data_pipeline.code_maps import NO_RULE, CodeMap, Rule, named
from data_pipeline.errors import UserError


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
        ("MEDICATION//START//Insulin", "", ("MIMIC_DRUG//Insulin", "MIMIC_DRUG//2//START")),
        ("MEDICATION//Insulin//Administered", "", ("MIMIC_DRUG//Insulin", "MIMIC_DRUG//2//Administered")),
        (
            "MEDICATION//Insulin//Administered in Other Location",
            "",
            ("MIMIC_DRUG//Insulin", "MIMIC_DRUG//2//Administered"),
        ),
        (
            "MEDICATION//Sodium Chloride 0.9%  Flush//Delayed Flushed",
            "",
            ("MIMIC_DRUG//Sodium Chloride 0.9% Flush", "MIMIC_DRUG//2//Flushed"),
        ),
        (
            "MEDICATION//Insulin//Not Given per Sliding Scale",
            "",
            ("MIMIC_DRUG//Insulin", "MIMIC_DRUG//2//Not Given"),
        ),
        ("MEDICATION//NORepinephrine// in Other Location", "", ("MIMIC_DRUG//NORepinephrine",)),
        ("MEDICATION//STOP//Docusate ", "", ("MIMIC_DRUG//Docusate", "MIMIC_DRUG//2//STOP")),
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
        ("Blood Pressure Standing (1 min)", "", ("OMR//Blood Pressure Standing (1 min)",)),
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
        ("Visit/IP", "ENCOUNTER", ("ENCOUNTER_START//IP",)),
        ("VISIT_END//IP//HOME", "ENCOUNTER", ("ENCOUNTER_END//IP", "ENCOUNTER_END//2//HOME")),
        ("LAB//Glucose//mg/dL", "LAB", ("LOCAL_LAB//Glucose//mg/dL",)),
        ("MEDS_DEATH", "DEATH", ("DEATH",)),
    ],
)
def test_the_generic_map_knows_common_vocabularies(code: str, kind: str, parts: tuple[str, ...]) -> None:
    concept = named("generic").map(code)
    assert (concept.kind, concept.parts) == (kind, parts)


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


def test_dropped_codes_need_no_kind_of_their_own() -> None:
    rules = (Rule("A", "LAB", "MINE"), Rule("B", "OTHER", "MINE", "drop"))
    assert CodeMap("mine", rules).map("B").role == "drop"


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
        (GOOD | {"pattern": "(?P<p1>A)(?P<p3>B)"}, "p3 needs p2"),
        (GOOD | {"role": "sex"}, "goes with kind DEMOGRAPHIC and system SEX"),
        (GOOD | {"system": "A//B"}, "one word"),
        (GOOD | {"system": ""}, "one word"),
        (GOOD | {"pattern": "(?P<code>.*)"}, "p1, p2 or p3"),
        (GOOD | {"pattern": "(?P<p2>.*)"}, "need p1"),
        (GOOD | {"pattern": "(?P<p1>A)", "first": "B"}, "not both"),
        (GOOD | {"pattern": 1}, "pattern must be text"),
        (GOOD | {"patern": "A"}, "nothing else"),
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
    with pytest.raises(UserError, match="no code map 'mimc'; give world, mimic, generic or the path"):
        named("mimc")
