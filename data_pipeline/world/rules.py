"""The probabilities of the world's next step, given its state: pure functions of (state, tables), no random numbers.

The simulation draws from these in the order of the tokens; scoring given tokens can walk the same functions. All arrays
have one row per subject (n of them): C conditions, D departments, K complaints, L labs, R drugs, N procedures.
"""

import numpy as np

from data_pipeline import intervals
from data_pipeline.world import catalogue, encounters, instants, laboratory, treatments
from data_pipeline.world.encounters import EMERGENCY, ICU, INPATIENT, OUTPATIENT, TELEHEALTH
from data_pipeline.world.state import MINUTES_PER_MONTH, StateRows
from data_pipeline.world.tables import COMPLAINT, DEPARTMENT, LAB, PHENOTYPE, PROCEDURE, Tables, exact

PRESET = intervals.COMET13
MOST_REPEATS = 30
# G: how long a gap may be: one column for each interval bin but the last, then 1, 2, ... repeats of that.
_LAST_BIN = len(PRESET.names) - 1
_HALF_YEAR = round(intervals.SIX_MONTHS / 60)
_REPEATS = np.arange(1, MOST_REPEATS + 1)
_LOWER = np.array([round(seconds / 60) for seconds in PRESET.lower_seconds])
# The minutes that gaps of each column may have: [LOW, HIGH).
LOW_MINUTES = np.concatenate((_LOWER[:-1], [_HALF_YEAR], _REPEATS[1:] * _HALF_YEAR - _HALF_YEAR // 2))
HIGH_MINUTES = np.concatenate((_LOWER[1:], _REPEATS * _HALF_YEAR + _HALF_YEAR // 2))
# What a gap counts by the clock.
CLOCK_MINUTES = (LOW_MINUTES + HIGH_MINUTES) // 2
GAPS = len(CLOCK_MINUTES)
FIRST_REPEAT = _LAST_BIN

# What a gap between encounters ends with, of catalogue.ELEMENT_CODES[START].
_ARRIVALS = (*encounters.STARTS, "DEATH")
ARRIVAL = {name: index for index, name in enumerate(_ARRIVALS)}
GAP_ENDS = [ARRIVAL[name] for name in ("OUTPATIENT", "TELEHEALTH", "EMERGENCY", "INPATIENT//ELECTIVE", "DEATH")]
END = {name: index for index, name in enumerate(encounters.ENDS)}
FIRST_GAP_BIN = PRESET.names.index(encounters.GAP_BINS[0])
# The gap bins within 30 days.
SOON_G = np.arange(len(encounters.GAP_BINS)) < len(encounters.GAP_BINS) - 2
_GAP_LENGTHS_G = np.diff([*PRESET.lower_seconds[FIRST_GAP_BIN:], 1.5 * intervals.SIX_MONTHS]) / 60 / MINUTES_PER_MONTH

# Interval bins of the steps within an encounter, and between two that follow directly: {bin: probability}. Those of a
# stay's day and of its end have no bin in common, so that the interval token tells which it was.
STEPS = {
    "office end": {"5m-15m": 0.1, "15m-1h": 0.8, "1h-2h": 0.1},
    "emergency tests": {"15m-1h": 0.8, "1h-2h": 0.2},
    "emergency treatment": {"1h-2h": 0.2, "2h-6h": 0.8},
    "emergency end": {"15m-1h": 0.2, "1h-2h": 0.8},
    "transfer": {"5m-15m": 0.1, "15m-1h": 0.8, "1h-2h": 0.1},
    "ward day": {"12h-1d": 0.9, "1d-3d": 0.1},
    "intensive day": {"6h-12h": 0.9, "12h-1d": 0.1},
    "stay end": {"1h-2h": 0.15, "2h-6h": 0.85},
}
_STEP_WEIGHTS = {
    name: np.array([weights.get(bin_name, 0.0) for bin_name in PRESET.names] + [0.0] * (MOST_REPEATS - 1))
    for name, weights in STEPS.items()
}
# The instants that one kind of step follows whatever else, and where it leads.
_NEXT_STEP = {
    instants.OFFICE: ("office end", instants.OFFICE_END),
    instants.EMERGENCY: ("emergency tests", instants.EMERGENCY_TESTS),
    instants.EMERGENCY_TESTS: ("emergency treatment", instants.EMERGENCY_TREATMENT),
    instants.EMERGENCY_TREATMENT: ("emergency end", instants.EMERGENCY_END),
}
IS_STAY_END = _STEP_WEIGHTS["stay end"] > 0
# Onset of a chronic condition per year, as a part of its prevalence, and the longest time that a visit looks back over.
ONSET_PER_YEAR, LONGEST_LOOK_BACK = 0.07, 24.0
# How well an encounter of each type notices new conditions.
NOTICE_T = np.array([1.0, 0.5, 0.3, 1.3, 0.3])
# Probability that a known condition is coded: at its own department, at a planned primary care visit, elsewhere.
OWN_DEPARTMENT, PLANNED, ELSEWHERE, IN_HOSPITAL = 0.96, 0.93, 0.03, 0.93
REFILL, REFILL_ELSEWHERE = 0.95, 0.01
LONGEST_STAY = 20
_PLANNED_COMPLAINTS = [COMPLAINT[name] for name in ("ROUTINE_EXAM", "FOLLOW_UP", "MEDICATION_REFILL")]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def gap_follows(s: StateRows) -> np.ndarray:
    """bool [n]: after this end of an encounter comes a gap, and no transfer or death."""
    ends = (instants.OFFICE_END, instants.EMERGENCY_END, instants.STAY_END)
    return np.isin(s.instant_P, ends) & (s.end_P != END["EMERGENCY//ADMITTED"]) & (s.end_P != END["ICU//TRANSFERRED"])


def times(s: StateRows, t: Tables) -> np.ndarray:
    """Probability [n, GAPS] of the time to the next instant. What is left to one is a gap past the longest.

    Rows that are over, or have not begun, have none.
    """
    out_nxG = np.zeros((len(s), GAPS))
    for instant, (name, _) in _NEXT_STEP.items():
        out_nxG[s.instant_P == instant] = _STEP_WEIGHTS[name]
    in_stay = np.flatnonzero((s.instant_P == instants.STAY) | (s.instant_P == instants.STAY_DAY))
    if len(in_stay):
        stay = s.rows(in_stay)
        intensive_nx1 = (stay.type_P == ICU)[:, None]
        days_nxG = np.where(intensive_nx1, _STEP_WEIGHTS["intensive day"], _STEP_WEIGHTS["ward day"])
        goes_on_nx1 = stay_goes_on(stay, t)[:, None]
        out_nxG[in_stay] = goes_on_nx1 * days_nxG + (1 - goes_on_nx1) * _STEP_WEIGHTS["stay end"]
    ended = np.isin(s.instant_P, (instants.EMERGENCY_END, instants.STAY_END))
    in_gap = gap_follows(s)
    out_nxG[ended & ~in_gap] = _STEP_WEIGHTS["transfer"]
    gaps = np.flatnonzero(in_gap)
    if len(gaps):
        out_nxG[gaps, FIRST_GAP_BIN:] = gap_weights(gap_rates(s.rows(gaps), t))
    return out_nxG


def next_instants(s: StateRows, gap_n: np.ndarray) -> np.ndarray:
    """The instant that each row comes to after a time of column `gap_n`."""
    out_n = np.full(len(s), instants.ARRIVAL)
    for instant, (_, following) in _NEXT_STEP.items():
        out_n[s.instant_P == instant] = following
    in_stay_n = (s.instant_P == instants.STAY) | (s.instant_P == instants.STAY_DAY)
    out_n[in_stay_n] = np.where(IS_STAY_END[gap_n], instants.STAY_END, instants.STAY_DAY)[in_stay_n]
    return out_n


def starts(s: StateRows, t: Tables) -> np.ndarray:
    """Probability [n, 8] of what an arrival is: one of encounters.STARTS, or death."""
    out_nx8 = np.zeros((len(s), len(_ARRIVALS)))
    in_gap = np.flatnonzero(s.gap_bin_P >= 0)
    if len(in_gap):
        after = s.rows(in_gap)
        rates_nxE = gap_rates(after, t)[np.arange(len(in_gap)), :, after.gap_bin_P]
        # A gap's hazard is constant within a bin, so its end depends on the bin alone.
        out_nx8[in_gap[:, None], GAP_ENDS] = rates_nxE / rates_nxE.sum(axis=1, keepdims=True)
    admitted = np.flatnonzero((s.gap_bin_P < 0) & (s.end_P == END["EMERGENCY//ADMITTED"]))
    if len(admitted):
        intensive_n = intensive_care(s.rows(admitted), t)
        out_nx8[admitted, ARRIVAL["ICU"]] = intensive_n
        out_nx8[admitted, ARRIVAL["INPATIENT//EMERGENT"]] = 1 - intensive_n
    out_nx8[(s.gap_bin_P < 0) & (s.end_P == END["ICU//TRANSFERRED"]), ARRIVAL["INPATIENT//TRANSFER"]] = 1
    out_nx8[(s.gap_bin_P < 0) & (s.end_P < 0), ARRIVAL["OUTPATIENT"]] = 1
    return out_nx8


def gap_rates(s: StateRows, t: Tables) -> np.ndarray:
    """Rates per month [n, 5 ends, 7 gap bins] at which the gap after an encounter ends: of GAP_ENDS' order."""
    known_nxC = s.ever_PxC & t.chronic_C
    robust_n = np.where(s.phenotype_P == PHENOTYPE["ROBUST"], 0.75, 1.0)
    visits_n = (encounters.OFFICE_RATE + known_nxC @ t.visits_CxD.sum(axis=1)) * robust_n
    stays_n = np.exp(encounters.STAY_MEMORY * s.stays_P)
    age_n = (s.age_n - 60) / 10
    emergencies_n = (encounters.EMERGENCY_RATE + known_nxC @ t.emergencies_C) * stays_n * np.exp(0.1 * np.abs(age_n))
    # Who is frail comes back soon after a hospital stay.
    frail_n = np.exp(encounters.FRAILTY * np.minimum(known_nxC @ t.death_C, encounters.MOST_FRAIL))
    after_stay_n = s.after_P == encounters.AFTER_STAY
    soon_nxG = np.where(after_stay_n[:, None] & SOON_G, frail_n[:, None], 1.0)
    electives_n = encounters.ELECTIVE_RATE + known_nxC @ t.electives_C
    deaths_n = encounters.DEATH_RATE * np.exp(
        encounters.DEATH_AGE_SLOPE * age_n + encounters.DEATH_OUTSIDE * (known_nxC @ t.death_C)
    )
    deaths_n = np.minimum(deaths_n, encounters.MOST_DEATH_RATE) + np.where(s.hospice_P, encounters.HOSPICE_DEATH, 0.0)
    office_nxG = np.array(encounters.OFFICE_PACE)[s.after_P] * visits_n[:, None]
    return np.stack(
        [
            office_nxG * (1 - encounters.TELEHEALTH_SHARE),
            office_nxG * encounters.TELEHEALTH_SHARE,
            np.array(encounters.EMERGENCY_PACE)[s.after_P] * soon_nxG * emergencies_n[:, None],
            np.broadcast_to(electives_n[:, None], office_nxG.shape),
            np.array(encounters.DEATH_PACE)[s.after_P] * deaths_n[:, None],
        ],
        axis=1,
    )


def gap_weights(rates_nxExG: np.ndarray) -> np.ndarray:
    """Probability [n, 7 + MOST_REPEATS - 1] of each gap; columns past the seventh are more repeats of the open bin."""
    total_nxG = rates_nxExG.sum(axis=1)
    steps_G = [*_GAP_LENGTHS_G, *[6.0] * (MOST_REPEATS - 1)]
    hazard_nxG = np.concatenate([total_nxG, np.repeat(total_nxG[:, -1:], MOST_REPEATS - 1, axis=1)], axis=1) * steps_G
    survived_nxG = np.exp(-(np.cumsum(hazard_nxG, axis=1) - hazard_nxG))
    return survived_nxG * -np.expm1(-hazard_nxG)


def departments(s: StateRows, t: Tables) -> np.ndarray:
    """Weights [n, D] of the encounter's department."""
    out_nxD = np.zeros((len(s), len(DEPARTMENT)))
    out_nxD[s.type_P == EMERGENCY, DEPARTMENT["EMERGENCY_MEDICINE"]] = 1
    out_nxD[s.type_P == ICU, DEPARTMENT["CRITICAL_CARE"]] = 1
    office, ward = np.flatnonzero(s.type_P <= TELEHEALTH), np.flatnonzero(s.type_P == INPATIENT)
    out_nxD[office] = office_departments(s.rows(office), t)
    out_nxD[ward] = stay_departments(s.rows(ward), t)
    return out_nxD


def office_departments(s: StateRows, t: Tables) -> np.ndarray:
    """Weights [n, D] of the department of an office visit."""
    weights_nxD = (s.ever_PxC & t.chronic_C) @ t.visits_CxD
    weights_nxD[:, DEPARTMENT["PRIMARY_CARE"]] += encounters.OFFICE_RATE
    weights_nxD[s.first_P] = np.eye(len(DEPARTMENT))[DEPARTMENT["PRIMARY_CARE"]]
    return weights_nxD


def stay_departments(s: StateRows, t: Tables) -> np.ndarray:
    """Weights [n, D] of the department of a hospital stay: where its acute conditions belong, else its chronic ones."""
    weights_nxD = (s.episode_PxC * np.exp(exact(t.severity_C))) @ t.department_CxD
    elective_nxD = (s.ever_PxC * t.electives_C) @ t.department_CxD
    weights_nxD = np.where(s.elective_P[:, None], elective_nxD, weights_nxD)
    weights_nxD[:, DEPARTMENT["PRIMARY_CARE"]] = 0
    weights_nxD[:, DEPARTMENT["INTERNAL_MEDICINE"]] += 0.02
    return weights_nxD


def complaints(s: StateRows, t: Tables) -> np.ndarray:
    """Weights [n, K] of the chief complaint of an emergency or office encounter."""
    drivers_nxK = 1 + s.ever_PxC @ t.complaint_drivers_CxK + t.complaint_phenotype_HxK[s.phenotype_P]
    weights_nxK = t.complaint_base_TxK[s.type_P] * drivers_nxK
    specialist_n = (s.type_P != EMERGENCY) & (s.department_P != DEPARTMENT["PRIMARY_CARE"])
    follow_up_K = np.eye(len(COMPLAINT))[COMPLAINT[encounters.FOLLOW_UP]]
    return np.where(specialist_n[:, None], follow_up_K, weights_nxK)


def diagnoses(s: StateRows, t: Tables) -> np.ndarray:
    """Probability [n, C] that each condition is coded at this encounter's (one) diagnosis instant."""
    log_risk_nxC = t.phenotype_HxC[s.phenotype_P] + s.ever_PxC @ t.cascade_CxC
    chronic_nxC = np.where(s.ever_PxC, _coding(s, t), _onset(s, t, log_risk_nxC))
    allowed_nxC = (s.ever_PxC @ t.requires_CxC > 0) | ~t.staged_C
    allowed_nxC &= (t.sex_C == 0) | (t.sex_C == np.where(s.female_P, 1, 2)[:, None])
    return np.where(t.chronic_C, chronic_nxC, _acute(s, t, log_risk_nxC)) * allowed_nxC


def _onset(s: StateRows, t: Tables, log_risk_nxC: np.ndarray) -> np.ndarray:
    # Beyond 80 no condition becomes commoner with age.
    age_nx1 = ((np.minimum(s.age_n, 80) - 60) / 10)[:, None]
    risk_nxC = t.share_C * np.exp(log_risk_nxC + t.slope_C * age_nx1)
    years_n = np.minimum(s.gap_P / MINUTES_PER_MONTH, LONGEST_LOOK_BACK) / 12 * NOTICE_T[s.type_P]
    rate_C = np.where(t.staged_C, 1.0, ONSET_PER_YEAR) * t.onset_C
    later_nxC = -np.expm1(-np.minimum(risk_nxC * rate_C, 2.0) * years_n[:, None])
    return np.where(s.first_P[:, None], np.where(t.staged_C, 0.0, np.minimum(risk_nxC, 0.9)), later_nxC)


def _coding(s: StateRows, t: Tables) -> np.ndarray:
    own_nxC = t.department_CxD.T[s.department_P] > 0
    office_n = (s.type_P == OUTPATIENT) | (s.type_P == TELEHEALTH)
    primary_n = s.department_P == DEPARTMENT["PRIMARY_CARE"]
    planned_n = office_n & primary_n & np.isin(s.complaint_P, _PLANNED_COMPLAINTS)
    everywhere_n = np.where(s.type_P >= INPATIENT, IN_HOSPITAL, np.where(planned_n, PLANNED, ELSEWHERE))
    return np.where(own_nxC & (office_n & ~primary_n)[:, None], OWN_DEPARTMENT, everywhere_n[:, None])


def _acute(s: StateRows, t: Tables, log_risk_nxC: np.ndarray) -> np.ndarray:
    has_complaint_n = s.complaint_P >= 0
    base_nxC = t.complaint_diagnoses_KxC[s.complaint_P] * has_complaint_n[:, None]
    base_nxC = np.where((s.type_P >= INPATIENT)[:, None], t.inpatient_C, base_nxC)
    odds_nxC = base_nxC / (1 - base_nxC) * np.exp(log_risk_nxC)
    # The check-up codes follow from the complaint alone.
    new_nxC = np.where(t.severity_C <= -4, base_nxC, odds_nxC / (1 + odds_nxC))
    return np.where((s.episode_PxC > 0) & (s.type_P >= INPATIENT)[:, None], IN_HOSPITAL, new_nxC)


def lab_orders(s: StateRows, t: Tables) -> np.ndarray:
    """Probability [n, L] of each test now; before an emergency's diagnosis it follows from what is known."""
    reasons_nxC = s.coded_PxC | (s.episode_PxC > 0)
    panels_nxB = _panels(s)
    miss_nxL = reasons_nxC @ t.lab_CxL + panels_nxB @ t.lab_panel_BxL
    # Repeats of a stay are fewer; a call has none.
    scale_n = np.where(s.type_P == TELEHEALTH, 0.0, np.where(s.day_P > 0, 0.4, 1.0))
    ordered_nxL = -np.expm1(miss_nxL) * scale_n[:, None]
    # So that the instant of an emergency's tests is never empty.
    ordered_nxL[s.type_P == EMERGENCY, LAB[laboratory.ALWAYS_IN_EMERGENCIES]] = 1.0
    return ordered_nxL


def _panels(s: StateRows) -> np.ndarray:
    columns = {
        "VITALS": (s.type_P == OUTPATIENT),
        "CHECKUP": (s.complaint_P == COMPLAINT[encounters.ROUTINE_EXAM]),
        "EMERGENCY": s.type_P == EMERGENCY,
        "WARD": s.type_P == INPATIENT,
        "INTENSIVE": s.type_P == ICU,
    }
    return np.stack([columns[name] for name in laboratory.PANELS], axis=1)


def lab_means(s: StateRows, t: Tables) -> np.ndarray:
    """Expected z [n, L] of each test: the noise around it has standard deviation laboratory.NOISE."""
    return (
        (s.ever_PxC & t.chronic_C) @ t.shift_CxL
        + s.episode_PxC @ t.shift_CxL
        + s.on_PxR @ t.shift_RxL
        + t.shift_HxL[s.phenotype_P]
        + s.female_P[:, None] * t.shift_female_L
        + np.minimum(s.known_nxC, laboratory.LONGEST_DRIFT) @ t.drift_CxL
    )


def drugs(s: StateRows, t: Tables) -> np.ndarray:
    """Probability [n, R] of each drug now: lasting ones at the first instant of a stay, the others every day."""
    reasons_nxC = s.coded_PxC | (s.episode_PxC > 0)
    start_nxR = -np.expm1((reasons_nxC @ t.drug_CxR) * t.drug_preference_HxR[s.phenotype_P])
    refill_nxR = np.where(reasons_nxC @ t.indication_CxR > 0, REFILL, REFILL_ELSEWHERE)
    given_nxR = np.where(s.on_PxR, refill_nxR, start_nxR)
    return np.where(t.lasting_R & (s.day_P > 0)[:, None], 0.0, given_nxR)


def procedures(s: StateRows, t: Tables) -> np.ndarray:
    """Probability [n, N] of each procedure now; exactly one of evaluation and management is certain."""
    reasons_nxC = (s.coded_PxC | (s.episode_PxC > 0)) & (s.day_P == 0)[:, None]
    miss_nxN = np.zeros((len(s.type_P), len(PROCEDURE)))
    for kind in range(len(encounters.TYPES)):
        rows = np.flatnonzero(s.type_P == kind)
        miss_nxN[rows] = reasons_nxC[rows] @ t.procedure_TxCxN[kind]
    probabilities_nxN = -np.expm1(miss_nxN)
    probabilities_nxN[np.arange(len(probabilities_nxN)), _evaluation(s, t)] = 1.0
    return probabilities_nxN


def _evaluation(s: StateRows, t: Tables) -> np.ndarray:
    def indices(codes: tuple[str, ...]) -> np.ndarray:
        return np.array([PROCEDURE[code] for code in codes])

    office_n = indices(treatments.OFFICE_CODES)[np.searchsorted([3, 6], s.coded_PxC.sum(axis=1), side="right")]
    office_n = np.where(s.first_P, PROCEDURE[treatments.FIRST_VISIT_CODE], office_n)
    worst_n = np.where(s.episode_PxC > 0, t.severity_C, -9.0).max(axis=1)
    emergency_n = indices(treatments.EMERGENCY_CODES)[np.searchsorted([-1.5, 1.0], worst_n, side="right")]
    ward_n = np.where(s.day_P == 0, PROCEDURE[treatments.ADMISSION_CODE], PROCEDURE[treatments.WARD_DAY_CODE])
    call_n = np.full(len(office_n), PROCEDURE[treatments.TELEHEALTH_CODE])
    intensive_n = np.full(len(office_n), PROCEDURE[treatments.INTENSIVE_DAY_CODE])
    return np.choose(s.type_P, [office_n, call_n, emergency_n, ward_n, intensive_n])


def ends(s: StateRows, t: Tables) -> np.ndarray:
    """Probability [n, 12] of how the encounter ends, of encounters.ENDS."""
    out_nxE = np.zeros((len(s), len(END)))
    out_nxE[s.type_P == OUTPATIENT, END["OUTPATIENT"]] = 1
    out_nxE[s.type_P == TELEHEALTH, END["TELEHEALTH"]] = 1
    emergency, stay = np.flatnonzero(s.type_P == EMERGENCY), np.flatnonzero(s.type_P >= INPATIENT)
    if len(emergency):
        columns = [END[f"EMERGENCY//{end}"] for end in ("HOME", "ADMITTED", "DIED")]
        out_nxE[emergency[:, None], columns] = emergency_ends(s.rows(emergency), t)
    if len(stay):
        p_nx5 = stay_ends(s.rows(stay), t)
        columns = [END[f"INPATIENT//{end}"] for end in ("HOME", "HOME_CARE", "NURSING_FACILITY", "HOSPICE", "DIED")]
        ward_n = s.type_P[stay] == INPATIENT
        out_nxE[stay[ward_n][:, None], columns] = p_nx5[ward_n]
        out_nxE[stay[~ward_n][:, None], [END["ICU//TRANSFERRED"], END["ICU//DIED"]]] = p_nx5[~ward_n][:, :2]
    return out_nxE


def emergency_ends(s: StateRows, t: Tables) -> np.ndarray:
    """Probability [n, 3] of HOME, ADMITTED, DIED."""
    acute_nxC = s.episode_PxC > 0
    known_nxC = s.ever_PxC & t.chronic_C
    worst_n = np.where(acute_nxC, t.severity_C, -2.5).max(axis=1)
    admitted_n = sigmoid(worst_n - 0.6 + 0.5 * (known_nxC @ t.death_C) + 0.2 * (s.age_n - 60) / 10)
    died_n = np.exp(-6.5 + np.minimum(acute_nxC @ t.death_C, 3.0))
    return np.stack([(1 - admitted_n) * (1 - died_n), admitted_n * (1 - died_n), died_n], axis=1)


def intensive_care(s: StateRows, t: Tables) -> np.ndarray:
    """Probability [n] that an admission goes to intensive care first."""
    return sigmoid(-3.5 + (s.episode_PxC > 0) @ t.intensive_C)


def stay_goes_on(s: StateRows, t: Tables) -> np.ndarray:
    """Probability [n] of one more instant of a hospital stay."""
    severity_n = np.maximum(np.where(s.episode_PxC > 0, t.severity_C, 0.0), 0.0).sum(axis=1)
    logit_n = np.where(s.type_P == ICU, -0.3, -0.6) + 0.15 * severity_n + 0.1 * (s.age_n - 60) / 10
    return np.where(s.day_P >= LONGEST_STAY, 0.0, np.minimum(sigmoid(logit_n), 0.85))


def stay_ends(s: StateRows, t: Tables) -> np.ndarray:
    """Probability [n, 5] of the dispositions of INPATIENT, or of ICU in its two first columns."""
    acute_n = np.minimum((s.episode_PxC > 0) @ t.death_C, 4.0)
    chronic_n = (s.ever_PxC & t.chronic_C) @ t.death_C
    age_n = (s.age_n - 60) / 10
    frail_n = 0.5 * chronic_n + 0.5 * age_n
    died_n = sigmoid(np.where(s.type_P == ICU, -3.6, -5.4) + 0.6 * acute_n + 0.35 * chronic_n + 0.35 * age_n)
    weights_nx4 = np.stack(
        [
            np.ones_like(age_n),
            np.exp(-1.8 + 0.6 * frail_n),
            np.exp(-2.6 + 0.8 * frail_n),
            np.exp(-6.0 + 0.7 * chronic_n),
        ],
        axis=1,
    )
    ward_nx4 = weights_nx4 / weights_nx4.sum(axis=1, keepdims=True) * (1 - died_n)[:, None]
    ward_nx5 = np.concatenate([ward_nx4, died_n[:, None]], axis=1)
    intensive_nx5 = np.stack([1 - died_n, died_n, *[np.zeros_like(died_n)] * 3], axis=1)
    return np.where((s.type_P == ICU)[:, None], intensive_nx5, ward_nx5)


def lab_values(z_nxL: np.ndarray) -> np.ndarray:
    """Values in their units, float32 [n, L], from z: scaled, clipped, rounded as the laboratory reports them."""
    labs = catalogue.LABS
    centre_L, spread_L = np.array([lab.centre for lab in labs]), np.array([lab.spread for lab in labs])
    skewed_L = np.array([lab.skewed for lab in labs])
    scale_L = 10.0 ** np.array([lab.decimals for lab in labs])
    scaled_nxL = z_nxL * spread_L
    # Beyond exp(20) every value is clipped anyway.
    skewed_nxL = centre_L * np.exp(np.clip(np.where(skewed_L, scaled_nxL, 0.0), -20, 20))
    values_nxL = np.where(skewed_L, skewed_nxL, centre_L + scaled_nxL)
    values_nxL = np.clip(values_nxL, [lab.low for lab in labs], [lab.high for lab in labs])
    return (np.round(values_nxL * scale_L) / scale_L).astype(np.float32)
