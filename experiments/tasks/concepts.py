"""Concepts that several families of the suite share, by the names that `data_pipeline.code_maps` gives them.

Diagnoses are told in ICD-10-CM and ICD-9-CM; encounters by type as the world, MIMIC-IV, Synthea and OMOP have them.
Parts of a name stand together without a separator: DIAGNOSIS//ICD10CM//E119, ENCOUNTER//ENCOUNTER_END//INPATIENTHOME.
A code ends (`$`) where rare ones were shortened: DIAGNOSIS//ICD10CM//K81 stands for those of K81 that are rare.
"""

from experiments.tasks.question import Concept, diagnosis

_START, _END = "ENCOUNTER//ENCOUNTER_START//", "ENCOUNTER//ENCOUNTER_END//"

# Ends after which the subject is alive and in no hospital: what follows is a new encounter. Where emergency visits lie
# within stays (MIMIC-IV) their ends say nothing of it, and the stay's diagnoses, told at its end, would be "incident".
_STAY = (rf"{_START}INPATIENT.*", rf"{_END}INPATIENT.*")
WENT_HOME = Concept(
    "the end of an encounter, in no hospital", rf"{_END}(?!ICU)(?!.*(DIED|ADMITTED|TRANSFERRED)).*", _STAY
)
ANY_START = Concept("encounters", rf"{_START}.*")
NEXT_ENCOUNTER = Concept("the next encounter", ANY_START.pattern)
OFFICE_VISITS = Concept(
    "office and telehealth visits", rf"{_START}(OUTPATIENT|TELEHEALTH|AMBULATORY|WELLNESS|VIRTUAL).*"
)
EMERGENCIES = Concept("emergency visits", rf"{_START}EMERGENCY.*")
ADMISSIONS = Concept("hospital admissions", rf"{_START}INPATIENT.*")
EMERGENCY_START = Concept("the start of an emergency visit", EMERGENCIES.pattern)
EMERGENCY_END = Concept("its end", rf"{_END}EMERGENCY.*")
EMERGENCY_HOME = Concept("an emergency visit that ends at home", rf"{_END}EMERGENCY(?!.*(DIED|ADMITTED)).*", _STAY)
ADMISSION = Concept("a hospital admission", ADMISSIONS.pattern)
DISCHARGE = Concept("a discharge from hospital alive", rf"{_END}INPATIENT(?!.*DIED).*")
STAY_END = Concept("the end of the stay", rf"{_END}INPATIENT.*")
DEATH = Concept("death", "DEATH")

DIAGNOSES = Concept("diagnoses", "DIAGNOSIS//.*")
TESTS = Concept("laboratory results", "LAB//.*")
DRUGS = Concept("medications", "MEDICATION//.*")
PROCEDURES = Concept("procedures", "PROCEDURE//.*")

DIABETES = diagnosis("type 2 diabetes", "E11", r"250\d[02]")
# ICD-10-CM codes hypertension with heart or kidney disease as I11 to I13, and not beside them as I10.
HYPERTENSION = diagnosis("hypertension", "I1[0-3]", "40[1-4]")
HYPERLIPIDEMIA = diagnosis("hyperlipidemia", "E78", "272")
CORONARY_DISEASE = diagnosis("coronary artery disease", "I25(1|7|81|9|$)", "414([09]|$)")
HEART_FAILURE = diagnosis("heart failure", "I50", "428")
FIBRILLATION = diagnosis("atrial fibrillation", "I48(?![34]|92)", "42731")
KIDNEY_DISEASE = diagnosis("chronic kidney disease", "N18", "585")
COPD = diagnosis("chronic obstructive pulmonary disease", "J4[34]", "49[126]")
DEPRESSION = diagnosis("depression", "F3[23]", "296[23]|311")
# Of ICD-9-CM no later episodes of care (fifth digit 2).
INFARCTION = diagnosis("myocardial infarction", "I2[12]", r"410(?!\d2)")
# Of ICD-9-CM with infarction only (fifth digit 1), and not an occlusion without.
STROKE = diagnosis("ischemic stroke", "I63", r"43[34]\d1|434\d?$")
PNEUMONIA = diagnosis("pneumonia", "J1[2-8]", "48[0-6]")
ACUTE_KIDNEY_INJURY = diagnosis("acute kidney injury", "N17", "584")
ACUTE_HEART_FAILURE = diagnosis("acute on chronic heart failure", "I50[2-4]3", "428[2-4]3")
COPD_EXACERBATION = diagnosis("an exacerbation of COPD", "J44[01]", "4912[12]")
