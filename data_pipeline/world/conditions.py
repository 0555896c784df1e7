"""The world's conditions: what subjects suffer from, how often, and what leads to what.

Codes are ICD-10-CM code numbers; the short descriptions are our own. Numbers are invented to be plausible, not
estimated from anyone's data.
"""

import dataclasses

# The hidden phenotype of a subject: the only thing about a subject that no token ever tells. Each but the last makes
# the conditions of its group several times as likely; ROBUST makes all of them rarer.
PHENOTYPES = (
    "METABOLIC",
    "CARDIAC",
    "RESPIRATORY",
    "NEUROPSYCHIATRIC",
    "ONCOLOGIC",
    "INFLAMMATORY",
    "RENAL",
    "ROBUST",
)
PHENOTYPE_SHARES = (0.15, 0.14, 0.11, 0.12, 0.08, 0.12, 0.08, 0.20)
# Added to the log hazard of a condition: of the phenotype's own group, of another group, of any group when ROBUST.
OWN_GROUP, OTHER_GROUP, ROBUST_ALL = 1.4, -0.35, -1.1


@dataclasses.dataclass(frozen=True)
class Chronic:
    """A condition that stays: `share` is its prevalence at 60 in the mean of phenotypes, before the age slope.

    `slope` is the change of log prevalence per ten years of age; `visits` and `emergencies` are what it adds to the
    rates of office and emergency visits (per month); `death` is added to the log hazard of death. With `requires`, it
    never comes before that condition, and `share` is then its hazard per year. `onset` multiplies how fast it comes
    after the first encounter.
    """

    code: str
    description: str
    group: str
    department: str
    share: float
    slope: float = 0.3
    sex: str = ""
    requires: str = ""
    visits: float = 0.004
    emergencies: float = 0.001
    death: float = 0.05
    onset: float = 1.0


@dataclasses.dataclass(frozen=True)
class Acute:
    """A condition that passes with its encounter (and those that follow it directly).

    `severity` is added to the logit of being admitted, `intensive` to that of intensive care, `death` to that of dying
    in hospital; `inpatient` is the probability that it complicates any hospital stay.
    """

    code: str
    description: str
    group: str
    department: str
    severity: float = -1.0
    intensive: float = 0.0
    death: float = 0.0
    requires: str = ""
    inpatient: float = 0.0


# One entry, few lines: a table.
# fmt: off
CHRONIC = (
    Chronic("I10", "Essential hypertension", "CARDIAC", "PRIMARY_CARE", 0.36, 0.35, visits=0.01),
    Chronic("E78.5", "Hyperlipidemia", "METABOLIC", "PRIMARY_CARE", 0.28, 0.25),
    Chronic("E66.9", "Obesity", "METABOLIC", "PRIMARY_CARE", 0.2, -0.05),
    Chronic("K21.9", "Gastro-esophageal reflux", "INFLAMMATORY", "GASTROENTEROLOGY", 0.15, 0.1),
    Chronic("E11.9", "Type 2 diabetes", "METABOLIC", "ENDOCRINOLOGY", 0.12, 0.25, visits=0.02, emergencies=0.0022,
        death=0.25, onset=3.6),
    Chronic("F41.1", "Anxiety disorder", "NEUROPSYCHIATRIC", "PSYCHIATRY", 0.11, -0.15, emergencies=0.0033),
    Chronic("F32.9", "Depression", "NEUROPSYCHIATRIC", "PSYCHIATRY", 0.1, -0.05, visits=0.015, emergencies=0.0028,
        death=0.1),
    Chronic("M54.50", "Low back pain", "INFLAMMATORY", "ORTHOPEDICS", 0.1, 0.05),
    Chronic("F17.210", "Nicotine dependence", "RESPIRATORY", "PRIMARY_CARE", 0.1, -0.1, visits=0.002, death=0.2),
    Chronic("R73.03", "Prediabetes", "METABOLIC", "PRIMARY_CARE", 0.09, 0.15),
    Chronic("M17.9", "Osteoarthritis of knee", "INFLAMMATORY", "ORTHOPEDICS", 0.08, 0.45, visits=0.0075),
    Chronic("J30.9", "Allergic rhinitis", "RESPIRATORY", "PRIMARY_CARE", 0.08, -0.15, visits=0.0025),
    Chronic("E55.9", "Vitamin D deficiency", "METABOLIC", "PRIMARY_CARE", 0.07, 0.05, visits=0.002),
    Chronic("I25.10", "Coronary artery disease", "CARDIAC", "CARDIOLOGY", 0.07, 0.5, visits=0.015, emergencies=0.0039,
        death=0.35),
    Chronic("J45.909", "Asthma", "RESPIRATORY", "PULMONOLOGY", 0.07, -0.15, visits=0.01, emergencies=0.0033),
    Chronic("G47.33", "Obstructive sleep apnea", "METABOLIC", "PULMONOLOGY", 0.065, 0.1),
    Chronic("G47.00", "Insomnia", "NEUROPSYCHIATRIC", "PSYCHIATRY", 0.06, 0.1),
    Chronic("E03.9", "Hypothyroidism", "METABOLIC", "ENDOCRINOLOGY", 0.06, 0.2, sex="F"),
    Chronic("N40.1", "Enlarged prostate", "RENAL", "PRIMARY_CARE", 0.06, 0.5, sex="M"),
    Chronic("J44.9", "Chronic obstructive pulmonary disease", "RESPIRATORY", "PULMONOLOGY", 0.05, 0.45, visits=0.02,
        emergencies=0.0077, death=0.5),
    Chronic("N18.30", "Chronic kidney disease stage 3", "RENAL", "NEPHROLOGY", 0.045, 0.5, visits=0.015,
        emergencies=0.0033, death=0.4),
    Chronic("H26.9", "Cataract", "RENAL", "OPHTHALMOLOGY", 0.045, 0.8),
    Chronic("K76.0", "Fatty liver", "METABOLIC", "GASTROENTEROLOGY", 0.04, 0.05),
    Chronic("G43.909", "Migraine", "NEUROPSYCHIATRIC", "NEUROLOGY", 0.04, -0.3, emergencies=0.0028),
    Chronic("D64.9", "Anemia", "ONCOLOGIC", "PRIMARY_CARE", 0.04, 0.3, death=0.2),
    Chronic("M81.0", "Osteoporosis", "INFLAMMATORY", "ENDOCRINOLOGY", 0.04, 0.6, sex="F"),
    Chronic("K57.30", "Diverticulosis", "INFLAMMATORY", "GASTROENTEROLOGY", 0.035, 0.35),
    Chronic("M10.9", "Gout", "METABOLIC", "RHEUMATOLOGY", 0.03, 0.2),
    Chronic("D12.6", "Colon polyps", "ONCOLOGIC", "GASTROENTEROLOGY", 0.03, 0.35),
    Chronic("I48.91", "Atrial fibrillation", "CARDIAC", "CARDIOLOGY", 0.03, 0.7, visits=0.02, emergencies=0.0044,
        death=0.35),
    Chronic("H40.9", "Glaucoma", "RENAL", "OPHTHALMOLOGY", 0.025, 0.45, visits=0.015),
    Chronic("F10.20", "Alcohol dependence", "NEUROPSYCHIATRIC", "PSYCHIATRY", 0.025, -0.1, emergencies=0.0083,
        death=0.35),
    Chronic("K58.9", "Irritable bowel syndrome", "INFLAMMATORY", "GASTROENTEROLOGY", 0.025, -0.2),
    Chronic("I73.9", "Peripheral vascular disease", "CARDIAC", "CARDIOLOGY", 0.022, 0.5, death=0.3),
    Chronic("G62.9", "Polyneuropathy", "NEUROPSYCHIATRIC", "NEUROLOGY", 0.02, 0.35),
    Chronic("I50.9", "Heart failure", "CARDIAC", "CARDIOLOGY", 0.02, 0.6, visits=0.03, emergencies=0.011, death=0.8,
        onset=2.5),
    Chronic("N20.0", "Kidney stones", "RENAL", "NEPHROLOGY", 0.02, 0.0, emergencies=0.0044),
    Chronic("L40.9", "Psoriasis", "INFLAMMATORY", "RHEUMATOLOGY", 0.018, 0.0),
    Chronic("J32.9", "Chronic sinusitis", "RESPIRATORY", "PRIMARY_CARE", 0.018, -0.1),
    Chronic("M79.7", "Fibromyalgia", "INFLAMMATORY", "RHEUMATOLOGY", 0.016, -0.05, sex="F"),
    Chronic("F03.90", "Dementia", "NEUROPSYCHIATRIC", "NEUROLOGY", 0.014, 1.1, emergencies=0.0066, death=0.9),
    Chronic("H35.30", "Macular degeneration", "RENAL", "OPHTHALMOLOGY", 0.014, 0.9, visits=0.02),
    Chronic("C61", "Prostate cancer", "ONCOLOGIC", "ONCOLOGY", 0.014, 0.6, sex="M", visits=0.03, death=0.3),
    Chronic("C50.919", "Breast cancer", "ONCOLOGIC", "ONCOLOGY", 0.014, 0.35, sex="F", visits=0.05, death=0.5),
    Chronic("I35.0", "Aortic stenosis", "CARDIAC", "CARDIOLOGY", 0.012, 0.9, visits=0.015, death=0.4),
    Chronic("M06.9", "Rheumatoid arthritis", "INFLAMMATORY", "RHEUMATOLOGY", 0.012, 0.2, visits=0.03, death=0.15),
    Chronic("R32", "Urinary incontinence", "RENAL", "PRIMARY_CARE", 0.012, 0.6),
    Chronic("I34.0", "Mitral insufficiency", "CARDIAC", "CARDIOLOGY", 0.01, 0.6),
    Chronic("F31.9", "Bipolar disorder", "NEUROPSYCHIATRIC", "PSYCHIATRY", 0.01, -0.15, visits=0.025,
        emergencies=0.0066),
    Chronic("F11.20", "Opioid dependence", "NEUROPSYCHIATRIC", "PSYCHIATRY", 0.01, -0.25, visits=0.03,
        emergencies=0.011, death=0.5),
    Chronic("G40.909", "Epilepsy", "NEUROPSYCHIATRIC", "NEUROLOGY", 0.01, 0.0, visits=0.02, emergencies=0.0099,
        death=0.25),
    Chronic("R54", "Frailty", "RENAL", "PRIMARY_CARE", 0.009, 1.2, emergencies=0.0077, death=0.9),
    Chronic("E53.8", "Vitamin B12 deficiency", "NEUROPSYCHIATRIC", "PRIMARY_CARE", 0.009, 0.4),
    Chronic("G20.A1", "Parkinson disease", "NEUROPSYCHIATRIC", "NEUROLOGY", 0.006, 0.9, visits=0.025,
        emergencies=0.0055, death=0.5),
    Chronic("C18.9", "Colon cancer", "ONCOLOGIC", "ONCOLOGY", 0.006, 0.6, visits=0.06, emergencies=0.0066, death=0.9),
    Chronic("I71.40", "Abdominal aortic aneurysm", "CARDIAC", "CARDIOLOGY", 0.005, 0.8, death=0.3),
    Chronic("K51.90", "Ulcerative colitis", "INFLAMMATORY", "GASTROENTEROLOGY", 0.005, -0.15, visits=0.03,
        emergencies=0.0066),
    Chronic("C34.90", "Lung cancer", "ONCOLOGIC", "ONCOLOGY", 0.004, 0.6, visits=0.075, emergencies=0.0138,
        death=1.7),
    Chronic("K50.90", "Crohn disease", "INFLAMMATORY", "GASTROENTEROLOGY", 0.004, -0.2, visits=0.03,
        emergencies=0.0088),
    Chronic("C43.9", "Melanoma of skin", "ONCOLOGIC", "ONCOLOGY", 0.004, 0.3, visits=0.03, death=0.4),
    Chronic("F20.9", "Schizophrenia", "NEUROPSYCHIATRIC", "PSYCHIATRY", 0.004, -0.1, visits=0.03, emergencies=0.011,
        death=0.35),
    Chronic("J84.10", "Pulmonary fibrosis", "RESPIRATORY", "PULMONOLOGY", 0.003, 0.7, visits=0.04, emergencies=0.011,
        death=1.1),
    Chronic("J47.9", "Bronchiectasis", "RESPIRATORY", "PULMONOLOGY", 0.003, 0.4, visits=0.025, emergencies=0.0077,
        death=0.3),
    Chronic("K74.60", "Cirrhosis of liver", "NEUROPSYCHIATRIC", "GASTROENTEROLOGY", 0.003, 0.3, visits=0.03,
        emergencies=0.0165, death=1.2),
    Chronic("M32.9", "Systemic lupus erythematosus", "INFLAMMATORY", "RHEUMATOLOGY", 0.002, -0.2, sex="F",
        visits=0.04, emergencies=0.0077),
    Chronic("G35", "Multiple sclerosis", "NEUROPSYCHIATRIC", "NEUROLOGY", 0.002, -0.1, visits=0.03),
    Chronic("C83.30", "Large B-cell lymphoma", "ONCOLOGIC", "ONCOLOGY", 0.002, 0.4, visits=0.075, emergencies=0.0165,
        death=1.1),
    Chronic("C90.00", "Multiple myeloma", "ONCOLOGIC", "ONCOLOGY", 0.002, 0.6, visits=0.075, emergencies=0.0138,
        death=1.1),
    Chronic("E27.40", "Adrenal insufficiency", "METABOLIC", "ENDOCRINOLOGY", 0.001, 0.1, visits=0.025,
        emergencies=0.011),
    Chronic("H90.3", "Sensorineural hearing loss", "NEUROPSYCHIATRIC", "PRIMARY_CARE", 0.055, 0.7, visits=0.002),
    Chronic("L30.9", "Dermatitis", "INFLAMMATORY", "DERMATOLOGY", 0.05, 0.0, visits=0.006),
    Chronic("K59.00", "Constipation", "INFLAMMATORY", "PRIMARY_CARE", 0.036, 0.25),
    Chronic("I83.90", "Varicose veins", "CARDIAC", "PRIMARY_CARE", 0.028, 0.3),
    Chronic("M47.816", "Lumbar spondylosis", "INFLAMMATORY", "ORTHOPEDICS", 0.027, 0.4, visits=0.008),
    Chronic("E66.01", "Morbid obesity", "METABOLIC", "ENDOCRINOLOGY", 0.026, -0.05, visits=0.01, emergencies=0.0015,
        death=0.25),
    Chronic("L57.0", "Actinic keratosis", "ONCOLOGIC", "DERMATOLOGY", 0.025, 0.6, visits=0.008),
    Chronic("H52.4", "Presbyopia", "RENAL", "OPHTHALMOLOGY", 0.024, 0.3, visits=0.006),
    Chronic("N95.1", "Menopausal symptoms", "METABOLIC", "GYNECOLOGY", 0.022, 0.1, sex="F", visits=0.008),
    Chronic("M16.9", "Osteoarthritis of hip", "INFLAMMATORY", "ORTHOPEDICS", 0.021, 0.5, visits=0.008),
    Chronic("D50.9", "Iron deficiency anemia", "ONCOLOGIC", "PRIMARY_CARE", 0.02, 0.15, death=0.1),
    Chronic("F90.9", "Attention deficit disorder", "NEUROPSYCHIATRIC", "PSYCHIATRY", 0.018, -0.5, visits=0.02),
    Chronic("D25.9", "Uterine fibroids", "ONCOLOGIC", "GYNECOLOGY", 0.017, 0.0, sex="F", visits=0.008),
    Chronic("F43.10", "Post-traumatic stress disorder", "NEUROPSYCHIATRIC", "PSYCHIATRY", 0.016, -0.2, visits=0.02,
        emergencies=0.004),
    Chronic("I87.2", "Venous insufficiency", "CARDIAC", "CARDIOLOGY", 0.015, 0.5, visits=0.005),
    Chronic("E05.90", "Hyperthyroidism", "METABOLIC", "ENDOCRINOLOGY", 0.011, 0.1, visits=0.015),
    Chronic("H04.129", "Dry eye", "RENAL", "OPHTHALMOLOGY", 0.011, 0.4, visits=0.008),
    Chronic("N80.9", "Endometriosis", "INFLAMMATORY", "GYNECOLOGY", 0.009, -0.4, sex="F", visits=0.015,
        emergencies=0.002),
    Chronic("G56.00", "Carpal tunnel syndrome", "INFLAMMATORY", "ORTHOPEDICS", 0.009, 0.1, visits=0.008),
    Chronic("G25.81", "Restless legs syndrome", "NEUROPSYCHIATRIC", "NEUROLOGY", 0.008, 0.3, visits=0.008),
    Chronic("L71.9", "Rosacea", "INFLAMMATORY", "DERMATOLOGY", 0.008, 0.0, visits=0.008),
    Chronic("N52.9", "Erectile dysfunction", "RENAL", "UROLOGY", 0.02, 0.4, sex="M", visits=0.006),
    Chronic("I42.9", "Cardiomyopathy", "CARDIAC", "CARDIOLOGY", 0.006, 0.4, visits=0.02, emergencies=0.0066,
        death=0.5),
    Chronic("B18.2", "Chronic hepatitis C", "NEUROPSYCHIATRIC", "GASTROENTEROLOGY", 0.006, 0.0, visits=0.01,
        death=0.2),
    Chronic("C44.91", "Basal cell carcinoma", "ONCOLOGIC", "DERMATOLOGY", 0.014, 0.7, visits=0.012),
    Chronic("N31.9", "Neurogenic bladder", "RENAL", "UROLOGY", 0.005, 0.4, visits=0.012, emergencies=0.0044),
    Chronic("C67.9", "Bladder cancer", "ONCOLOGIC", "UROLOGY", 0.004, 0.7, visits=0.04, death=0.5),
    Chronic("C64.9", "Kidney cancer", "ONCOLOGIC", "UROLOGY", 0.0035, 0.5, visits=0.04, death=0.6),
    Chronic("C73", "Thyroid cancer", "ONCOLOGIC", "ENDOCRINOLOGY", 0.0035, 0.0, visits=0.025, death=0.1),
    Chronic("D86.9", "Sarcoidosis", "RESPIRATORY", "PULMONOLOGY", 0.003, 0.0, visits=0.025),
    Chronic("K90.0", "Celiac disease", "INFLAMMATORY", "GASTROENTEROLOGY", 0.005, -0.1, visits=0.012),
    Chronic("M45.9", "Ankylosing spondylitis", "INFLAMMATORY", "RHEUMATOLOGY", 0.0025, -0.1, visits=0.03),
    Chronic("C56.9", "Ovarian cancer", "ONCOLOGIC", "GYNECOLOGY", 0.002, 0.4, sex="F", visits=0.06,
        emergencies=0.0088, death=1.0),
    Chronic("C91.10", "Chronic lymphocytic leukemia", "ONCOLOGIC", "ONCOLOGY", 0.003, 0.7, visits=0.03, death=0.4),
    Chronic("B20", "HIV disease", "INFLAMMATORY", "INTERNAL_MEDICINE", 0.004, -0.2, visits=0.03, death=0.2),
    Chronic("I27.20", "Pulmonary hypertension", "RESPIRATORY", "CARDIOLOGY", 0.004, 0.6, visits=0.02,
        emergencies=0.0066, death=0.7),
    Chronic("G70.00", "Myasthenia gravis", "NEUROPSYCHIATRIC", "NEUROLOGY", 0.001, 0.3, visits=0.03,
        emergencies=0.0066),
    Chronic("C25.9", "Pancreatic cancer", "ONCOLOGIC", "ONCOLOGY", 0.001, 0.6, visits=0.08, emergencies=0.0165,
        death=1.9),
    Chronic("G12.21", "Amyotrophic lateral sclerosis", "NEUROPSYCHIATRIC", "NEUROLOGY", 0.0006, 0.4, visits=0.05,
        emergencies=0.011, death=1.7),
    # Stages and complications: never before what they require; share = hazard per year once that is there.
    Chronic("E11.65", "Type 2 diabetes with hyperglycemia", "METABOLIC", "ENDOCRINOLOGY", 0.08, 0.0, requires="E11.9",
        visits=0.01),
    Chronic("E11.40", "Type 2 diabetes with neuropathy", "METABOLIC", "ENDOCRINOLOGY", 0.05, 0.1, requires="E11.9"),
    Chronic("E11.22", "Type 2 diabetes with kidney disease", "RENAL", "NEPHROLOGY", 0.05, 0.1, requires="E11.9",
        death=0.2),
    Chronic("E11.319", "Type 2 diabetes with retinopathy", "RENAL", "OPHTHALMOLOGY", 0.035, 0.1, requires="E11.9"),
    Chronic("I25.2", "Old myocardial infarction", "CARDIAC", "CARDIOLOGY", 0.6, 0.0, requires="I21.4", death=0.2),
    Chronic("I48.20", "Chronic atrial fibrillation", "CARDIAC", "CARDIOLOGY", 0.12, 0.1, requires="I48.91",
        visits=0.0075),
    Chronic("I50.22", "Chronic systolic heart failure", "CARDIAC", "CARDIOLOGY", 0.22, 0.0, requires="I50.9",
        visits=0.01, emergencies=0.0083, death=0.35),
    Chronic("I69.30", "Sequelae of stroke", "NEUROPSYCHIATRIC", "NEUROLOGY", 0.7, 0.0, requires="I63.9", death=0.35),
    Chronic("Z95.1", "Coronary bypass graft in place", "CARDIAC", "CARDIOLOGY", 0.03, 0.0, requires="I25.10"),
    Chronic("Z95.0", "Pacemaker in place", "CARDIAC", "CARDIOLOGY", 0.05, 0.2, requires="I48.91"),
    Chronic("N18.4", "Chronic kidney disease stage 4", "RENAL", "NEPHROLOGY", 0.07, 0.0, requires="N18.30",
        visits=0.015, emergencies=0.0044, death=0.4),
    Chronic("N18.6", "End-stage kidney disease", "RENAL", "NEPHROLOGY", 0.14, 0.0, requires="N18.4", visits=0.075,
        emergencies=0.0138, death=0.7),
    Chronic("D63.1", "Anemia in kidney disease", "RENAL", "NEPHROLOGY", 0.08, 0.0, requires="N18.30"),
    Chronic("J96.11", "Chronic respiratory failure", "RESPIRATORY", "PULMONOLOGY", 0.06, 0.1, requires="J44.9",
        emergencies=0.0138, death=0.7),
    Chronic("Z99.81", "Dependence on oxygen", "RESPIRATORY", "PULMONOLOGY", 0.35, 0.0, requires="J96.11", death=0.3),
    Chronic("Z79.4", "Long-term use of insulin", "METABOLIC", "ENDOCRINOLOGY", 0.3, 0.0, requires="E11.65"),
    Chronic("Z95.5", "Coronary stent in place", "CARDIAC", "CARDIOLOGY", 0.45, 0.0, requires="I21.4"),
    Chronic("Z99.2", "Dependence on dialysis", "RENAL", "NEPHROLOGY", 0.7, 0.0, requires="N18.6", visits=0.05,
        emergencies=0.0088, death=0.4),
    Chronic("I85.00", "Esophageal varices", "NEUROPSYCHIATRIC", "GASTROENTEROLOGY", 0.12, 0.0, requires="K74.60",
        emergencies=0.0066, death=0.4),
    Chronic("K76.6", "Portal hypertension", "NEUROPSYCHIATRIC", "GASTROENTEROLOGY", 0.15, 0.0, requires="K74.60",
        death=0.4),
    Chronic("F33.1", "Recurrent depression", "NEUROPSYCHIATRIC", "PSYCHIATRY", 0.09, 0.0, requires="F32.9",
        visits=0.01, emergencies=0.0022),
    Chronic("I11.9", "Hypertensive heart disease", "CARDIAC", "CARDIOLOGY", 0.01, 0.3, requires="I10", death=0.15),
    Chronic("C79.51", "Bone metastasis", "ONCOLOGIC", "ONCOLOGY", 0.06, 0.0, requires="C61", visits=0.04,
        emergencies=0.011, death=1.2),
    Chronic("C79.9", "Metastatic cancer", "ONCOLOGIC", "ONCOLOGY", 0.25, 0.0, requires="C34.90", visits=0.05,
        emergencies=0.0165, death=1.5),
    Chronic("C78.7", "Liver metastasis", "ONCOLOGIC", "ONCOLOGY", 0.15, 0.0, requires="C18.9", visits=0.05,
        emergencies=0.0165, death=1.6),
)
# fmt: on

# One entry, few lines: a table.
# fmt: off
ACUTE = (
    Acute("Z00.00", "General adult examination", "ROBUST", "PRIMARY_CARE", -4.0),
    Acute("Z23", "Encounter for immunization", "ROBUST", "PRIMARY_CARE", -4.0),
    Acute("J06.9", "Acute upper respiratory infection", "RESPIRATORY", "PRIMARY_CARE", -3.0),
    Acute("J10.1", "Influenza", "RESPIRATORY", "INTERNAL_MEDICINE", -1.2),
    Acute("U07.1", "COVID-19", "RESPIRATORY", "INTERNAL_MEDICINE", -0.3, 0.4, 0.4),
    Acute("J18.9", "Pneumonia", "RESPIRATORY", "INTERNAL_MEDICINE", 1.6, 0.4, 0.5, inpatient=0.03),
    Acute("J44.1", "Exacerbation of COPD", "RESPIRATORY", "INTERNAL_MEDICINE", 1.6, 0.3, 0.2, requires="J44.9"),
    Acute("J45.901", "Exacerbation of asthma", "RESPIRATORY", "INTERNAL_MEDICINE", -0.3, 0.2, requires="J45.909"),
    Acute("J96.01", "Acute respiratory failure", "RESPIRATORY", "INTERNAL_MEDICINE", 3.0, 2.0, 1.2, inpatient=0.03),
    Acute("I21.4", "Myocardial infarction", "CARDIAC", "CARDIOLOGY", 4.0, 1.4, 0.7),
    Acute("I63.9", "Ischemic stroke", "NEUROPSYCHIATRIC", "NEUROLOGY", 4.0, 0.8, 0.7),
    Acute("G45.9", "Transient ischemic attack", "NEUROPSYCHIATRIC", "NEUROLOGY", 1.2),
    Acute("I50.23", "Acute on chronic heart failure", "CARDIAC", "CARDIOLOGY", 2.6, 0.3, 0.4, requires="I50.9"),
    Acute("I26.99", "Pulmonary embolism", "RESPIRATORY", "INTERNAL_MEDICINE", 2.6, 0.7, 0.4),
    Acute("R07.9", "Chest pain", "CARDIAC", "CARDIOLOGY", -0.8),
    Acute("R55", "Syncope", "CARDIAC", "CARDIOLOGY", -0.2),
    Acute("R10.9", "Abdominal pain", "INFLAMMATORY", "INTERNAL_MEDICINE", -1.6),
    Acute("A09", "Gastroenteritis", "INFLAMMATORY", "INTERNAL_MEDICINE", -1.6),
    Acute("K35.80", "Acute appendicitis", "ROBUST", "SURGERY", 3.5),
    Acute("K81.0", "Acute cholecystitis", "METABOLIC", "SURGERY", 2.8),
    Acute("K85.90", "Acute pancreatitis", "NEUROPSYCHIATRIC", "INTERNAL_MEDICINE", 2.8, 0.4, 0.2),
    Acute("K92.2", "Gastrointestinal bleeding", "INFLAMMATORY", "INTERNAL_MEDICINE", 2.2, 0.5, 0.4),
    Acute("A41.9", "Sepsis", "RENAL", "INTERNAL_MEDICINE", 4.0, 1.7, 1.4, inpatient=0.03),
    Acute("N17.9", "Acute kidney injury", "RENAL", "INTERNAL_MEDICINE", 1.8, 0.4, 0.6, inpatient=0.1),
    Acute("N39.0", "Urinary tract infection", "RENAL", "INTERNAL_MEDICINE", -1.2, inpatient=0.05),
    Acute("L03.90", "Cellulitis", "METABOLIC", "INTERNAL_MEDICINE", 0.0),
    Acute("E87.1", "Hyponatremia", "NEUROPSYCHIATRIC", "INTERNAL_MEDICINE", 1.0, inpatient=0.06),
    Acute("E16.2", "Hypoglycemia", "METABOLIC", "INTERNAL_MEDICINE", 0.0, requires="E11.9"),
    Acute("D70.1", "Neutropenia after chemotherapy", "ONCOLOGIC", "ONCOLOGY", 2.4, 0.4, 0.5, requires="C79.9"),
    Acute("F10.239", "Alcohol withdrawal", "NEUROPSYCHIATRIC", "INTERNAL_MEDICINE", 1.2, 0.4, requires="F10.20"),
    Acute("T50.901A", "Poisoning by drug", "NEUROPSYCHIATRIC", "INTERNAL_MEDICINE", 1.2, 1.0, 0.3),
    Acute("S72.009A", "Fracture of femur neck", "RENAL", "ORTHOPEDICS", 4.5, 0.0, 0.5),
    Acute("S93.409A", "Ankle sprain", "ROBUST", "ORTHOPEDICS", -3.5),
    Acute("S06.0X0A", "Concussion", "ROBUST", "NEUROLOGY", -1.5),
    Acute("R51.9", "Headache", "NEUROPSYCHIATRIC", "NEUROLOGY", -2.5),
    Acute("R42", "Dizziness", "NEUROPSYCHIATRIC", "NEUROLOGY", -1.6),
    Acute("M25.50", "Joint pain", "INFLAMMATORY", "ORTHOPEDICS", -3.0),
    Acute("R53.83", "Fatigue", "NEUROPSYCHIATRIC", "PRIMARY_CARE", -2.5),
    Acute("J20.9", "Acute bronchitis", "RESPIRATORY", "PRIMARY_CARE", -2.2),
    Acute("J01.90", "Acute sinusitis", "RESPIRATORY", "PRIMARY_CARE", -3.0),
    Acute("H66.90", "Otitis media", "RESPIRATORY", "PRIMARY_CARE", -3.0),
    Acute("H10.9", "Conjunctivitis", "ROBUST", "OPHTHALMOLOGY", -3.5),
    Acute("L50.9", "Urticaria", "INFLAMMATORY", "DERMATOLOGY", -2.5),
    Acute("B02.9", "Herpes zoster", "INFLAMMATORY", "DERMATOLOGY", -1.8),
    Acute("I82.409", "Deep vein thrombosis", "CARDIAC", "INTERNAL_MEDICINE", 0.8, 0.0, 0.2, inpatient=0.01),
    Acute("I16.0", "Hypertensive urgency", "CARDIAC", "CARDIOLOGY", 0.3),
    Acute("I47.1", "Supraventricular tachycardia", "CARDIAC", "CARDIOLOGY", 0.3),
    Acute("I46.9", "Cardiac arrest", "CARDIAC", "CARDIOLOGY", 4.5, 2.5, 2.2, inpatient=0.005),
    Acute("I61.9", "Intracerebral hemorrhage", "NEUROPSYCHIATRIC", "NEUROLOGY", 4.5, 1.8, 1.5),
    Acute("K56.60", "Bowel obstruction", "INFLAMMATORY", "SURGERY", 3.0, 0.2, 0.3),
    Acute("K57.32", "Diverticulitis", "INFLAMMATORY", "SURGERY", 1.2, 0.0, 0.1, requires="K57.30"),
    Acute("K80.20", "Gallstones", "METABOLIC", "SURGERY", -0.3),
    Acute("N23", "Renal colic", "RENAL", "UROLOGY", -0.8),
    Acute("R33.9", "Urinary retention", "RENAL", "UROLOGY", 0.2, inpatient=0.02),
    Acute("E86.0", "Dehydration", "RENAL", "INTERNAL_MEDICINE", 0.6, inpatient=0.03),
    Acute("E87.6", "Hypokalemia", "RENAL", "INTERNAL_MEDICINE", 0.4, inpatient=0.05),
    Acute("R41.0", "Delirium", "NEUROPSYCHIATRIC", "NEUROLOGY", 1.6, 0.2, 0.5, inpatient=0.03),
    Acute("A04.72", "Clostridioides difficile colitis", "INFLAMMATORY", "INTERNAL_MEDICINE", 1.4, 0.2, 0.4,
        inpatient=0.01),
    Acute("M10.00", "Acute gout", "METABOLIC", "RHEUMATOLOGY", -1.2, requires="M10.9"),
    Acute("G40.901", "Status epilepticus", "NEUROPSYCHIATRIC", "NEUROLOGY", 2.4, 1.4, 0.5, requires="G40.909"),
    Acute("S61.409A", "Laceration of hand", "ROBUST", "SURGERY", -3.0),
    Acute("S52.501A", "Fracture of distal radius", "ROBUST", "ORTHOPEDICS", -0.8),
    Acute("M54.2", "Neck pain", "INFLAMMATORY", "ORTHOPEDICS", -3.0),
    Acute("R11.2", "Nausea with vomiting", "INFLAMMATORY", "INTERNAL_MEDICINE", -1.8),
    Acute("R06.02", "Shortness of breath", "RESPIRATORY", "INTERNAL_MEDICINE", -0.6),
    Acute("F10.129", "Alcohol intoxication", "NEUROPSYCHIATRIC", "INTERNAL_MEDICINE", -1.6),
    Acute("R45.851", "Suicidal ideation", "NEUROPSYCHIATRIC", "PSYCHIATRY", 1.8),
    Acute("Z12.11", "Screening for colon cancer", "ROBUST", "GASTROENTEROLOGY", -4.0),
    Acute("R50.9", "Fever", "RENAL", "INTERNAL_MEDICINE", -0.8),
)
# fmt: on

# (cause, effect, weight): once `cause` has been coded, `weight` is added to the log hazard of a chronic effect, or to
# the logit of an acute one.
# One entry, few lines: a table.
# fmt: off
CASCADES = (
    ("R73.03", "E11.9", 2.6), ("E66.9", "E11.9", 1.0), ("K76.0", "E11.9", 0.6), ("E66.9", "R73.03", 0.9),
    ("E66.9", "G47.33", 1.3), ("E66.9", "K76.0", 1.1), ("E66.9", "I10", 0.6), ("E66.9", "M17.9", 0.7),
    ("E11.9", "E78.5", 0.9), ("E11.9", "N18.30", 1.4), ("E11.9", "I25.10", 0.9), ("E11.9", "I73.9", 1.0),
    ("E11.9", "I50.9", 0.6), ("E11.65", "E11.40", 0.8), ("E11.65", "E11.319", 0.8), ("N18.30", "E11.22", 1.6),
    ("E11.9", "L03.90", 0.8), ("E11.65", "E16.2", 0.8), ("I10", "I48.91", 0.9), ("I10", "N18.30", 0.8),
    ("I10", "I25.10", 0.9), ("I10", "I50.9", 0.8), ("I10", "I63.9", 0.6), ("E78.5", "I25.10", 0.7),
    ("E78.5", "I73.9", 0.5), ("F17.210", "I25.10", 0.6), ("F17.210", "J44.9", 1.8), ("F17.210", "C34.90", 1.9),
    ("F17.210", "I73.9", 0.9), ("F17.210", "I71.40", 0.9), ("I25.10", "I50.9", 1.4), ("I25.10", "I21.4", 1.4),
    ("I25.2", "I50.9", 1.0), ("I21.4", "I50.9", 0.8), ("I48.91", "I50.9", 1.1), ("I48.91", "I63.9", 1.4),
    ("I35.0", "I50.9", 0.9), ("I34.0", "I50.9", 0.7), ("I34.0", "I48.91", 0.8), ("N18.30", "I50.9", 0.9),
    ("I50.9", "I48.91", 0.9), ("I50.9", "N18.30", 0.8), ("I50.9", "I50.23", 1.0), ("I50.22", "I50.23", 1.0),
    ("G47.33", "I48.91", 0.6), ("N18.4", "N17.9", 0.9), ("N18.30", "N17.9", 0.9), ("N18.30", "M10.9", 0.8),
    ("I63.9", "F03.90", 0.9), ("I69.30", "G40.909", 1.0), ("J44.9", "J44.1", 1.6), ("J44.9", "J18.9", 0.9),
    ("J96.11", "J44.1", 1.2), ("J96.11", "J96.01", 1.4), ("J45.909", "J45.901", 1.5), ("J30.9", "J45.909", 0.9),
    ("J44.9", "C34.90", 0.8), ("J47.9", "J18.9", 0.9), ("F10.20", "K74.60", 2.2), ("F10.20", "K85.90", 1.6),
    ("F10.20", "F10.239", 1.8), ("K76.0", "K74.60", 0.9), ("K74.60", "K92.2", 1.6), ("F11.20", "T50.901A", 1.8),
    ("F32.9", "T50.901A", 0.8), ("F41.1", "F32.9", 1.1), ("F32.9", "F41.1", 1.0), ("F32.9", "G47.00", 1.0),
    ("M54.50", "F11.20", 0.9), ("M54.50", "F32.9", 0.4), ("M79.7", "F32.9", 0.8), ("D12.6", "C18.9", 1.7),
    ("K51.90", "C18.9", 1.3), ("C50.919", "C79.9", 0.3), ("C34.90", "I26.99", 1.2), ("C18.9", "D64.9", 1.2),
    ("C90.00", "D64.9", 1.5), ("C90.00", "N18.30", 1.0), ("M06.9", "M81.0", 0.9), ("M81.0", "S72.009A", 1.4),
    ("R54", "S72.009A", 1.2), ("F03.90", "S72.009A", 0.9), ("F03.90", "R54", 0.9), ("G20.A1", "F03.90", 1.1),
    ("R54", "N39.0", 0.8), ("N40.1", "N39.0", 0.8), ("N18.6", "A41.9", 1.0), ("C79.9", "D70.1", 1.5),
    ("C83.30", "R50.9", 0.9), ("M32.9", "N18.30", 1.3), ("K57.30", "K92.2", 0.9), ("N20.0", "N39.0", 0.9),
    ("G40.909", "R55", 0.7), ("I35.0", "R55", 0.8), ("E66.9", "E66.01", 1.6), ("E66.01", "E11.9", 0.8),
    ("E66.01", "G47.33", 0.7), ("E66.01", "M17.9", 0.6), ("D50.9", "G25.81", 1.2), ("D25.9", "D50.9", 1.3),
    ("I83.90", "I87.2", 1.5), ("I87.2", "L03.90", 0.7), ("I10", "I16.0", 1.6), ("I25.10", "I46.9", 1.3),
    ("I42.9", "I50.9", 2.0), ("I42.9", "I46.9", 1.0), ("J84.10", "I27.20", 1.6), ("J44.9", "I27.20", 1.2),
    ("I27.20", "I50.9", 1.0), ("B18.2", "K74.60", 2.2), ("F11.20", "B18.2", 2.0), ("I85.00", "K92.2", 1.6),
    ("I10", "I61.9", 0.9), ("F43.10", "F32.9", 1.0), ("F43.10", "R45.851", 1.0), ("F33.1", "R45.851", 1.5),
    ("F32.9", "R45.851", 1.2), ("F10.20", "F10.129", 2.0), ("N20.0", "N23", 1.8), ("N40.1", "R33.9", 1.4),
    ("N31.9", "N39.0", 1.4), ("N31.9", "R33.9", 1.2), ("F03.90", "R41.0", 1.6), ("R54", "R41.0", 0.9),
    ("L57.0", "C44.91", 1.4), ("F17.210", "C67.9", 1.2), ("F17.210", "C25.9", 0.8), ("C25.9", "I82.409", 1.4),
    ("C56.9", "I82.409", 1.0), ("I82.409", "I26.99", 1.2), ("M45.9", "M54.50", 0.8), ("E05.90", "I48.91", 0.9),
    ("E11.9", "N52.9", 0.8), ("N95.1", "M81.0", 0.5), ("K80.20", "K81.0", 1.4), ("K80.20", "K85.90", 0.8),
    ("D86.9", "J84.10", 1.0), ("B20", "J18.9", 0.7), ("C91.10", "J18.9", 0.7), ("M10.9", "M10.00", 1.4),
    ("Z99.2", "A41.9", 0.6), ("E11.9", "H26.9", 0.5), ("M47.816", "M54.50", 1.0), ("F90.9", "F41.1", 0.6),
)
# fmt: on
