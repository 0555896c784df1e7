"""The world's laboratory: LOINC tests, when they are ordered, and what moves their values.

Short descriptions are our own.
"""

import dataclasses

# Standard deviation of one value around its expectation, in units of the reference population's spread.
NOISE = 0.4
# How much of an acute condition's effect on a value is left at each later instant of a stay.
RECOVERY = 0.75
# Taken in every emergency.
ALWAYS_IN_EMERGENCIES = "8867-4"
# test -> {condition: how far its values drift in a year since that was first coded, in spreads}, for so many years.
DRIFTS = {
    "4548-4": {"E11.9": 0.12, "R73.03": 0.08},
    "2345-7": {"E11.9": 0.08},
    "2160-0": {"N18.30": 0.25, "I10": 0.03},
    "62238-1": {"N18.30": -0.2, "E11.9": -0.06},
    "14959-1": {"E11.22": 0.15},
    "718-7": {"N18.30": -0.08, "C34.90": -0.3, "C18.9": -0.15},
    "59408-5": {"J44.9": -0.12, "J84.10": -0.3},
    "33762-6": {"I50.9": 0.12},
    "1751-7": {"K74.60": -0.2, "C34.90": -0.3},
    "2857-1": {"C61": 0.12},
    "39156-5": {"E66.9": 0.06, "F03.90": -0.15},
}
LONGEST_DRIFT = 8.0


@dataclasses.dataclass(frozen=True)
class Lab:
    """A test: value = centre + spread * z, or centre * exp(spread * z) if `skewed`; then clipped and rounded.

    z = sum of `shifts` (of conditions, drugs, phenotypes, sex F that apply) + NOISE * standard normal.
    `orders` gives the probability of the test for each code or panel that calls for it.
    """

    code: str
    description: str
    unit: str
    centre: float
    spread: float
    decimals: int
    orders: dict[str, float]
    shifts: dict[str, float]
    skewed: bool = False
    low: float = 0.0
    high: float = 1e9


# Panels: occasions for an order that are not conditions. A complaint may call for a panel too.
PANELS = ("VITALS", "CHECKUP", "EMERGENCY", "WARD", "INTENSIVE")

# One entry, few lines: a table.
# fmt: off
LABS = (
    Lab("8480-6", "Systolic blood pressure", "mm[Hg]", 123, 12, 0, {"VITALS": 0.95}, {"I10": 1.6, "C09AA03": -0.7,
        "C08CA01": -0.7, "C09CA01": -0.7, "C03AA03": -0.6, "C07AB02": -0.5, "N18.30": 0.6, "A41.9": -2.5,
        "CARDIAC": 0.6, "ROBUST": -0.6, "I50.22": -0.8}, low=60, high=240),
    Lab("39156-5", "Body mass index", "kg/m2", 26, 3.2, 1, {"VITALS": 0.7, "E66.9": 0.8}, {"E66.9": 2.6,
        "METABOLIC": 1.0, "R54": -1.5, "C79.9": -1.2, "A10BJ06": -0.8, "ROBUST": -0.7}, low=14, high=60),
    Lab("8867-4", "Heart rate", "/min", 74, 8, 0, {"EMERGENCY": 0.95, "WARD": 0.5, "INTENSIVE": 0.9, "I48.91": 0.5},
        {"I48.91": 1.5, "C07AB02": -1.2, "A41.9": 3.0, "J18.9": 1.2, "I26.99": 2.0, "R50.9": 1.5, "F41.1": 0.6,
        "NEUROPSYCHIATRIC": 0.6}, low=35, high=190),
    Lab("59408-5", "Oxygen saturation", "%", 97.5, 1.1, 0, {"EMERGENCY": 0.6, "INTENSIVE": 0.95, "J44.9": 0.8,
        "J45.909": 0.7, "J18.9": 0.8}, {"J44.9": -1.8, "J96.11": -2.0, "J18.9": -2.5, "J96.01": -4.0, "J84.10": -2.5,
        "J44.1": -1.5, "U07.1": -2.0, "RESPIRATORY": -0.8}, low=70, high=100),
    Lab("8310-5", "Body temperature", "Cel", 36.8, 0.3, 1, {"EMERGENCY": 0.7, "INTENSIVE": 0.6}, {"A41.9": 4.0,
        "J18.9": 3.0, "R50.9": 4.5, "N39.0": 1.5, "D70.1": 4.0, "J10.1": 4.0, "L03.90": 1.5, "U07.1": 3.0}, low=34,
        high=41.5),
    Lab("2345-7", "Glucose", "mg/dL", 94, 0.14, 0, {"CHECKUP": 0.9, "EMERGENCY": 0.7, "WARD": 0.8, "INTENSIVE": 0.9,
        "E11.9": 0.9, "R73.03": 0.9}, {"R73.03": 1.0, "E11.9": 2.4, "E11.65": 2.4, "A10BA02": -0.8, "A10AE04": -1.0,
        "A10BK03": -0.6, "H02AB07": 1.0, "E16.2": -6.0, "METABOLIC": 0.8}, skewed=True, low=25, high=700),
    Lab("4548-4", "Hemoglobin A1c", "%", 5.4, 0.35, 1, {"E11.9": 0.9, "R73.03": 0.85, "CHECKUP": 0.15},
        {"R73.03": 1.4, "E11.9": 3.4, "E11.65": 3.2, "A10BA02": -1.0, "A10AE04": -1.0, "A10BJ06": -1.2,
        "METABOLIC": 0.8}, low=4, high=16),
    Lab("2160-0", "Creatinine", "mg/dL", 0.9, 0.18, 2, {"CHECKUP": 0.85, "EMERGENCY": 0.8, "WARD": 0.9,
        "INTENSIVE": 0.95, "N18.30": 0.95, "I50.9": 0.8, "E11.22": 0.8}, {"N18.30": 2.6, "N18.4": 2.6, "N18.6": 3.5,
        "N17.9": 3.0, "F": -0.9, "C09AA03": 0.3, "RENAL": 1.0}, skewed=True, low=0.3, high=15),
    Lab("3094-0", "Urea nitrogen", "mg/dL", 14, 0.2, 0, {"WARD": 0.85, "N18.30": 0.85, "INTENSIVE": 0.9,
        "I50.9": 0.6}, {"N18.30": 2.0, "N18.4": 1.8, "N18.6": 1.5, "N17.9": 2.6, "C03CA01": 1.0, "K92.2": 2.0,
        "RENAL": 0.8}, skewed=True, low=3, high=150),
    Lab("62238-1", "Estimated glomerular filtration rate", "mL/min/1.73m2", 92, 13, 0, {"N18.30": 0.9,
        "CHECKUP": 0.3}, {"N18.30": -3.0, "N18.4": -1.5, "N18.6": -1.0, "N17.9": -2.0, "RENAL": -0.8}, low=4,
        high=130),
    Lab("2951-2", "Sodium", "mmol/L", 140, 2.2, 0, {"EMERGENCY": 0.75, "WARD": 0.9, "INTENSIVE": 0.95,
        "CHECKUP": 0.5}, {"E87.1": -4.0, "C03AA03": -1.0, "I50.22": -1.0, "K74.60": -1.5, "NEUROPSYCHIATRIC": -0.9},
        low=110, high=165),
    Lab("2823-3", "Potassium", "mmol/L", 4.2, 0.3, 1, {"EMERGENCY": 0.75, "WARD": 0.9, "INTENSIVE": 0.95,
        "N18.30": 0.8, "I50.9": 0.7}, {"N18.4": 1.4, "N18.6": 1.6, "C03CA01": -1.2, "C03AA03": -0.9, "C03DA01": 1.1,
        "C09AA03": 0.5, "RENAL": 0.7}, low=2.2, high=7.5),
    Lab("2028-9", "Carbon dioxide, total", "mmol/L", 25, 1.8, 0, {"WARD": 0.5, "J44.9": 0.5, "N18.4": 0.6},
        {"J44.9": 1.6, "J96.11": 2.5, "N18.4": -1.8, "N18.6": -1.0, "A41.9": -2.5, "RESPIRATORY": 0.8}, low=8,
        high=48),
    Lab("17861-6", "Calcium", "mg/dL", 9.4, 0.35, 1, {"WARD": 0.3, "C90.00": 0.8, "N18.4": 0.7, "C79.9": 0.6},
        {"C90.00": 1.8, "C79.9": 1.4, "N18.6": -1.2, "ONCOLOGIC": 0.7}, low=6, high=15),
    Lab("2777-1", "Phosphate", "mg/dL", 3.5, 0.45, 1, {"N18.4": 0.7, "N18.6": 0.9, "INTENSIVE": 0.6}, {"N18.4": 1.0,
        "N18.6": 2.6, "V03AE02": -1.5, "RENAL": 0.7}, low=1, high=12),
    Lab("718-7", "Hemoglobin", "g/dL", 14.6, 1.0, 1, {"CHECKUP": 0.8, "EMERGENCY": 0.8, "WARD": 0.9,
        "INTENSIVE": 0.95, "D64.9": 0.95, "D63.1": 0.95, "C18.9": 0.8, "C90.00": 0.8, "C83.30": 0.8, "C34.90": 0.8},
        {"F": -1.1, "D64.9": -2.6, "D63.1": -2.2, "K92.2": -3.5, "B03AA07": 0.9, "B03XA01": 1.3, "C90.00": -1.2,
        "C79.9": -1.2, "RENAL": -0.6, "ONCOLOGIC": -0.8, "RESPIRATORY": 0.7}, low=4, high=20),
    Lab("6690-2", "White blood cells", "10*3/uL", 6.8, 0.2, 1, {"CHECKUP": 0.5, "EMERGENCY": 0.8, "WARD": 0.85,
        "INTENSIVE": 0.95, "C83.30": 0.8, "M06.9": 0.6}, {"A41.9": 3.5, "J18.9": 2.2, "K35.80": 2.5, "K81.0": 2.0,
        "N39.0": 1.0, "L03.90": 1.4, "H02AB07": 1.2, "D70.1": -6.0, "L04AX03": -0.7, "INFLAMMATORY": 0.9,
        "F17.210": 0.6}, skewed=True, low=0.2, high=60),
    Lab("777-3", "Platelets", "10*3/uL", 245, 0.17, 0, {"WARD": 0.8, "EMERGENCY": 0.6, "INTENSIVE": 0.9,
        "K74.60": 0.9}, {"K74.60": -3.0, "D70.1": -3.0, "C90.00": -1.2, "D64.9": 0.7, "INFLAMMATORY": 0.9,
        "ONCOLOGIC": -0.8}, skewed=True, low=10, high=900),
    Lab("787-2", "Mean corpuscular volume", "fL", 90, 3.6, 0, {"D64.9": 0.8, "E53.8": 0.8, "F10.20": 0.5},
        {"E53.8": 2.2, "B03BA01": -1.0, "F10.20": 1.8, "D64.9": -1.4, "L04AX03": 0.9}, low=60, high=125),
    Lab("2276-4", "Ferritin", "ng/mL", 95, 0.5, 0, {"D64.9": 0.7, "D63.1": 0.7}, {"D64.9": -2.0, "B03AA07": 1.5,
        "D63.1": 1.0, "INFLAMMATORY": 1.2, "F": -0.7}, skewed=True, low=2, high=5000),
    Lab("2089-1", "Cholesterol in LDL", "mg/dL", 112, 20, 0, {"CHECKUP": 0.8, "E78.5": 0.85, "I25.10": 0.7},
        {"E78.5": 2.0, "C10AA05": -2.2, "C10AA07": -2.4, "C10AX09": -0.8, "METABOLIC": 0.4, "CARDIAC": 1.0,
        "ROBUST": -0.6}, low=15, high=350),
    Lab("2085-9", "Cholesterol in HDL", "mg/dL", 53, 9, 0, {"CHECKUP": 0.75, "E78.5": 0.75}, {"F": 0.8, "E66.9": -0.8,
        "E11.9": -0.7, "METABOLIC": -1.0, "ROBUST": 1.0, "F17.210": -0.5}, low=12, high=130),
    Lab("2571-8", "Triglycerides", "mg/dL", 115, 0.3, 0, {"CHECKUP": 0.7, "E78.5": 0.75}, {"E66.9": 0.8, "E11.9": 0.9,
        "E78.5": 0.8, "F10.20": 0.9, "METABOLIC": 1.1, "C10AA05": -0.5}, skewed=True, low=25, high=2500),
    Lab("1742-6", "Alanine aminotransferase", "U/L", 21, 0.3, 0, {"K76.0": 0.9, "K74.60": 0.8, "M06.9": 0.7,
        "CHECKUP": 0.4}, {"K76.0": 2.0, "K74.60": 1.4, "F10.20": 1.2, "K81.0": 1.6, "METABOLIC": 0.7, "F": -0.4},
        skewed=True, low=4, high=2000),
    Lab("1975-2", "Bilirubin, total", "mg/dL", 0.6, 0.3, 1, {"K74.60": 0.9, "K81.0": 0.9, "K85.90": 0.8,
        "C78.7": 0.8}, {"K74.60": 2.6, "K81.0": 2.2, "C78.7": 2.2}, skewed=True, low=0.1, high=30),
    Lab("6768-6", "Alkaline phosphatase", "U/L", 72, 0.22, 0, {"C79.9": 0.8, "C61": 0.5, "C78.7": 0.8,
        "C50.919": 0.4}, {"C79.9": 2.4, "C78.7": 2.6, "K74.60": 1.2, "ONCOLOGIC": 1.0}, skewed=True, low=20,
        high=1500),
    Lab("1751-7", "Albumin", "g/dL", 4.3, 0.28, 1, {"K74.60": 0.9, "R54": 0.5, "INTENSIVE": 0.6, "C79.9": 0.7},
        {"K74.60": -2.5, "R54": -1.8, "A41.9": -2.5, "C79.9": -1.8, "ONCOLOGIC": -0.6, "ROBUST": 0.6}, low=1.2,
        high=5.6),
    Lab("1988-5", "C-reactive protein", "mg/L", 2.5, 0.6, 1, {"M06.9": 0.9, "K50.90": 0.9, "K51.90": 0.85,
        "J18.9": 0.7, "A41.9": 0.8, "M32.9": 0.7}, {"M06.9": 2.0, "K50.90": 2.0, "K51.90": 1.6, "J18.9": 4.0,
        "A41.9": 5.0, "L04AB04": -1.6, "L04AX03": -0.8, "INFLAMMATORY": 1.2, "E66.9": 0.6}, skewed=True, low=0.1,
        high=500),
    Lab("4537-7", "Erythrocyte sedimentation rate", "mm/h", 12, 0.45, 0, {"M06.9": 0.8, "M32.9": 0.8, "M25.50": 0.3},
        {"M06.9": 2.0, "M32.9": 2.0, "L04AX03": -0.8, "INFLAMMATORY": 1.0, "F": 0.5}, skewed=True, low=1, high=140),
    Lab("3016-3", "Thyrotropin", "m[IU]/L", 1.9, 0.35, 2, {"E03.9": 0.9, "CHECKUP": 0.3, "R53.83": 0.6},
        {"E03.9": 3.2, "H03AA01": -2.6, "E05.90": -4.0, "H03BB02": 2.2, "N05AN01": 1.2, "NEUROPSYCHIATRIC": 0.5},
        skewed=True, low=0.01, high=100),
    Lab("1989-3", "Vitamin D, 25-hydroxy", "ng/mL", 33, 6, 0, {"E55.9": 0.85, "M81.0": 0.6}, {"E55.9": -2.6,
        "A11CC05": 2.0, "E66.9": -0.6, "RENAL": -0.6}, low=4, high=110),
    Lab("2132-9", "Vitamin B12", "pg/mL", 460, 0.3, 0, {"E53.8": 0.85, "G62.9": 0.6, "F03.90": 0.3}, {"E53.8": -2.8,
        "B03BA01": 2.6, "A10BA02": -0.8}, skewed=True, low=60, high=2000),
    Lab("3084-1", "Urate", "mg/dL", 5.3, 0.9, 1, {"M10.9": 0.85, "N20.0": 0.3}, {"M10.9": 2.4, "M04AA01": -2.6,
        "C03AA03": 0.9, "C03CA01": 0.8, "N18.30": 0.8, "F": -0.9}, low=1.5, high=14),
    Lab("33762-6", "NT-proBNP", "pg/mL", 95, 0.6, 0, {"I50.9": 0.8, "I50.23": 0.95, "I35.0": 0.5}, {"I50.9": 3.0,
        "I50.22": 1.2, "I50.23": 1.8, "I48.91": 1.2, "N18.30": 0.8, "C09DX04": -1.0, "CARDIAC": 0.8}, skewed=True,
        low=5, high=35000),
    Lab("67151-1", "Troponin T, high sensitivity", "ng/L", 8, 0.5, 0, {"R07.9": 0.9, "I21.4": 0.95, "I50.23": 0.5},
        {"I21.4": 6.5, "I50.9": 1.2, "N18.30": 1.4, "A41.9": 1.5, "CARDIAC": 0.7}, skewed=True, low=3, high=10000),
    Lab("6301-6", "International normalized ratio", "{INR}", 1.03, 0.07, 1, {"I48.91": 0.4, "K74.60": 0.8,
        "I26.99": 0.6}, {"B01AA03": 11.0, "K74.60": 4.5, "B01AF02": 1.5}, skewed=True, low=0.8, high=9),
    Lab("2524-7", "Lactate", "mmol/L", 1.2, 0.3, 1, {"INTENSIVE": 0.9, "A41.9": 0.9}, {"A41.9": 3.5, "J96.01": 1.2,
        "A10BA02": 0.5}, skewed=True, low=0.3, high=20),
    Lab("2019-8", "Carbon dioxide, arterial", "mm[Hg]", 40, 3.5, 0, {"INTENSIVE": 0.7, "J96.01": 0.8, "J96.11": 0.4},
        {"J96.01": 3.0, "J96.11": 3.0, "J44.9": 1.5, "A41.9": -2.0}, low=15, high=120),
    Lab("2744-1", "pH, arterial", "[pH]", 7.4, 0.025, 2, {"INTENSIVE": 0.7, "J96.01": 0.8}, {"J96.01": -2.0,
        "A41.9": -2.5}, low=6.8, high=7.7),
    Lab("2857-1", "Prostate specific antigen", "ng/mL", 1.1, 0.5, 1, {"C61": 0.85, "N40.1": 0.5}, {"C61": 3.0,
        "N40.1": 1.4, "L02AE02": -4.0, "ONCOLOGIC": 0.6}, skewed=True, low=0.1, high=500),
    Lab("14959-1", "Albumin/creatinine in urine", "mg/g", 9, 0.6, 0, {"E11.9": 0.5, "E11.22": 0.85, "N18.30": 0.5},
        {"E11.22": 3.4, "N18.30": 1.2, "E11.65": 1.0, "C09AA03": -0.6, "A10BK03": -0.8, "RENAL": 0.8}, skewed=True,
        low=1, high=5000),
    Lab("2502-3", "Iron saturation", "%", 28, 5, 0, {"D50.9": 0.85, "D64.9": 0.5, "G25.81": 0.4}, {"D50.9": -3.0,
        "D64.9": -1.0, "B03AA07": 1.4, "INFLAMMATORY": -0.7}, low=2, high=90),
    Lab("3024-7", "Thyroxine, free", "ng/dL", 1.2, 0.16, 1, {"E03.9": 0.6, "E05.90": 0.9}, {"E03.9": -2.0,
        "H03AA01": 1.6, "E05.90": 4.0, "H03BB02": -2.4}, low=0.2, high=8),
    Lab("48066-5", "D-dimer", "ng/mL", 300, 0.5, 0, {"I82.409": 0.9, "I26.99": 0.9, "R06.02": 0.4}, {"I82.409": 3.5,
        "I26.99": 4.0, "A41.9": 2.0, "C25.9": 1.5, "ONCOLOGIC": 0.8}, skewed=True, low=50, high=35000),
    Lab("1920-8", "Aspartate aminotransferase", "U/L", 22, 0.28, 0, {"K74.60": 0.8, "B18.2": 0.9, "CHECKUP": 0.3},
        {"K74.60": 2.0, "B18.2": 1.8, "J05AP55": -1.5, "F10.20": 1.5, "I21.4": 2.0}, skewed=True, low=5, high=3000),
    Lab("2601-3", "Magnesium", "mmol/L", 0.85, 0.07, 2, {"WARD": 0.4, "INTENSIVE": 0.9, "E87.6": 0.7}, {"E87.6": -1.6,
        "F10.20": -1.2, "C03CA01": -0.6, "N18.4": 1.2}, low=0.2, high=2.5),
    Lab("24467-3", "CD4 cells", "/uL", 750, 0.3, 0, {"B20": 0.85}, {"B20": -3.0, "J05AR20": 1.8}, skewed=True, low=5,
        high=2000),
    Lab("3040-3", "Lipase", "U/L", 32, 0.35, 0, {"R10.9": 0.6, "K85.90": 0.95}, {"K85.90": 8.0, "F10.20": 0.6},
        skewed=True, low=5, high=5000),
)
# fmt: on
