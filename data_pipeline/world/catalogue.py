"""Every code that the world writes, in the order in which the events of one instant stand."""

import dataclasses

from data_pipeline.world import conditions, encounters, laboratory, treatments

# Kinds in the order of vocabulary.KINDS.
STATIC, ENCOUNTER, DEPARTMENT, CHIEF_COMPLAINT, DIAGNOSIS, LAB, MEDICATION, PROCEDURE, DEATH = range(9)

DEATH_CODE, BIRTH_CODE, OBSERVATION_END_CODE = "MEDS_DEATH", "MEDS_BIRTH", "OBSERVATION_END"
RACES = ("AMERICAN_INDIAN", "ASIAN", "BLACK", "HISPANIC", "OTHER", "WHITE")
RACE_SHARES = (0.01, 0.06, 0.13, 0.16, 0.04, 0.60)
SEXES = ("F", "M")

# All conditions in one axis, sorted by code, as they are drawn.
CONDITIONS: tuple[conditions.Chronic | conditions.Acute, ...] = tuple(
    sorted((*conditions.CHRONIC, *conditions.ACUTE), key=lambda condition: condition.code)
)
LABS = tuple(sorted(laboratory.LABS, key=lambda lab: lab.code))
DRUGS = tuple(sorted(treatments.DRUGS, key=lambda drug: drug.code))
COMPLAINTS = tuple(sorted(encounters.COMPLAINTS, key=lambda complaint: complaint.name))
DEPARTMENTS = tuple(sorted(encounters.DEPARTMENTS))


@dataclasses.dataclass(frozen=True)
class Code:
    """A MEDS code: `order` is its kind's place within an instant."""

    code: str
    order: int
    description: str


def _evaluation_codes() -> tuple[str, ...]:
    return (
        treatments.FIRST_VISIT_CODE,
        *treatments.OFFICE_CODES,
        treatments.TELEHEALTH_CODE,
        *treatments.EMERGENCY_CODES,
        treatments.ADMISSION_CODE,
        treatments.WARD_DAY_CODE,
        treatments.INTENSIVE_DAY_CODE,
    )


# Procedure numbers, sorted: those that conditions bring, and those of evaluation and management.
PROCEDURES = tuple(sorted({*(procedure.code for procedure in treatments.PROCEDURES), *_evaluation_codes()}))


def _readable(name: str) -> str:
    return name.replace("_", " ").lower()


def _encounter_codes() -> list[Code]:
    def codes(system: str, word: str, details: tuple[str, ...]) -> list[Code]:
        return [
            Code(f"{system}//{detail}", ENCOUNTER, f"{word} of encounter: {_readable(detail.replace('//', ', '))}")
            for detail in details
        ]

    return codes("ENCOUNTER_START", "Start", encounters.STARTS) + codes("ENCOUNTER_END", "End", encounters.ENDS)


def _all_codes() -> tuple[Code, ...]:
    codes = [Code(f"SEX//{sex}", STATIC, f"Sex: {'female' if sex == 'F' else 'male'}") for sex in SEXES]
    codes += [Code(f"RACE//{race}", STATIC, f"Race or ethnicity: {_readable(race)}") for race in RACES]
    codes += [Code(BIRTH_CODE, STATIC, "Birth"), Code(DEATH_CODE, DEATH, "Death")]
    codes += [Code(OBSERVATION_END_CODE, STATIC, "End of observation")]
    codes += _encounter_codes()
    codes += [Code(f"DEPARTMENT//{name}", DEPARTMENT, f"Department: {_readable(name)}") for name in DEPARTMENTS]
    codes += [
        Code(f"CHIEF_COMPLAINT//{complaint.name}", CHIEF_COMPLAINT, f"Chief complaint: {_readable(complaint.name)}")
        for complaint in COMPLAINTS
    ]
    codes += [Code(f"ICD10CM//{condition.code}", DIAGNOSIS, condition.description) for condition in CONDITIONS]
    codes += [Code(f"LOINC//{lab.code}", LAB, f"{lab.description} [{lab.unit}]") for lab in LABS]
    codes += [Code(f"ATC//{drug.code}", MEDICATION, drug.description) for drug in DRUGS]
    # CPT descriptions are under copyright: numbers only.
    codes += [Code(f"CPT//{number}", PROCEDURE, f"CPT {number}") for number in PROCEDURES]
    return tuple(sorted(codes, key=lambda code: (code.order, code.code)))


CODES = _all_codes()
INDEX = {code.code: index for index, code in enumerate(CODES)}

# What each element of an instant (instants.ELEMENTS) chooses from, as MEDS codes in the order of their tokens.
ELEMENT_CODES: tuple[tuple[str, ...], ...] = (
    (*(f"ENCOUNTER_START//{start}" for start in encounters.STARTS), DEATH_CODE),
    tuple(f"DEPARTMENT//{name}" for name in DEPARTMENTS),
    tuple(f"CHIEF_COMPLAINT//{complaint.name}" for complaint in COMPLAINTS),
    tuple(f"ICD10CM//{condition.code}" for condition in CONDITIONS),
    tuple(f"LOINC//{lab.code}" for lab in LABS),
    tuple(f"ATC//{drug.code}" for drug in DRUGS),
    tuple(f"CPT//{number}" for number in PROCEDURES),
    tuple(f"ENCOUNTER_END//{end}" for end in encounters.ENDS),
    (DEATH_CODE,),
)
