"""The rules' numbers as arrays, made once from the tables of conditions, treatments, laboratory and encounters."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.world import catalogue, conditions, encounters, laboratory, treatments

# To be raised with any change of the rules that the tables don't show (rates, steps, formulas).
RULES_VERSION = 3
CONDITION = {condition.code: index for index, condition in enumerate(catalogue.CONDITIONS)}
LAB = {lab.code: index for index, lab in enumerate(catalogue.LABS)}
DRUG = {drug.code: index for index, drug in enumerate(catalogue.DRUGS)}
DEPARTMENT = {name: index for index, name in enumerate(catalogue.DEPARTMENTS)}
COMPLAINT = {complaint.name: index for index, complaint in enumerate(catalogue.COMPLAINTS)}
PROCEDURE = {number: index for index, number in enumerate(catalogue.PROCEDURES)}
PHENOTYPE = {name: index for index, name in enumerate(conditions.PHENOTYPES)}
# Of the drug and its alternatives, for phenotypes that respond to it and for those that do not.
FAVOURED, UNFAVOURED = 2.5, 0.15


@dataclasses.dataclass(frozen=True)
class Tables:
    """C conditions, D departments, K complaints, L labs, R drugs, N procedures, H phenotypes, T encounter types."""

    # conditions
    chronic_C: np.ndarray
    staged_C: np.ndarray  # has `requires`
    requires_CxC: np.ndarray  # [required, condition] 0/1
    share_C: np.ndarray
    onset_C: np.ndarray
    slope_C: np.ndarray
    sex_C: np.ndarray  # 0 both, 1 female only, 2 male only
    phenotype_HxC: np.ndarray  # added to log hazard or logit
    cascade_CxC: np.ndarray  # [cause, effect]
    department_CxD: np.ndarray
    visits_CxD: np.ndarray  # rate of office visits per month
    emergencies_C: np.ndarray
    electives_C: np.ndarray
    death_C: np.ndarray  # chronic: log hazard; acute: logit in hospital
    severity_C: np.ndarray
    intensive_C: np.ndarray
    inpatient_C: np.ndarray
    # complaints
    complaint_base_TxK: np.ndarray
    complaint_drivers_CxK: np.ndarray
    complaint_phenotype_HxK: np.ndarray
    complaint_diagnoses_KxC: np.ndarray
    # drugs: log of the probability of not starting
    drug_CxR: np.ndarray
    drug_preference_HxR: np.ndarray
    indication_CxR: np.ndarray
    lasting_R: np.ndarray
    # labs: log of the probability of not ordering
    lab_CxL: np.ndarray
    lab_panel_BxL: np.ndarray
    shift_CxL: np.ndarray
    shift_RxL: np.ndarray
    shift_HxL: np.ndarray
    shift_female_L: np.ndarray
    drift_CxL: np.ndarray  # per year since the condition was first coded
    # procedures: log of the probability of not doing
    procedure_TxCxN: np.ndarray


def exact(values: Any) -> np.ndarray:
    """Rounded to 2^-12: sums of these are exact in float64, so no order of summation changes a bit of them."""
    return np.round(np.asarray(values, np.float64) * 4096) / 4096


def log_miss(probabilities: Any) -> np.ndarray:
    """log(1 - p), rounded as `exact`: they add over independent reasons for the same event."""
    return exact(np.log1p(-np.asarray(probabilities, np.float64)))


@functools.cache
def tables() -> Tables:
    """The one set of rules."""
    return Tables(**_conditions(), **_complaints(), **_drugs(), **_labs(), **_procedures())


@functools.cache
def fingerprint() -> str:
    """12 hex digits that tell one set of rules from another: data made by others must not be scored by these."""
    digest = hashlib.sha256(f"{RULES_VERSION} {[code.code for code in catalogue.CODES]}".encode())
    for field in dataclasses.fields(Tables):
        digest.update(np.ascontiguousarray(getattr(tables(), field.name)).tobytes())
    return digest.hexdigest()[:12]


def matrix(rows: Mapping[str, int], mappings: Sequence[Mapping[str, float]]) -> np.ndarray:
    """[len(rows), len(mappings)]: entry (rows[key], j) is mappings[j][key], 0 elsewhere."""
    out = np.zeros((len(rows), len(mappings)))
    for column, mapping in enumerate(mappings):
        for key, value in mapping.items():
            if key in rows:
                out[rows[key], column] = value
    return out


def _conditions() -> dict[str, np.ndarray]:
    items = catalogue.CONDITIONS
    is_chronic = [isinstance(item, conditions.Chronic) for item in items]

    def field(name: str, default: float = 0.0) -> np.ndarray:
        return exact([getattr(item, name, default) for item in items])

    requires_CxC = matrix(CONDITION, [{item.requires: 1.0} if item.requires else {} for item in items])
    department_CxD = matrix(DEPARTMENT, [{item.department: 1.0} for item in items]).T
    phenotype_HxC = np.full((len(PHENOTYPE), len(items)), conditions.OTHER_GROUP)
    for column, item in enumerate(items):
        phenotype_HxC[PHENOTYPE[item.group], column] = conditions.OWN_GROUP
    phenotype_HxC[PHENOTYPE["ROBUST"]] = conditions.ROBUST_ALL
    staged_C = requires_CxC.sum(axis=0) > 0
    # What phenotype does to a stage or an exacerbation it has mostly done to the condition behind it.
    phenotype_HxC[:, staged_C] *= 0.5
    return dict(
        chronic_C=np.array(is_chronic),
        staged_C=staged_C,
        requires_CxC=requires_CxC,
        share_C=np.array([getattr(item, "share", 0.0) for item in items]),
        onset_C=field("onset", 1.0),
        slope_C=field("slope"),
        sex_C=np.array([{"": 0, "F": 1, "M": 2}[getattr(item, "sex", "")] for item in items]),
        phenotype_HxC=exact(phenotype_HxC),
        cascade_CxC=exact(_cascades()),
        department_CxD=department_CxD,
        visits_CxD=exact(department_CxD * field("visits")[:, None]),
        emergencies_C=field("emergencies"),
        electives_C=exact(matrix(CONDITION, [encounters.ELECTIVE])[:, 0]),
        death_C=field("death"),
        severity_C=field("severity"),
        intensive_C=field("intensive"),
        inpatient_C=field("inpatient"),
    )


def _cascades() -> np.ndarray:
    cascade_CxC = np.zeros((len(CONDITION), len(CONDITION)))
    for cause, effect, weight in conditions.CASCADES:
        cascade_CxC[CONDITION[cause], CONDITION[effect]] = weight
    return cascade_CxC


def _complaints() -> dict[str, np.ndarray]:
    items = catalogue.COMPLAINTS
    base_TxK = np.array(
        [[item.emergency if kind == "EMERGENCY" else item.office for item in items] for kind in encounters.TYPES]
    )
    return dict(
        complaint_base_TxK=exact(base_TxK),
        complaint_drivers_CxK=exact(matrix(CONDITION, [item.drivers for item in items])),
        complaint_phenotype_HxK=exact(matrix(PHENOTYPE, [item.drivers for item in items])),
        complaint_diagnoses_KxC=exact(matrix(CONDITION, [item.diagnoses for item in items]).T),
    )


def _drugs() -> dict[str, np.ndarray]:
    items = catalogue.DRUGS
    start_CxR = matrix(CONDITION, [item.starts for item in items])
    preference_HxR = np.ones((len(PHENOTYPE), len(items)))
    for column, item in enumerate(items):
        if item.favoured_by:
            preference_HxR[:, column] = UNFAVOURED
            preference_HxR[[PHENOTYPE[name] for name in item.favoured_by], column] = FAVOURED
    return dict(
        drug_CxR=log_miss(start_CxR),
        drug_preference_HxR=preference_HxR,
        indication_CxR=(start_CxR > 0).astype(np.float64),
        lasting_R=np.array([item.lasting for item in items]),
    )


def _labs() -> dict[str, np.ndarray]:
    items = catalogue.LABS
    panels = {name: index for index, name in enumerate(laboratory.PANELS)}
    shifts = [item.shifts for item in items]
    return dict(
        lab_CxL=log_miss(matrix(CONDITION, [item.orders for item in items])),
        lab_panel_BxL=log_miss(matrix(panels, [item.orders for item in items])),
        shift_CxL=exact(matrix(CONDITION, shifts)),
        shift_RxL=exact(matrix(DRUG, shifts)),
        shift_HxL=exact(matrix(PHENOTYPE, shifts)),
        shift_female_L=exact(matrix({"F": 0}, shifts)[0]),
        drift_CxL=exact(matrix(CONDITION, [laboratory.DRIFTS.get(item.code, {}) for item in items])),
    )


def _procedures() -> dict[str, np.ndarray]:
    probability_TxCxN = np.zeros((len(encounters.TYPES), len(CONDITION), len(PROCEDURE)))
    for item in treatments.PROCEDURES:
        for kind in item.where:
            for trigger, probability in item.triggers.items():
                probability_TxCxN[encounters.TYPES.index(kind), CONDITION[trigger], PROCEDURE[item.code]] = probability
    return dict(procedure_TxCxN=log_miss(probability_TxCxN))


def check_references() -> None:
    """Every name in the rules' tables exists; raises ValueError naming those that do not."""
    known = {*CONDITION, *DRUG, *PHENOTYPE, *laboratory.PANELS, "F"}
    used = {name for lab in catalogue.LABS for name in (*lab.orders, *lab.shifts)}
    used |= {name for item in catalogue.COMPLAINTS for name in (*item.drivers, *item.diagnoses)}
    used |= {name for drug in catalogue.DRUGS for name in (*drug.starts, *drug.favoured_by)}
    used |= {name for procedure in treatments.PROCEDURES for name in procedure.triggers}
    used |= {name for drifts in laboratory.DRIFTS.values() for name in drifts}
    used |= {name for cause, effect, _ in conditions.CASCADES for name in (cause, effect)}
    used |= {item.requires or item.code for item in catalogue.CONDITIONS} | set(encounters.ELECTIVE)
    if used - known:
        raise ValueError(f"the world's rules name what does not exist: {sorted(used - known)}")
