"""The world's encounters: their types and ends, departments, chief complaints, and the rates at which they come."""

import dataclasses

OUTPATIENT, TELEHEALTH, EMERGENCY, INPATIENT, ICU = range(5)
TYPES = ("OUTPATIENT", "TELEHEALTH", "EMERGENCY", "INPATIENT", "ICU")
# What starts an encounter: its type, and how a hospital stay came about. Sorted, as their codes are.
STARTS = (
    "EMERGENCY",
    "ICU",
    "INPATIENT//ELECTIVE",
    "INPATIENT//EMERGENT",
    "INPATIENT//TRANSFER",
    "OUTPATIENT",
    "TELEHEALTH",
)
# How one ends: its type and, except for visits, where to.
ENDS = (
    "EMERGENCY//ADMITTED",
    "EMERGENCY//DIED",
    "EMERGENCY//HOME",
    "ICU//DIED",
    "ICU//TRANSFERRED",
    "INPATIENT//DIED",
    "INPATIENT//HOME",
    "INPATIENT//HOME_CARE",
    "INPATIENT//HOSPICE",
    "INPATIENT//NURSING_FACILITY",
    "OUTPATIENT",
    "TELEHEALTH",
)

DEPARTMENTS = (
    "PRIMARY_CARE",
    "CARDIOLOGY",
    "ENDOCRINOLOGY",
    "PULMONOLOGY",
    "NEUROLOGY",
    "PSYCHIATRY",
    "ONCOLOGY",
    "RHEUMATOLOGY",
    "GASTROENTEROLOGY",
    "NEPHROLOGY",
    "ORTHOPEDICS",
    "OPHTHALMOLOGY",
    "SURGERY",
    "DERMATOLOGY",
    "GYNECOLOGY",
    "UROLOGY",
    "INTERNAL_MEDICINE",
    "EMERGENCY_MEDICINE",
    "CRITICAL_CARE",
)


@dataclasses.dataclass(frozen=True)
class Complaint:
    """A chief complaint: how often it is the reason of an emergency or primary care visit, and what it turns out to be.

    Its weight is `emergency` or `office`, plus `drivers` of the conditions coded before and of the phenotype (which act
    in proportion). `diagnoses` gives the probability of each acute condition, before cascades and phenotype.
    """

    name: str
    emergency: float
    office: float
    drivers: dict[str, float]
    diagnoses: dict[str, float]


COMPLAINTS = (
    Complaint("ROUTINE_EXAM", 0.0, 3.0, {"ROBUST": 2.0}, {"Z00.00": 0.97, "Z23": 0.35}),
    Complaint("FOLLOW_UP", 0.0, 2.0, {"I10": 1.5, "E11.9": 3.0, "E78.5": 0.8, "N18.30": 1.5, "I50.9": 3.0}, {}),
    Complaint("MEDICATION_REFILL", 0.0, 0.5, {"F41.1": 1.0, "M54.50": 1.0, "E03.9": 1.0}, {}),
    Complaint(
        "COUGH",
        0.5,
        1.0,
        {"RESPIRATORY": 3.0, "J44.9": 2.0, "J45.909": 1.2},
        {"J06.9": 0.55, "J20.9": 0.25, "J18.9": 0.12, "J10.1": 0.12, "U07.1": 0.1},
    ),
    Complaint(
        "FEVER",
        0.6,
        0.4,
        {"RENAL": 1.0, "C79.9": 4.0, "C83.30": 4.0, "N18.6": 2.0, "RESPIRATORY": 0.5},
        {"R50.9": 0.4, "A41.9": 0.12, "J10.1": 0.2, "U07.1": 0.2, "D70.1": 0.3, "N39.0": 0.15, "J18.9": 0.15},
    ),
    Complaint(
        "SHORTNESS_OF_BREATH",
        0.4,
        0.1,
        {"J44.9": 6.0, "I50.9": 9.0, "J45.909": 2.5, "J84.10": 6.0, "RESPIRATORY": 1.5},
        {
            "J18.9": 0.2,
            "J44.1": 0.3,
            "J45.901": 0.35,
            "I50.23": 0.3,
            "J96.01": 0.08,
            "I26.99": 0.06,
            "U07.1": 0.08,
            "R06.02": 0.4,
        },
    ),
    Complaint(
        "CHEST_PAIN",
        0.8,
        0.1,
        {"I25.10": 5.0, "I10": 0.6, "CARDIAC": 2.0, "F41.1": 0.5},
        {"R07.9": 0.8, "I21.4": 0.08, "I16.0": 0.05},
    ),
    Complaint(
        "PALPITATIONS",
        0.2,
        0.2,
        {"I48.91": 4.0, "CARDIAC": 1.0, "F41.1": 0.7},
        {"R07.9": 0.2, "R55": 0.1, "I47.1": 0.2},
    ),
    Complaint(
        "WEAKNESS_OF_ONE_SIDE",
        0.1,
        0.0,
        {"I48.91": 1.5, "I69.30": 1.5, "CARDIAC": 0.3},
        {"I63.9": 0.6, "G45.9": 0.3, "I61.9": 0.1},
    ),
    Complaint("SYNCOPE", 0.2, 0.0, {"I35.0": 2.0, "I48.91": 0.6, "G40.909": 2.0}, {"R55": 0.85, "E87.1": 0.1}),
    Complaint(
        "HEADACHE", 0.5, 0.4, {"G43.909": 4.0, "NEUROPSYCHIATRIC": 1.5}, {"R51.9": 0.8, "I16.0": 0.04, "J01.90": 0.1}
    ),
    Complaint("DIZZINESS", 0.4, 0.4, {"NEUROPSYCHIATRIC": 0.8, "I10": 0.3}, {"R42": 0.8, "E16.2": 0.1, "E87.1": 0.05}),
    Complaint(
        "ABDOMINAL_PAIN",
        1.0,
        0.4,
        {"INFLAMMATORY": 2.0, "K58.9": 1.5, "F10.20": 1.5, "K57.30": 1.0},
        {
            "R10.9": 0.5,
            "K35.80": 0.06,
            "K81.0": 0.07,
            "K85.90": 0.06,
            "A09": 0.12,
            "K80.20": 0.1,
            "K57.32": 0.2,
            "K56.60": 0.04,
        },
    ),
    Complaint(
        "VOMITING_AND_DIARRHEA",
        0.5,
        0.2,
        {"INFLAMMATORY": 1.0, "K50.90": 3.0, "K51.90": 3.0, "C18.9": 2.0},
        {"A09": 0.6, "R11.2": 0.3, "E86.0": 0.25, "E87.6": 0.1, "N17.9": 0.08, "A04.72": 0.04},
    ),
    Complaint(
        "GASTROINTESTINAL_BLEEDING",
        0.1,
        0.0,
        {"K74.60": 5.0, "K57.30": 1.2, "INFLAMMATORY": 0.3, "K92.2": 1.0},
        {"K92.2": 0.9},
    ),
    Complaint("PAINFUL_URINATION", 0.3, 0.4, {"RENAL": 1.5, "N40.1": 1.5, "N20.0": 1.5}, {"N39.0": 0.85}),
    Complaint("FLANK_PAIN", 0.1, 0.0, {"N20.0": 8.0, "RENAL": 0.5}, {"N23": 0.6, "N39.0": 0.25, "N17.9": 0.12}),
    Complaint(
        "CONFUSION",
        0.1,
        0.0,
        {"F03.90": 5.0, "R54": 3.0, "K74.60": 2.0, "N18.6": 1.0},
        {"R41.0": 0.5, "A41.9": 0.3, "E87.1": 0.25, "N39.0": 0.4, "E86.0": 0.2},
    ),
    Complaint(
        "LEG_SWELLING",
        0.1,
        0.2,
        {"I50.9": 3.0, "K74.60": 2.0, "N18.4": 2.0},
        {"I50.23": 0.5, "L03.90": 0.2, "I82.409": 0.15},
    ),
    Complaint(
        "SKIN_REDNESS",
        0.2,
        0.2,
        {"E11.9": 1.0, "I73.9": 1.0, "METABOLIC": 0.6},
        {"L03.90": 0.7, "B02.9": 0.12, "L50.9": 0.15},
    ),
    Complaint("BACK_PAIN", 0.4, 0.3, {"M54.50": 3.0, "INFLAMMATORY": 0.6}, {"M54.2": 0.25}),
    Complaint(
        "JOINT_PAIN", 0.1, 0.5, {"M17.9": 2.0, "M10.9": 2.0, "INFLAMMATORY": 1.0}, {"M25.50": 0.75, "M10.00": 0.4}
    ),
    Complaint("ANXIETY", 0.1, 0.2, {"F41.1": 2.0, "F31.9": 2.0, "F20.9": 3.0}, {"R45.851": 0.15}),
    Complaint(
        "INTOXICATION",
        0.1,
        0.0,
        {"F10.20": 8.0, "F11.20": 8.0, "F32.9": 0.4},
        {"T50.901A": 0.3, "F10.239": 0.4, "F10.129": 0.4},
    ),
    Complaint(
        "FALL",
        0.4,
        0.0,
        {"R54": 6.0, "M81.0": 2.0, "G20.A1": 4.0, "F03.90": 3.0},
        {"S72.009A": 0.15, "S06.0X0A": 0.25, "S52.501A": 0.15, "R55": 0.1},
    ),
    Complaint(
        "INJURY", 1.0, 0.2, {"ROBUST": 1.0}, {"S93.409A": 0.4, "S61.409A": 0.3, "S52.501A": 0.1, "S06.0X0A": 0.12}
    ),
    Complaint(
        "EAR_OR_SINUS_PAIN", 0.2, 0.7, {"J32.9": 2.0, "J30.9": 1.0, "H90.3": 0.3}, {"J01.90": 0.45, "H66.90": 0.35}
    ),
    Complaint("EYE_REDNESS", 0.1, 0.3, {"H04.129": 1.5, "J30.9": 0.5}, {"H10.9": 0.8}),
    Complaint("RASH", 0.2, 0.4, {"L30.9": 2.0, "L40.9": 1.5, "INFLAMMATORY": 0.8}, {"L50.9": 0.4, "B02.9": 0.2}),
    Complaint("URINARY_RETENTION", 0.1, 0.0, {"N40.1": 3.0, "N31.9": 4.0}, {"R33.9": 0.9, "N39.0": 0.2}),
    Complaint("COLLAPSE", 0.02, 0.0, {"I25.10": 1.5, "I42.9": 3.0, "I50.9": 1.0}, {"I46.9": 0.6, "R55": 0.2}),
    Complaint("SEIZURE", 0.05, 0.0, {"G40.909": 20.0, "F10.20": 3.0}, {"G40.901": 0.3, "F10.239": 0.2, "R55": 0.1}),
    Complaint("SCREENING", 0.0, 0.5, {"D12.6": 1.0, "ROBUST": 0.5}, {"Z12.11": 0.85}),
    Complaint("FATIGUE", 0.1, 0.6, {"E03.9": 0.8, "D64.9": 1.5, "NEUROPSYCHIATRIC": 0.6}, {"R53.83": 0.85}),
)
FOLLOW_UP, ROUTINE_EXAM = "FOLLOW_UP", "ROUTINE_EXAM"

# Rates per month that hold for everybody; conditions add theirs.
OFFICE_RATE, TELEHEALTH_SHARE = 0.035, 0.10
EMERGENCY_RATE, ELECTIVE_RATE = 0.006, 0.0008
# Elective admissions come with these (added per month).
ELECTIVE = {
    "M17.9": 0.006,
    "C18.9": 0.02,
    "C50.919": 0.01,
    "I35.0": 0.006,
    "I25.10": 0.003,
    "C90.00": 0.02,
    "C83.30": 0.03,
}
DEATH_RATE, DEATH_AGE_SLOPE, MOST_DEATH_RATE = 0.0001, 0.8, 0.06
# How much of a condition's log hazard of death acts outside hospitals.
DEATH_OUTSIDE = 0.7
HOSPICE_DEATH = 4.0

# Relative rates in the interval bins that follow an encounter, by what the encounter was.
# Bins: 12h-1d, 1d-3d, 3d-1w, 1w-2w, 2w-30d, 30d-6mt, 6mt+.
GAP_BINS = ("12h-1d", "1d-3d", "3d-1w", "1w-2w", "2w-30d", "30d-6mt", "6mt+")
AFTER_OFFICE, AFTER_EMERGENCY, AFTER_STAY = range(3)
OFFICE_PACE = (
    (0.0, 0.1, 0.2, 0.3, 0.4, 0.9, 1.4),
    (0.1, 0.6, 3.0, 4.0, 2.5, 1.1, 1.5),
    (0.1, 1.0, 5.0, 7.0, 4.0, 1.2, 1.5),
)
EMERGENCY_PACE = (
    (0.5, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0),
    (1.5, 3.0, 2.5, 1.8, 1.4, 1.0, 1.0),
    (0.8, 1.6, 1.7, 1.5, 1.2, 1.1, 1.0),
)
DEATH_PACE = (
    (0.5, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0),
    (1.5, 1.5, 1.5, 1.5, 1.5, 1.2, 1.0),
    (1.0, 1.2, 1.2, 1.2, 1.2, 1.1, 1.0),
)
# Each earlier hospital stay, up to three, makes the next emergency likelier.
STAY_MEMORY = 0.3
# Within 30 days of a stay, emergencies grow with the conditions' total log hazard of death, as far as MOST_FRAIL.
FRAILTY, MOST_FRAIL = 0.65, 3.0
